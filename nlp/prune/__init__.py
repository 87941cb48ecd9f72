"""Token pruning that removes tokens: between layers the rows of unimportant tokens leave the batch."""

from nlp.prune.cascade import Cascade, First, Random
from nlp.prune.merge import Merge
from nlp.prune.policy import Live, Plan, Policy

__all__ = ["Cascade", "First", "Live", "Merge", "Plan", "Policy", "Random"]
