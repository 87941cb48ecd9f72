"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path beside `path` to write to; the file there becomes `path` when the block ends without an error.

    Where the block fails, or is interrupted, the unfinished file is removed and an older file of that name stays. The
    path has the suffix of the wanted file, so that what chooses a format by the suffix chooses the right one.

    Raises:
        IsADirectoryError: `path` is a folder.
        FileNotFoundError: its folder does not exist.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target}: a directory, but a file to write was expected")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: its folder {target.parent} does not exist")
    partial = target.with_name(f".{target.stem}.{os.getpid()}-{secrets.token_hex(4)}.partial{target.suffix}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
