"""Explicit SIMD for Numba: register-tile kernels, written as LLVM IR through `numba.extending.intrinsic`.

Numba's loops over small matrices reach a third of a core's rate; a tile of accumulators that stays in registers reaches
nearly all of it. The vectors are as wide as the machine's registers, the tiles as tall as it has registers for.
"""

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.core.config import CPU_FEATURES
from numba.extending import intrinsic

F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _host_features() -> set[str]:
    """The features Numba compiles for, which NUMBA_CPU_FEATURES may narrow."""
    if CPU_FEATURES is not None:
        return {name[1:] for name in CPU_FEATURES.split(",") if name.startswith("+")}
    return {name for name, present in llvm.get_host_cpu_features().items() if present}


_FEATURES = _host_features()
_WIDE = "avx512f" in _FEATURES  # 32 registers of 16 floats; AVX2 has 16 of 8, NEON 32 of 4
LANES = 16 if _WIDE else 8 if "avx2" in _FEATURES else 4
HAS_BF16_DOT = "avx512bf16" in _FEATURES
HAS_COMPRESS = _WIDE  # lanes that a mask selects, moved together
MAX_VECTORS = 2 if LANES == 8 else 4
# Rows of a tile by its number of vectors: rows * vectors accumulators, the weights and a broadcast fit the registers.
TILE_ROWS = (0, 12, 6, 4, 2) if LANES == 8 else (0, 12, 8, 8, 6)
OUTER_ROWS = (0, 8, 4, 4, 4)

VF = ir.VectorType(F32, LANES)
VI = ir.VectorType(I32, LANES)


class BFloat(ir.types.Type):
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


VB = ir.VectorType(BFloat(), 2 * LANES)


def load_at(builder: Any, address: Any, typ: Any, align: int) -> Any:
    return builder.load(builder.inttoptr(address, typ.as_pointer()), typ=typ, align=align)


