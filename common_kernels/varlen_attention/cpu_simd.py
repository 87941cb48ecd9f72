"""SIMD kernels of attention: products of row tiles, the softmax of a row, keys and values laid out for them.

Written for 32 registers of 16 floats. A step is one number of 4 bytes, or two neighbouring ones of bf16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from common_kernels.simd import (
    F32,
    HAS_BF16_DOT,
    I16,
    I32,
    I64,
    LANES,
    VB,
    VF,
    VI,
    BFloat,
    add_products,
    load_at,
    load_vectors,
    make_multiply_add,
    splat,
    store_at,
    store_sums,
)

AVAILABLE = LANES == 16
LINE = 4 * LANES  # bytes of a vector

# exp(r) for |r| <= log(2) / 2, interpolated at Chebyshev's points: relative error 2e-9 before rounding.
_EXP = (
    1.0, 1.0000000377388703, 0.500000004714632, 0.1666641541404117, 0.041666352770387056, 0.008375134774678761,
    0.0013941118940759135,
)  # fmt: skip
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440054690583e-4  # the first has few bits: its multiples are exact
_ROUND = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer, which then stands in the lowest bits
_LOWEST = -87.33654  # below, exp is not a normal number


def product_tile(rows: int, vectors: int, bf16: bool) -> Any:
    """A kernel `out[r, :] = x[r, :] @ w` for `rows` rows and LANES * vectors columns.

    Its arguments: the addresses of out, x and w, each followed by its stride in bytes (per row, row and step), and the
    number of steps. Does nothing where the processor has no such product.
    """

    @intrinsic
    def tile(context, out, out_stride, x, x_stride, w, w_stride, steps):
        def codegen(context, builder, signature, args):
            out, out_stride, x, x_stride, w, w_stride, steps = args
            if not AVAILABLE or (bf16 and not HAS_BF16_DOT):
                return context.get_dummy_value()
            to = [builder.add(out, builder.mul(out_stride, I64(r))) for r in range(rows)]
            src = [builder.add(x, builder.mul(x_stride, I64(r))) for r in range(rows)]
            zero = ir.Constant(VF, [0.0] * LANES)
            sums = [[cgutils.alloca_once(builder, VF) for _ in range(vectors)] for _ in range(rows)]
            for slot in (slot for slots in sums for slot in slots):
                builder.store(zero, slot)
            multiply_add = make_multiply_add(builder, bf16)
            with cgutils.for_range(builder, steps) as loop:
                weights = load_vectors(builder, builder.add(w, builder.mul(loop.index, w_stride)), vectors)
                if bf16:
                    weights = [builder.bitcast(each, VB) for each in weights]
                step = builder.mul(loop.index, I64(4))
                for r in range(rows):
                    address = builder.add(src[r], step)
                    if bf16:
                        value = builder.bitcast(splat(builder, load_at(builder, address, I32, 2), VI), VB)
                    else:
                        value = splat(builder, load_at(builder, address, F32, 4), VF)
                    add_products(builder, multiply_add, sums[r], value, weights)
            store_sums(builder, sums, to)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return tile


def softmax_row(bf16: bool) -> Any:
    """A kernel that turns a row of scores s into `p = exp(s * scale + bias - max)`, in place.

    Its arguments: the address of the row, the address of the bias, the number of vectors, the scale, the address of a
    copy of p in bf16 (written if `bf16`), and that of two floats that receive max and the sum of p. Where all is -inf
    the max is -inf and the sum 0; NaN gives NaN.
    """

    @intrinsic
    def softmax(context, row, bias, vectors, scale, narrow, stats):
        def codegen(context, builder, signature, args):
            row, bias, vectors, scale, narrow, stats = args
            if not AVAILABLE or (bf16 and not HAS_BF16_DOT):
                return context.get_dummy_value()
            fma = make_multiply_add(builder, bf16=False)
            factor = splat(builder, scale, VF)

            def score(at: Any) -> Any:
                here = builder.mul(at, I64(LINE))
                start, s = (load_at(builder, builder.add(x, here), VF, 4) for x in (bias, row))
                return fma(start, s, factor)

            highest = cgutils.alloca_once_value(builder, _constant(float("-inf")))
            with cgutils.for_range(builder, vectors) as loop:
                builder.store(_larger(builder, score(loop.index), builder.load(highest, typ=VF)), highest)
            top = _fold(builder, builder.load(highest, typ=VF), _larger)
            blind = builder.fcmp_ordered("==", top, F32(float("-inf")))
            base = splat(builder, builder.select(blind, F32(0.0), top), VF)
            total = cgutils.alloca_once_value(builder, _constant(0.0))
            with cgutils.for_range(builder, vectors) as loop:
                p = _exp(builder, fma, builder.fsub(score(loop.index), base))
                builder.store(builder.fadd(builder.load(total, typ=VF), p), total)
                store_at(builder, p, builder.add(row, builder.mul(loop.index, I64(LINE))), 4)
                if bf16:
                    half = builder.fptrunc(p, ir.VectorType(BFloat(), LANES))
                    store_at(builder, half, builder.add(narrow, builder.mul(loop.index, I64(LINE // 2))), 2)
            store_at(builder, top, stats, 4)
            store_at(builder, _fold(builder, builder.load(total, typ=VF), _sum), builder.add(stats, I64(4)), 4)
            return context.get_dummy_value()

        floats = [types.int64] * 3 + [types.float32] + [types.int64] * 2
        return types.void(*floats), codegen

    return softmax


@intrinsic
def transpose_block(context, out, out_stride, x, x_stride, last):
    """out[c, r] = x[min(r, last), c] for LANES rows of LANES numbers of 4 bytes; strides in bytes."""

    def codegen(context, builder, signature, args):
        out, out_stride, x, x_stride, last = args
        if not AVAILABLE:
            return context.get_dummy_value()
        rows = []
        for r in range(LANES):
            here = builder.select(builder.icmp_signed("<", last, I64(r)), last, I64(r))
            rows.append(load_at(builder, builder.add(x, builder.mul(here, x_stride)), VF, 2))
        half = LANES // 2
        while half:  # exchange the off-diagonal quarters of every square of 2 * half
            low = [lane + LANES - half if lane & half else lane for lane in range(LANES)]
            high = [lane + LANES if lane & half else lane + half for lane in range(LANES)]
            for r in range(LANES):
                if not r & half:
                    a, b = rows[r], rows[r + half]
                    rows[r] = builder.shuffle_vector(a, b, ir.Constant(VI, low))
                    rows[r + half] = builder.shuffle_vector(a, b, ir.Constant(VI, high))
            half //= 2
        for c, column in enumerate(rows):
            store_at(builder, column, builder.add(out, builder.mul(out_stride, I64(c))), 4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def interleave_row(context, out, a, b, n):
    """out[2 * i], out[2 * i + 1] = a[i], b[i] for n numbers of 2 bytes (LANES divides n)."""

    def codegen(context, builder, signature, args):
        out, a, b, n = args
        bits = ir.VectorType(I16, LANES)
        with cgutils.for_range(builder, builder.sdiv(n, I64(LANES))) as loop:
            at = builder.mul(loop.index, I64(2 * LANES))
            low, high = (builder.zext(load_at(builder, builder.add(x, at), bits, 2), VI) for x in (a, b))
            both = builder.or_(low, builder.shl(high, ir.Constant(VI, [16] * LANES)))
            store_at(builder, both, builder.add(out, builder.mul(at, I64(2))), 4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


def scale_row(bf16: bool) -> Any:
    """A kernel `out[i] = x[i] * factor` for n fp32 numbers (LANES divides n); out is fp32, or bf16 if `bf16`."""

    @intrinsic
    def scale(context, out, x, n, factor):
        def codegen(context, builder, signature, args):
            out, x, n, factor = args
            if bf16 and not HAS_BF16_DOT:
                return context.get_dummy_value()
            by = splat(builder, factor, VF)
            with cgutils.for_range(builder, builder.sdiv(n, I64(LANES))) as loop:
                at = builder.mul(loop.index, I64(LINE))
                value = builder.fmul(load_at(builder, builder.add(x, at), VF, 4), by)
                if bf16:
                    value = builder.fptrunc(value, ir.VectorType(BFloat(), LANES))
                    at = builder.sdiv(at, I64(2))
                store_at(builder, value, builder.add(out, at), 2)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.float32), codegen

    return scale


def _constant(value: float) -> Any:
    return ir.Constant(VF, [value] * LANES)


def _larger(builder: Any, x: Any, y: Any) -> Any:
    """The larger of both, y where x is NaN."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _sum(builder: Any, x: Any, y: Any) -> Any:
    return builder.fadd(x, y)


