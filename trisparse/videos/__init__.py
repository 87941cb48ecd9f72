"""Runs over videos and cameras: which sources, how they are answered, what is written."""
