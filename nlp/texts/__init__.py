"""What a user calls with texts: embedders and classifiers, on tokens and batches of similar lengths.

`tokens` cuts texts to windows of token ids, `packer` groups these into batches, `embedder` and `classifier` run the
networks, and `logistic` trains the head of a classifier on embeddings.
"""
