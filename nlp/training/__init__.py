"""A small language model from nothing: the standard library's own documentation, minutes on one core."""
