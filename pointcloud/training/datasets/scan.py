"""What every labelled data set is to the training: scans by number, each with a class per point or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Array = np.ndarray
IGNORED = -1


@dataclass(frozen=True, eq=False)
class Scan:
    """A labelled cloud.

    Attributes:
        xyz: float32 [N, 3], metres.
        labels: int64 [N], index into the data set's class names, -1 where a point is ignored.
        intensity: float32 [N] in any scale, or None.
    """

    xyz: Array
    labels: Array
    intensity: Array | None = None


@dataclass(frozen=True)
class LabelMap:
    """What the numbers of label files mean.

    Attributes:
        class_names: the classes that are trained.
        index: class of each number that may occur in a file, -1 for those that are ignored.
    """

    class_names: tuple[str, ...]
    index: Mapping[int, int]

    def __call__(self, raw: Array, path: Path) -> Array:
        """Classes int64 [N] of the numbers [N] of a file.

        Raises:
            ValueError: a number that the map does not name.
        """
        numbers, inverse = np.unique(raw, return_inverse=True)
        unknown = [int(number) for number in numbers if int(number) not in self.index]
        if unknown:
            known = sorted(self.index)
            raise ValueError(
                f"{path}: labels must be among the {len(known)} of the label map ({known[0]} to {known[-1]}), "
                f"got {', '.join(map(str, unknown[:5]))}"
            )
        classes = np.array([self.index[int(number)] for number in numbers], np.int64)
        return classes[inverse].reshape(-1)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Scans of one split.

    Attributes:
        name: the data set and split, for messages.
        class_names: meaning of the labels.
        scans: a name for each scan, its path within the data set.
        read: the scan of a position in `scans`.
        read_labels: its labels only; where it is absent, `read` gives them.
        indoor: rooms, whose origin means nothing; else sweeps with the sensor at the origin.
    """

    name: str
    class_names: tuple[str, ...]
    scans: Sequence[str]
    read: Callable[[int], Scan]
    read_labels: Callable[[int], Array] | None = None
    indoor: bool = False

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, i: int) -> Scan:
        return self.read(i)

    def labels(self, i: int) -> Array:
        """Labels int64 [N] of a scan."""
        return self.read(i).labels if self.read_labels is None else self.read_labels(i)


def check_root(root: Path, what: str) -> None:
    """Raise NotADirectoryError for a root that is no folder."""
    if not root.is_dir():
        raise NotADirectoryError(f"root must be a folder of {what}, got {root}")


def check_rows(path: Path, rows: int, labels: Path, n_labels: int) -> None:
    """Raise ValueError where a scan and its labels are of different length."""
    if rows != n_labels:
        raise ValueError(f"{labels}: expected {rows} labels, one per point of {path}, got {n_labels}")


def check_found(scans: Sequence[object], root: Path, split: str, pattern: str) -> None:
    """Raise ValueError for a split without scans."""
    if not scans:
        raise ValueError(f"{root}: the split {split!r} has no scans: expected {pattern}")


def load_npy(path: Path, columns: int | None) -> Array:
    """An array [N] (columns None) or [N, columns] of a .npy file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another shape, objects instead of numbers, or not a .npy file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a .npy file of numbers: {error}") from error
    if columns is None and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    wanted = "[N]" if columns is None else f"[N, {columns}]"
    right = array.ndim == (1 if columns is None else 2) and (columns is None or array.shape[1] == columns)
    if not right or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{path} must hold numbers {wanted}, got {array.dtype} {list(array.shape)}")
    return array