def _fold(builder: Any, x: Any, combine: Any) -> Any:
    """All lanes combined in a tree, always the same one."""
    half = LANES // 2
    while half:
        moved = builder.shuffle_vector(x, x, ir.Constant(VI, [(lane + half) % LANES for lane in range(LANES)]))
        x = combine(builder, x, moved)
        half //= 2
    return builder.extract_element(x, I32(0))


def _exp(builder: Any, fma: Any, x: Any) -> Any:
    """exp of x <= 0, exactly 0 below the normal numbers; NaN stays NaN."""
    lowest = _constant(_LOWEST)
    tiny = builder.fcmp_ordered("<", x, lowest)
    x = builder.select(tiny, lowest, x)
    shifted = fma(_constant(_ROUND), x, _constant(_LOG2_E))
    n = builder.fsub(shifted, _constant(_ROUND))
    r = fma(fma(x, n, _constant(-_LN2_HIGH)), n, _constant(-_LN2_LOW))
    value = _constant(_EXP[-1])
    for coefficient in _EXP[-2::-1]:
        value = fma(_constant(coefficient), value, r)
    one = ir.Constant(VI, [127] * LANES)
    exponent = builder.add(builder.bitcast(shifted, VI), one)
    power = builder.bitcast(builder.shl(exponent, ir.Constant(VI, [23] * LANES)), VF)
    return builder.select(tiny, _constant(0.0), builder.fmul(value, power))
