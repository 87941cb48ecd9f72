"""StreamState: rows of independent streams that can be reset, copied, moved and kept in a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.video.failing import fail_after_writing
from video.state import StreamState


def state(streams: int = 3) -> StreamState:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "layer1.0.conv1": torch.randn(streams, 2, 4, 4, generator=generator),
        "mask": torch.rand(streams, 5, generator=generator) > 0.5,
        "half": torch.randn(streams, 1, generator=generator).bfloat16(),
    }
    return StreamState(tensors, torch.arange(1, streams + 1))


def assert_same(a: StreamState, b: StreamState) -> None:
    assert a.tensors.keys() == b.tensors.keys()
    assert torch.equal(a.frames, b.frames)
    for name, tensor in a.tensors.items():
        assert tensor.dtype == b.tensors[name].dtype
        assert torch.equal(tensor, b.tensors[name])


@pytest.mark.parametrize(("streams", "rows"), [(1, [1]), ([0, 2], [0, 2]), ([], []), (None, [0, 1, 2]), ((1, 1), [1])])
def test_reset_zeroes_the_rows_it_names_and_no_other(streams: object, rows: list[int]) -> None:
    before, after = state(), state()
    assert after.reset(streams) is after  # type: ignore[arg-type]
    for row in range(3):
        for name, tensor in after.tensors.items():
            expected = torch.zeros_like(tensor[row]) if row in rows else before.tensors[name][row]
            assert torch.equal(tensor[row], expected)
        assert after.frames[row] == (0 if row in rows else row + 1)


def test_reset_leaves_states_that_share_the_tensors_alone() -> None:
    first = state()
    second = StreamState(first.tensors, first.frames)
    first.reset(0)
    assert_same(second, state())


@pytest.mark.parametrize("streams", [3, -1, [0, 7]])
def test_reset_of_a_stream_that_is_not_there(streams: int | list[int]) -> None:
    with pytest.raises(IndexError, match="streams must be in 0 to 2, got"):
        state().reset(streams)


def test_clone_has_memory_of_its_own() -> None:
    first = state()
    second = first.clone()
    first.tensors["layer1.0.conv1"].fill_(7)
    first.frames.fill_(7)
    assert_same(second, state())


def test_to_changes_floating_tensors_only() -> None:
    moved = state().to(torch.float64)
    assert moved.tensors["layer1.0.conv1"].dtype == torch.float64
    assert moved.tensors["mask"].dtype == torch.bool
    assert moved.frames.dtype == torch.int64


def test_fresh() -> None:
    assert StreamState.fresh(2).is_fresh
    assert len(StreamState.fresh(0)) == 0
    assert not state().is_fresh
    assert state().reset().is_fresh
    with pytest.raises(ValueError, match="streams must be at least 0, got -1"):
        StreamState.fresh(-1)


@pytest.mark.parametrize("streams", [0, 1, 3])
def test_save_and_load(tmp_path: Path, streams: int) -> None:
    path = tmp_path / "state.safetensors"
    state(streams).save(path)
    assert_same(StreamState.load(path), state(streams))
    assert os.listdir(tmp_path) == ["state.safetensors"]


def test_save_of_tensors_that_share_memory(tmp_path: Path) -> None:
    shared = torch.randn(2, 4)
    StreamState({"a": shared, "b": shared[:, :2]}, torch.ones(2, dtype=torch.int64)).save(tmp_path / "state")
    assert torch.equal(StreamState.load(tmp_path / "state").tensors["b"], shared[:, :2])


def test_a_save_that_fails_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state().save(path)
    broken = state()
    broken.tensors["mask"] = broken.tensors["mask"].to("meta")
    with pytest.raises((NotImplementedError, RuntimeError, ValueError)):
        broken.save(path)
    assert_same(StreamState.load(path), state())


def test_load_of_other_files(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        StreamState.load(tmp_path / "absent")
    path = tmp_path / "file"
    for content in (b"", b"no state at all, but long enough to have a header", os.urandom(64)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="file: not a saved StreamState"):
            StreamState.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a saved StreamState"):
        StreamState.load(path)
    save_file({"weight": torch.zeros(2)}, path, metadata={"format": "trisparse.StreamState"})
    with pytest.raises(ValueError, match="it lacks frames"):
        StreamState.load(path)
    tensors = {"weight": torch.zeros(3, 1), "frames": torch.zeros(2, dtype=torch.int64)}
    save_file(tensors, path, metadata={"format": "trisparse.StreamState"})
    with pytest.raises(ValueError, match=r"weight must have one row for each of 2 streams, got float32 \[3, 1\]"):
        StreamState.load(path)


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    state().save(path)
    fail_after_writing(monkeypatch, "video.state.save_file", 1)
    with pytest.raises(OSError, match="disk full"):
        state(1).save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert_same(StreamState.load(path), state())


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state().save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a saved StreamState"):
        StreamState.load(path)


@pytest.mark.parametrize(
    ("tensors", "frames", "message"),
    [
        ({}, torch.zeros(2), r"frames must be int64 \[B\], got float32 \[2\]"),
        ({"a": torch.zeros(())}, torch.zeros(2, dtype=torch.int64), "a must have one row for each of 2 streams"),
        ({"frames": torch.zeros(2)}, torch.zeros(2, dtype=torch.int64), "cannot name a tensor"),
    ],
    ids=["dtype", "scalar", "name"],
)
def test_bad_states(tensors: dict[str, torch.Tensor], frames: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamState(tensors, frames)
