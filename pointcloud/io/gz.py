"""Files inside gzip: unpacked into a file of their own, no further than a cloud can have been packed."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAGIC = b"\x1f\x8b"
# A cloud packs to a tenth at best, text of small numbers to a twentieth; gzip itself reaches 1032.
_MAX_GROWTH = 100
_ALWAYS = 1 << 26  # bytes that are unpacked from a file of any size
_CHUNK = 1 << 20


def is_gzip(path: Path) -> bool:
    """Whether the file begins as gzip does."""
    with open(path, "rb") as file:
        return file.read(2) == MAGIC


def inner_name(path: Path) -> str:
    """The name of the file inside: without the suffix `.gz`."""
    return path.name[:-3] if path.name.lower().endswith(".gz") else path.name


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A path to what the gzip file holds, which lasts as long as the context. Errors inside name the gzip file.

    Raises ValueError for a damaged file and for one that would grow more than 100 times beyond 64 MiB.
    """
    limit = max(_ALWAYS, _MAX_GROWTH * path.stat().st_size)
    with tempfile.TemporaryDirectory(prefix="cloud-") as folder:
        target = Path(folder) / inner_name(path)
        with gzip.open(path) as source, open(target, "xb") as file:
            written = 0
            try:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    if written > limit:
                        raise ValueError(
                            f"{path}: {path.stat().st_size} bytes of gzip hold more than {limit} bytes, which no cloud "
                            f"does; unpack the file yourself if it is one"
                        )
                    file.write(chunk)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{path}: corrupt or truncated gzip file: {error}") from None
        try:
            yield target
        except (ValueError, OSError, ImportError) as error:
            text = str(error).replace(str(target), str(path))
            raise type(error)(text) if type(error) in (ValueError, ImportError) else ValueError(text) from error