def store_at(builder: Any, value: Any, address: Any, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def splat(builder: Any, scalar: Any, vector: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def make_multiply_add(builder: Any, bf16: bool) -> Any:
    """accumulator, x, w -> accumulator + x * w on vectors; in bf16, the sum of two adjacent products."""
    if bf16:
        name, typ = "llvm.x86.avx512bf16.dpbf16ps.512", ir.FunctionType(VF, [VF, VB, VB])
        dot = cgutils.get_or_insert_function(builder.module, typ, name)
        return lambda acc, x, w: builder.call(dot, [acc, x, w])
    typ = ir.FunctionType(VF, [VF, VF, VF])
    fma = cgutils.get_or_insert_function(builder.module, typ, f"llvm.fma.v{LANES}f32")
    return lambda acc, x, w: builder.call(fma, [x, w, acc])


def gemm_tile(rows: int, vectors: int, bf16: bool) -> Any:
    """A kernel `acc[r, :] += x[r, :] @ w` for `rows` rows, each at an address of its own, and LANES * vectors columns.

    Its arguments: the address of `rows` row addresses of acc, an offset in bytes added to each, the same two for x, the
    address of w, the number of steps, the stride of w per step in bytes. A step is one input channel of 4 bytes, or two
    of bf16.
    """

    @intrinsic
    def tile(context, acc, acc_offset, x, x_offset, w, steps, w_stride):
        def codegen(context, builder, signature, args):
            acc, acc_offset, x, x_offset, w, steps, w_stride = args
            to, src = (
                [builder.add(load_at(builder, builder.add(each, I64(8 * r)), I64, 8), offset) for r in range(rows)]
                for each, offset in ((acc, acc_offset), (x, x_offset))
            )
            sums = _load_sums(builder, to, vectors)
            multiply_add = make_multiply_add(builder, bf16)
            with cgutils.for_range(builder, steps) as loop:
                line = builder.add(w, builder.mul(loop.index, w_stride))
                step = builder.mul(loop.index, I64(4))
                weights = load_vectors(builder, line, vectors)
                if bf16:
                    weights = [builder.bitcast(each, VB) for each in weights]
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


def outer_tile(rows: int, vectors: int) -> Any:
    """A kernel `acc[r, :] += sum over pairs p of x[p][r] * g[p][:]` for `rows` rows of LANES * vectors columns.

    Its arguments: the address of acc, its row stride in bytes, the address of the pairs' addresses in x, an offset in
    bytes added to each, the same two for g, the number of pairs.
    """

    @intrinsic
    def tile(context, acc, acc_stride, x, x_offset, g, g_offset, pairs):
        def codegen(context, builder, signature, args):
            acc, acc_stride, x, x_offset, g, g_offset, pairs = args
            to = [builder.add(acc, builder.mul(acc_stride, I64(r))) for r in range(rows)]
            sums = _load_sums(builder, to, vectors)
            multiply_add = make_multiply_add(builder, bf16=False)
            with cgutils.for_range(builder, pairs) as loop:
                here = builder.mul(loop.index, I64(8))
                src = builder.add(load_at(builder, builder.add(x, here), I64, 8), x_offset)
                line = builder.add(load_at(builder, builder.add(g, here), I64, 8), g_offset)
                lines = load_vectors(builder, line, vectors)
                for r in range(rows):
                    value = splat(builder, load_at(builder, builder.add(src, I64(4 * r)), F32, 4), VF)
                    add_products(builder, multiply_add, sums[r], value, lines)
            store_sums(builder, sums, to)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return tile


def row_kernel(out_type: Any, in_type: Any, compute: Any, emit: bool = True) -> Any:
    """A kernel over n numbers at address out and n at address x: `out[i] = compute(builder, out[i], x[i])`.

    compute works on vectors and on single lanes. A type is (LLVM type, bytes). One that is not emitted does nothing.
    """
    (out_element, out_bytes), (in_element, in_bytes) = out_type, in_type

    @intrinsic
    def row(context, out, x, n):
        def codegen(context, builder, signature, args):
            out, x, n = args

            def body(at, lanes):
                here = builder.add(out, builder.mul(at, I64(out_bytes)))
                there = builder.add(x, builder.mul(at, I64(in_bytes)))
                value = load_at(builder, there, ir.VectorType(in_element, lanes), in_bytes)
                old = load_at(builder, here, ir.VectorType(out_element, lanes), out_bytes)
                store_at(builder, compute(builder, old, value), here, out_bytes)

            if emit:
                _for_lanes(builder, n, body)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return row


def widen_bf16(builder: Any, bits: Any) -> Any:
    lanes = bits.type.count
    word, wide = ir.VectorType(I32, lanes), ir.VectorType(F32, lanes)
    return builder.bitcast(builder.shl(builder.zext(bits, word), ir.Constant(word, [16] * lanes)), wide)


def _relu(builder: Any, x: Any) -> Any:
    zero = ir.Constant(x.type, [0.0] * x.type.count)
    return builder.select(builder.fcmp_ordered("<", x, zero), zero, x)  # NaN stays NaN


def narrow_bf16(builder: Any, x: Any) -> Any:
    return builder.fptrunc(x, ir.VectorType(BFloat(), x.type.count))


_FLOAT, _BITS, _HALF = (F32, 4), (I16, 2), (BFloat(), 2)
copy_row = row_kernel(_FLOAT, _FLOAT, lambda builder, old, x: x)
add_row = row_kernel(_FLOAT, _FLOAT, lambda builder, old, x: builder.fadd(old, x))
add_row_bf16 = row_kernel(_FLOAT, _BITS, lambda builder, old, x: builder.fadd(old, widen_bf16(builder, x)))
relu_row = row_kernel(_FLOAT, _FLOAT, lambda builder, old, x: _relu(builder, x))
# Rounding to nearest even is one instruction where HAS_BF16_DOT; elsewhere LLVM would call a function for each number.
round_row_bf16 = row_kernel(_HALF, _FLOAT, lambda builder, old, x: narrow_bf16(builder, x), HAS_BF16_DOT)
relu_row_bf16 = row_kernel(_HALF, _FLOAT, lambda builder, old, x: narrow_bf16(builder, _relu(builder, x)), HAS_BF16_DOT)


@intrinsic
def prefetch(context, address):
    """Ask for the cache line at an address that is read soon."""

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(ask, [builder.inttoptr(args[0], byte), I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def compress_valid(context, entries, n, source, slot):
    """Write the entries >= 0 and their positions one after the other; returns how many there are.

    entries: address of n int32 (LANES divides n). source, slot: addresses of room for n + LANES int32 and int16.
    """

    def codegen(context, builder, signature, args):
        entries, n, source, slot = args
        narrow, mask = ir.VectorType(I16, LANES), ir.VectorType(ir.IntType(1), LANES)
        compress = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(VI, [VI, VI, mask]), f"llvm.x86.avx512.mask.compress.v{LANES}i32"
        )
        lanes, zero = ir.Constant(VI, list(range(LANES))), ir.Constant(VI, [0] * LANES)
        found = cgutils.alloca_once_value(builder, I64(0))
        with cgutils.for_range(builder, builder.sdiv(n, I64(LANES))) as loop:
            first, at = builder.mul(loop.index, I64(LANES)), builder.load(found, typ=I64)
            values = load_at(builder, builder.add(entries, builder.mul(first, I64(4))), VI, 4)
            valid = builder.icmp_signed(">=", values, zero)
            here = builder.add(lanes, splat(builder, builder.trunc(first, I32), VI))
            rows = builder.call(compress, [values, zero, valid])
            store_at(builder, rows, builder.add(source, builder.mul(at, I64(4))), 4)
            positions = builder.trunc(builder.call(compress, [here, zero, valid]), narrow)
            store_at(builder, positions, builder.add(slot, builder.mul(at, I64(2))), 2)
            builder.store(builder.add(at, _count_lanes(builder, valid)), found)
        return builder.load(found, typ=I64)

    return types.int64(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def count_valid(context, entries, n):
    """How many of n int32 (LANES divides n) at an address are >= 0."""

    def codegen(context, builder, signature, args):
        found = cgutils.alloca_once_value(builder, I64(0))
        with cgutils.for_range(builder, builder.sdiv(args[1], I64(LANES))) as loop:
            values = load_at(builder, builder.add(args[0], builder.mul(loop.index, I64(4 * LANES))), VI, 4)
            valid = builder.icmp_signed(">=", values, ir.Constant(VI, [0] * LANES))
            builder.store(builder.add(builder.load(found, typ=I64), _count_lanes(builder, valid)), found)
        return builder.load(found, typ=I64)

    return types.int64(types.int64, types.int64), codegen


def _count_lanes(builder: Any, mask: Any) -> Any:
    count = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, [I32]), "llvm.ctpop.i32")
    bits = builder.zext(builder.bitcast(mask, ir.IntType(LANES)), I32)
    return builder.zext(builder.call(count, [bits]), I64)


def _for_lanes(builder: Any, n: Any, body: Any) -> None:
    """body(position, lanes) over n elements, by whole vectors, then one by one."""
    whole = builder.sdiv(n, I64(LANES))
    with cgutils.for_range(builder, whole) as loop:
        body(builder.mul(loop.index, I64(LANES)), LANES)
    done = builder.mul(whole, I64(LANES))
    with cgutils.for_range(builder, builder.sub(n, done)) as loop:
        body(builder.add(done, loop.index), 1)


def load_vectors(builder: Any, address: Any, vectors: int) -> list[Any]:
    return [load_at(builder, builder.add(address, I64(4 * LANES * v)), VF, 4) for v in range(vectors)]


def _load_sums(builder: Any, addresses: list[Any], vectors: int) -> list[list[Any]]:
    """Stack slots, which LLVM turns into registers, filled from the rows at `addresses`."""
    sums = []
    for address in addresses:
        slots = [cgutils.alloca_once(builder, VF) for _ in range(vectors)]
        for slot, value in zip(slots, load_vectors(builder, address, vectors)):
            builder.store(value, slot)
        sums.append(slots)
    return sums


def add_products(builder: Any, multiply_add: Any, slots: list[Any], value: Any, vectors: list[Any]) -> None:
    for slot, vector in zip(slots, vectors):
        builder.store(multiply_add(builder.load(slot, typ=VF), value, vector), slot)


def store_sums(builder: Any, sums: list[list[Any]], addresses: list[Any]) -> None:
    for slots, address in zip(sums, addresses):
        for v, slot in enumerate(slots):
            store_at(builder, builder.load(slot, typ=VF), builder.add(address, I64(4 * LANES * v)), 4)


@njit(nogil=True, cache=True)
def keep(array):
    """Do nothing, after the last use of an array's address.

    Numba frees an array after the last mention of its name, even where its address is still in use.
    """
    return array.size
