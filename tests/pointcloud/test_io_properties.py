"""Readers on files with any damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.pointcloud.cloud_files import SAMPLES, lzf_compress, put, read_or_none

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import examples


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(list(SAMPLES)), seed=st.integers(0, 2**32), n_bytes=st.integers(1, 8))
def test_corruption_raises_nothing_but_valueerror(tmp_path: Path, name: str, seed: int, n_bytes: int) -> None:
    rng = np.random.default_rng(seed)
    content = np.frombuffer(SAMPLES[name](), dtype=np.uint8).copy()
    content[rng.integers(0, len(content), n_bytes)] = rng.integers(0, 256, n_bytes)
    read_or_none(put(tmp_path / name, content.tobytes()))


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=600) | st.text("ab", max_size=3000).map(str.encode) | st.integers(0, 3000).map(bytes))
def test_lzf_decodes_what_was_encoded(data: bytes) -> None:
    from pointcloud.io.lzf import lzf_decompress

    packed = lzf_compress(data)
    assert lzf_decompress(packed, len(data)).tobytes() == data
    for size in (len(data) + 1, max(len(data) - 1, 0)):
        if size != len(data):
            with pytest.raises(ValueError, match=r"LZF|compressed"):
                lzf_decompress(packed, size)


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(min_size=1, max_size=200), st.integers(0, 4000))
def test_lzf_survives_any_bytes(data: bytes, size: int) -> None:
    from pointcloud.io.lzf import lzf_decompress

    try:
        assert lzf_decompress(data, size).size == size
    except ValueError:
        pass
