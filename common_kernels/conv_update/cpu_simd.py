"""SIMD kernels of the convolution's update: depthwise taps in registers, and rows compared as they are finished."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from common_kernels.row_update.cpu_simd import Near, over_lanes, spread
from common_kernels.simd import (
    F32,
    HAS_BF16_DOT,
    I16,
    I64,
    load_at,
    narrow_bf16,
    row_kernel,
    store_at,
    widen_bf16,
)

_FLOAT, _BITS = (F32, 4), (I16, 2)


def _constant(typ: Any, value: float) -> Any:
    return ir.Constant(typ, [value] * typ.count)


def _clamp(builder: Any, x: Any, low: Any, high: Any) -> Any:
    """NaN stays NaN."""
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    return builder.select(builder.fcmp_ordered(">", x, high), high, x)


def _hardswish(builder: Any, old: Any, x: Any) -> Any:
    gate = builder.fadd(x, _constant(x.type, 3.0))
    gate = _clamp(builder, gate, _constant(x.type, 0.0), _constant(x.type, 6.0))
    return builder.fdiv(builder.fmul(x, gate), _constant(x.type, 6.0))


def _silu(builder: Any, old: Any, x: Any) -> Any:
    name = f"llvm.exp.v{x.type.count}f32"
    exp = cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type]), name)
    below = builder.fadd(builder.call(exp, [builder.fneg(x)]), _constant(x.type, 1.0))
    return builder.fdiv(x, below)


hardswish_row = row_kernel(_FLOAT, _FLOAT, _hardswish)
silu_row = row_kernel(_FLOAT, _FLOAT, _silu)
widen_row = row_kernel(_FLOAT, _BITS, lambda builder, old, x: widen_bf16(builder, x))


def settle_row(bf16: bool) -> Any:
    """A kernel that clamps n fp32 sums in place, rounded to bf16's values if `bf16`, and compares them with kept ones.

    Its arguments: the addresses of the sums and of the kept values, n, low, high, threshold. Returns 1 if some value
    moved by more than the threshold or to or from NaN, else 0.
    """
    kind, size = _BITS if bf16 else _FLOAT
    emit = HAS_BF16_DOT or not bf16

    @intrinsic
    def settle(context, sums, kept, n, low, high, threshold):
        def codegen(context, builder, signature, args):
            sums, kept, n, *limits = args
            if not emit:
                return I64(0)
            near = Near(builder)

            def body(at: Any, lanes: int) -> None:
                typ = ir.VectorType(F32, lanes)
                low, high, threshold = (spread(builder, each, typ) for each in limits)
                here = builder.add(sums, builder.mul(at, I64(4)))
                x = _clamp(builder, load_at(builder, here, typ, 4), low, high)
                if bf16:
                    bits = ir.VectorType(I16, lanes)
                    x = widen_bf16(builder, builder.bitcast(narrow_bf16(builder, x), bits))
                store_at(builder, x, here, 4)
                there = builder.add(kept, builder.mul(at, I64(size)))
                old = load_at(builder, there, ir.VectorType(kind, lanes), size)
                if bf16:
                    old = widen_bf16(builder, old)
                near.compare(x, old, threshold)

            over_lanes(builder, n, body)
            return near.moved()

        return types.int64(*[types.int64] * 3, *[types.float32] * 3), codegen

    return settle


def depthwise_rows(taps: int, lanes: int, bf16: bool) -> Any:
    """A kernel `acc[r, :] = start + sum over taps t of x[r][t][:] * w[t][:]` of `lanes` channels for n rows.

    With `taps` not 0 the weights of all taps stay in registers. Its arguments: the address of acc, its row stride in
    bytes, the address of n rows of `taps` addresses in x, an offset in bytes added to each, the address of w (fp32),
    its stride per tap in bytes, the address of start, the number of taps, n.
    """
    size = 2 if bf16 else 4

    @intrinsic
    def rows(context, acc, acc_stride, table, offset, w, w_stride, start, n_taps, n):
        def codegen(context, builder, signature, args):
            acc, acc_stride, table, offset, w, w_stride, start, n_taps, n = args
            typ = ir.VectorType(F32, lanes)
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(typ, [typ, typ, typ]), f"llvm.fma.v{lanes}f32"
            )

            def weights(tap: Any) -> Any:
                return load_at(builder, builder.add(w, builder.mul(tap, w_stride)), typ, 4)

            def inputs(entry: Any) -> Any:
                address = builder.add(load_at(builder, entry, I64, 8), offset)
                if bf16:
                    return widen_bf16(builder, load_at(builder, address, ir.VectorType(I16, lanes), size))
                return load_at(builder, address, typ, size)

            first = load_at(builder, start, typ, 4)
            held = [weights(I64(t)) for t in range(taps)]
            with cgutils.for_range(builder, n) as loop:
                entries = builder.add(table, builder.mul(builder.mul(loop.index, n_taps), I64(8)))
                if taps:
                    total = first
                    for t, weight in enumerate(held):
                        total = builder.call(fma, [inputs(builder.add(entries, I64(8 * t))), weight, total])
                else:
                    slot = cgutils.alloca_once(builder, typ)
                    builder.store(first, slot)
                    with cgutils.for_range(builder, n_taps) as inner:
                        entry = builder.add(entries, builder.mul(inner.index, I64(8)))
                        product = builder.call(fma, [inputs(entry), weights(inner.index), builder.load(slot, typ=typ)])
                        builder.store(product, slot)
                    total = builder.load(slot, typ=typ)
                store_at(builder, total, builder.add(acc, builder.mul(loop.index, acc_stride)), 4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), codegen

    return rows
