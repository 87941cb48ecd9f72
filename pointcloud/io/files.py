"""What a file is: its size and its first bytes, in words for an error message."""

from __future__ import annotations

from pathlib import Path

# First bytes of things people hand over by mistake, so that an error can say what the file is.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive (format='npz'?)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array (format='npy')"),
    (b"LASF", "a LAS / LAZ cloud (format='las')"),
    (b"ply\n", "a PLY cloud (format='ply')"),
    (b"ply ", "a PLY cloud (format='ply')"),
    (b"ply\r", "a PLY cloud (format='ply')"),
    (b"# .PCD", "a PCD cloud (format='pcd')"),
    (b"ASTM-E57", "an E57 file (format='e57')"),
    (b"\xd4\xc3\xb2\xa1", "a capture of network packets (format='pcap')"),
    (b"OFF\n", "an OFF mesh (format='off')"),
    (b"\x7fELF", "a program"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
)
_POINTER = b"version https://git-lfs"


def recognise(head: bytes) -> str | None:
    """What the first bytes of a file say it is, or None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    return None


def first_bytes(head: bytes) -> str:
    """The first bytes of a file in words, for an error message."""
    if not head:
        return "an empty file"
    return recognise(head) or f"a file that begins with {head[:8]!r}"


def check_file(path: Path, what: str) -> int:
    """Size of the file in bytes. Raises FileNotFoundError, IsADirectoryError or ValueError naming the path."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file ({what} was expected)")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a directory, but {what} was expected")
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file, but {what} was expected")
    return path.stat().st_size


def check_pointer(path: Path) -> None:
    """Raises ValueError for a Git LFS pointer, which is a few lines of text under the name of a file of any format."""
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path}: a Git LFS pointer, not the file itself: fetch the file with `git lfs pull`")
