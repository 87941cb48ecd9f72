"""SIMD kernels of pooling: the larger of two rows, where NaN wins."""

from __future__ import annotations

from typing import Any

from common_kernels.simd import F32, I16, row_kernel, widen_bf16


def _larger(builder: Any, old: Any, x: Any) -> Any:
    above = builder.select(builder.fcmp_unordered(">", x, old), x, old)
    return builder.select(builder.fcmp_unordered("!=", old, old), old, above)


max_row = row_kernel((F32, 4), (F32, 4), _larger)
max_row_bf16 = row_kernel((F32, 4), (I16, 2), lambda builder, old, x: _larger(builder, old, widen_bf16(builder, x)))
