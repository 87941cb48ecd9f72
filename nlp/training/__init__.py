"""Train the small language model that is shipped: on Python's own documentation, in minutes on one core."""
