"""What the names of published checkpoints say of the network."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIT = re.compile(
    r"TSM_(?P<dataset>[A-Za-z0-9-]+)_(?P<modality>RGB|Flow|RGBDiff)_(?P<network>[A-Za-z0-9]+)"
    r"(?:_shift(?P<fold_div>\d{1,3})_(?P<place>blockres|block))?(?:_\w+?)?_segment(?P<num_segments>\d{1,4})_e\d+"
)
# The configuration's name: pretraining, network, gpus x batch, [dense-]clip length x interval x clips, epochs, data.
MMACTION2 = re.compile(
    r"(?P<method>tsm|tsn)_(?:imagenet-pretrained-)?(?P<network>[a-z0-9-]+?)_\d+xb\d+-(?:dense-)?"
    r"(?P<clip_length>\d{1,3})x\d{1,3}x(?P<clips>\d{1,4})-\d+e_(?P<dataset>[a-z0-9-]+)"
)
ONLINE = re.compile(r"_online\b")


@dataclass(frozen=True)
class Said:
    """What a file name says; None where it says nothing.

    Attributes:
        dataset: as the name spells it.
        shift: whether there are shifts.
    """

    num_segments: int | None = None
    fold_div: int | None = None
    place: str | None = None
    shift: bool | None = None
    direction: str | None = None
    dataset: str | None = None


def read_name(name: str) -> Said:
    """Read `TSM_<data>_<modality>_<net>[_shift<div>_<place>]_avg_segment<T>_e<E>…` and mmaction2's `tsm_…_1x1x<T>-…`.

    A name that is neither says nothing.
    """
    if match := MIT.match(name):
        shifted = match["fold_div"] is not None
        return Said(
            num_segments=int(match["num_segments"]),
            fold_div=int(match["fold_div"]) if shifted else None,
            place=match["place"],
            shift=shifted,
            direction="both" if shifted else None,
            dataset=match["dataset"],
        )
    if match := MMACTION2.match(name):
        shifted = match["method"] == "tsm"
        return Said(
            num_segments=int(match["clip_length"]) * int(match["clips"]),
            shift=shifted,
            direction="both" if shifted else None,
            dataset=match["dataset"],
        )
    if ONLINE.search(name):
        return Said(direction="past")
    return Said()
