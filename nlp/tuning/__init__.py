"""Choose how much to prune by what it costs and saves, and train a network to lose less by it."""

from nlp.tuning.calibration import calibrate
from nlp.tuning.families import Family
from nlp.tuning.finetuning import finetune
from nlp.tuning.report import Calibration, Candidate

__all__ = ["Calibration", "Candidate", "Family", "calibrate", "finetune"]
