"""One answer to the question in which dtype a network computes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common_models import dtypes
from common_models.dtypes import InputCast, OutputCast, multiplies_bf16, name_of, resolve


def pretend(monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool = False) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)


@pytest.mark.parametrize(("avx512", "amx", "expected"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_bf16_is_fast_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, avx512: int, amx: int, expected: bool
) -> None:
    pretend(monkeypatch, bool(avx512), bool(amx))
    # A processor that only converts bf16 satisfies oneDNN, which must not count.
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    assert multiplies_bf16(torch.device("cpu")) is expected
    assert multiplies_bf16("cpu") is expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert multiplies_bf16("cuda:1") is expected


def test_other_devices_keep_fp32() -> None:
    assert not multiplies_bf16("meta")


@pytest.mark.parametrize(
    ("dtype", "own", "bf16", "expected"),
    [
        (None, torch.float32, True, torch.float32),
        (None, torch.float16, False, torch.float16),
        ("auto", torch.float32, True, torch.bfloat16),
        ("auto", torch.float32, False, torch.float32),
        ("auto", torch.bfloat16, True, torch.bfloat16),
        ("auto", torch.bfloat16, False, torch.float32),
        ("auto", torch.float64, True, torch.float64),
        ("fastest", torch.float32, True, torch.bfloat16),
        ("bf16", torch.float32, False, torch.bfloat16),
        ("fp32", torch.bfloat16, True, torch.float32),
        ("fp16", torch.float32, True, torch.float16),
        (torch.bfloat16, torch.float32, False, torch.bfloat16),
        (torch.float64, torch.float64, False, torch.float64),
    ],
)
def test_meanings(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, own: torch.dtype, bf16: bool, expected: torch.dtype
) -> None:
    pretend(monkeypatch, bf16)
    assert resolve(dtype, nn.Linear(2, 2, dtype=own)) == expected


def test_auto_takes_only_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, True)
    assert resolve("auto", nn.Linear(2, 2), allowed=(torch.float32, torch.float16)) == torch.float32


def test_a_network_without_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, False)
    assert resolve(None, nn.ReLU()) == resolve("auto", nn.ReLU()) == torch.float32


@pytest.mark.parametrize(
    ("dtype", "kind", "message"),
    [
        ("bf61", ValueError, "dtype must be None, auto, fp32, bf16, fp16 or a torch dtype, got 'bf61'; did you mean"),
        ("torch.bfloat16", ValueError, "got 'torch.bfloat16'"),
        ("int8", ValueError, r"dtype must be one that this network can compute in \(fp32, bf16, fp16\), got int8"),
        (torch.int32, ValueError, "got int32"),
        (torch.float64, ValueError, "got fp64"),
        (16, TypeError, "dtype must be None, a name or a torch dtype, got int"),
        (True, TypeError, "got bool"),
    ],
)
def test_refusals(dtype: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        resolve(dtype, nn.Linear(2, 2))


def test_names() -> None:
    assert [name_of(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)] == ["fp32", "bf16", "fp16"]
    assert name_of(torch.int64) == "int64"
    assert dtypes.own(nn.Embedding(2, 2, dtype=torch.float16)) == torch.float16


class Pair:
    """A container of tensors that torch does not know."""

    def __init__(self, a: Tensor) -> None:
        self.a = a


def cast_pair(value: Any, cast: Any) -> Any:
    return Pair(cast(value.a)) if isinstance(value, Pair) else value


def test_casts_reach_any_nesting_and_only_floating_tensors() -> None:
    cast = InputCast(torch.bfloat16, leaf=cast_pair)
    index = torch.arange(3)
    args, kwargs = cast(nn.ReLU(), ([torch.ones(2)], {"a": (torch.ones(1), "text", None)}), {"b": index})
    assert args[0][0].dtype == args[1]["a"][0].dtype == torch.bfloat16
    assert args[1]["a"][1:] == ("text", None) and kwargs["b"] is index
    assert cast.cast(Pair(torch.ones(2))).a.dtype == torch.bfloat16


def test_casts_of_one_dtype_leave_the_others() -> None:
    only = OutputCast(torch.float32, torch.bfloat16)
    double, half = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.bfloat16)
    out = only(nn.ReLU(), (), (double, half))
    assert out[0] is double and out[1].dtype == torch.float32


def test_a_network_with_casts_can_be_copied_and_pickled() -> None:
    model = nn.Linear(2, 2).to(torch.bfloat16)
    model.register_forward_pre_hook(InputCast(torch.bfloat16), with_kwargs=True)
    model.register_forward_hook(OutputCast(torch.float32, torch.bfloat16))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other(torch.ones(1, 2)).dtype == torch.float32
