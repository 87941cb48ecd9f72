"""Video models that skip what does not change: not built yet, this is where it will live.

Exact frame reading (`VideoReader`, `sample_indices`), temporal shift (`temporal_shift`, `add_temporal_shift`,
`models.TSM`), streaming with an explicit state (`Stream`, `StreamState`), frame skipping (`skip`) and recomputation of
changed tiles only (`delta.accelerate`).

It will use, from `common_kernels`: `channel_shift` for the temporal shift, `compact` for kept frames and active tiles,
`gather_rows` and `scatter_add_rows` to take tiles out of a frame and put them back, `kernel_map` and `gather_gemm` for
convolutions over changed tiles on a dense lattice, `segment_reduce` for clip consensus, `ragged_topk` for frame
sampling.
"""

__all__: list[str] = []
