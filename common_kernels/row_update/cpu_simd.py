"""SIMD pieces that compare new values with kept ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from common_kernels.simd import F32, I16, I64, LANES, load_at, widen_bf16

_I8 = ir.IntType(8)
_BIT = ir.IntType(1)


class Near:
    """Code that remembers whether all values compared so far were near each other, lane by lane."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self._near = {
            lanes: cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(_BIT, lanes), [1] * lanes))
            for lanes in (LANES, 1)
        }

    def compare(self, new: Any, old: Any, threshold: Any) -> None:
        """Vectors of fp32. Equal infinities are near, though they differ by NaN."""
        builder, typ, slot = self._builder, new.type, self._near[new.type.count]
        absolute = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(typ, [typ]), f"llvm.fabs.v{typ.count}f32"
        )
        distance = builder.call(absolute, [builder.fsub(new, old)])
        near = builder.or_(builder.fcmp_ordered("<=", distance, threshold), builder.fcmp_ordered("==", new, old))
        builder.store(builder.and_(builder.load(slot, typ=near.type), near), slot)

    def moved(self) -> Any:
        """int64: 1 if some value was not near, else 0."""
        builder = self._builder
        wide = builder.bitcast(builder.load(self._near[LANES], typ=ir.VectorType(_BIT, LANES)), ir.IntType(LANES))
        last = builder.extract_element(builder.load(self._near[1], typ=ir.VectorType(_BIT, 1)), I64(0))
        all_near = builder.and_(builder.icmp_unsigned("==", wide, ir.Constant(wide.type, -1)), last)
        return builder.zext(builder.not_(all_near), I64)


@intrinsic
def copy_bytes(context: Any, to: Any, source: Any, n: Any) -> Any:
    """memcpy of n bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, source, n = args
        pointer = I16.as_pointer()
        cgutils.raw_memcpy(builder, builder.inttoptr(to, pointer), builder.inttoptr(source, pointer), n, 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def over_lanes(builder: Any, n: Any, body: Any) -> None:
    """body(position, lanes) over n elements, by whole vectors, then one by one."""
    whole = builder.sdiv(n, I64(LANES))
    with cgutils.for_range(builder, whole) as loop:
        body(builder.mul(loop.index, I64(LANES)), LANES)
    done = builder.mul(whole, I64(LANES))
    with cgutils.for_range(builder, builder.sub(n, done)) as loop:
        body(builder.add(done, loop.index), 1)


def spread(builder: Any, scalar: Any, vector: Any) -> Any:
    """A vector of one number."""
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, undefined, places)


def _moved_row(element: Any, size: int, widen: Callable[[Any, Any], Any]) -> Any:
    """A kernel: 1 if some of n values at address new is further than threshold from the one at address kept, else 0."""

    @intrinsic
    def moved(context: Any, new: Any, kept: Any, n: Any, threshold: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            new, kept, n, threshold = args
            near = Near(builder)

            def body(at: Any, lanes: int) -> None:
                offset, typ = builder.mul(at, I64(size)), ir.VectorType(element, lanes)
                fresh, old = (
                    widen(builder, load_at(builder, builder.add(address, offset), typ, size)) for address in (new, kept)
                )
                near.compare(fresh, old, spread(builder, threshold, ir.VectorType(F32, lanes)))

            over_lanes(builder, n, body)
            return near.moved()

        return types.int64(types.int64, types.int64, types.int64, types.float32), codegen

    return moved


def _count_bytes(builder: Any, x: Any) -> Any:
    return builder.uitofp(x, ir.VectorType(F32, x.type.count))


moved_fp32 = _moved_row(F32, 4, lambda builder, x: x)
moved_bf16 = _moved_row(I16, 2, widen_bf16)
moved_bytes = _moved_row(_I8, 1, _count_bytes)
