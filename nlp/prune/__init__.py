"""Token pruning that removes tokens: between layers the rows of unimportant tokens leave the batch."""

from nlp.prune.policy import Live, Plan, Policy

__all__ = ["Live", "Plan", "Policy"]
