"""Linear layers of language models: packed for oneDNN, their activation fused, or with int8 weights.

`packed` and `packed_conv1d` hold the layers whose weights are laid out once, and `optimize` puts them into a network;
`quantized` holds the layer with int8 weights, and `quantize` puts it into a copy that is checked on a sample.
"""
