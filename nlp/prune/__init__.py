"""Token pruning that removes tokens: between layers the rows of unimportant tokens leave the batch.

Those that stay keep their order, their positions and their rotary embeddings. A sliding window counts the tokens that
are left, so that it reaches farther than before.
"""

from nlp.prune.cascade import Cascade, First, Random
from nlp.prune.merge import Merge
from nlp.prune.policy import Live, Plan, Policy
from nlp.prune.pooling import mean_pool
from nlp.prune.threshold import Mass, Threshold

__all__ = [
    "Cascade",
    "First",
    "Live",
    "Mass",
    "Merge",
    "Plan",
    "Policy",
    "Random",
    "Threshold",
    "mean_pool",
]
