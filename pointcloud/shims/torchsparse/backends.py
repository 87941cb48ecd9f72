"""Switches of the original, which choose among kernels that are not here: none of them changes a result."""

benchmark = False
allow_tf32 = False
allow_fp16 = True
hash_rsv_ratio = 2
