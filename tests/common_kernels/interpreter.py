"""What Triton's interpreter does differently from a GPU, put right for tests of values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import INTERPRETED


def exact_bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bf16 as 16-bit integers and multiplies these; give its products the numbers instead."""
    if not INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        data = torch.from_numpy(operand.data.copy()).view(torch.bfloat16).float().numpy()
        return interpreter.TensorHandle(data, tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
