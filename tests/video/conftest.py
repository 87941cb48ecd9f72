"""Hard files, written once per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from video.reader import VideoReader

if TYPE_CHECKING:
    from tests.video.hard_files import HardFile


@pytest.fixture(scope="session")
def open_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path | str, str], VideoReader]:
    """``open_with(path, backend)``: a reader; skips where the backend is not installed or lacks its own libraries."""

    def get(path: Path | str, backend: str) -> VideoReader:
        try:
            return VideoReader(path, backend)
        except ImportError as missing:
            pytest.skip(str(missing))

    return get


@pytest.fixture(scope="session")
def hard_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], HardFile]:
    """``hard_file(name)``: the file of that name in `WRITERS`; skips where PyAV was built without its encoder."""
    av = pytest.importorskip("av", reason="hard files are written by PyAV")
    from tests.video.hard_files import WRITERS

    folder = tmp_path_factory.mktemp("hard_files")
    written: dict[str, HardFile] = {}

    def get(name: str) -> HardFile:
        if name not in written:
            try:
                written[name] = WRITERS[name](folder)
            except av.codec.codec.UnknownCodecError as error:
                pytest.skip(f"PyAV has no encoder for {name}: {error}")
        return written[name]

    return get
