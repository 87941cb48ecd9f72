"""Language encoders that skip padding and unimportant tokens: not built yet, this is where it will live.

Packed encoders from Hugging Face models (`accelerate`, `restore`, `compare`), token and head pruning (`Cascade`,
`Threshold`, `Mass`, `Merge`, `calibrate`, `finetune`), length-aware batches from a stream (`Packer`) and pruning of the
key-value cache for `generate` (`PrunedCache`).

It will use, from `common_kernels`: `varlen_attention` for exact attention without padding and the column sums that
score tokens, `ragged_topk` and `compact` for kept tokens, `gather_rows` and `scatter_add_rows` to pack and unpack rows,
`segment_reduce` for token merging and pooled outputs, `gather_gemm` for projections of kept rows.
"""

__all__: list[str] = []
