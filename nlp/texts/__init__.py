"""From texts to answers: tokens, length-aware batches, embeddings, labels."""
