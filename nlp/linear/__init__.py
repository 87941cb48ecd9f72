"""Linear layers of language models: packed for oneDNN, their activation fused, or with int8 weights."""
