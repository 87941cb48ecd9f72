"""The hard files are what they claim to be: read by plain PyAV they show their numbers, and each has its difficulty."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.video import hard_files
from tests.video.hard_files import WRITERS, HardFile, number_in, packets, picture, sequential

HardFiles = Callable[[str], HardFile]


def _leading(path: object) -> int:
    """Packets behind a key frame in the file that are shown before it."""
    count, key = 0, None
    for pts, _, is_key, _ in packets(path):  # type: ignore[arg-type]
        if is_key:
            key = pts
        elif key is not None and pts is not None and pts < key:
            count += 1
    return count


def test_every_number_can_be_read_from_its_picture() -> None:
    assert [number_in(picture(n)) for n in range(200)] == list(range(200))
    with pytest.raises(ValueError, match="neither|black or white"):
        number_in((picture(3) // 2 + picture(4) // 2).astype("uint8"))


@pytest.mark.parametrize("name", WRITERS)
def test_decoding_in_order_shows_the_numbers(name: str, hard_file: HardFiles) -> None:
    file = hard_file(name)
    images = list(sequential(file.path))
    if file.numbers is None:
        shown = [number_in(image) for _, image in images[:-2]]  # what the cut damaged is at the end
        assert shown == list(range(len(shown))) and 40 < len(images) < 100
        return
    assert tuple(number_in(image) for _, image in images) == file.numbers
    if file.times is not None:
        assert [time for time, _ in images] == pytest.approx(file.times, abs=file.tolerance)


@pytest.mark.parametrize(("name", "cut"), [("edit_list", 9), ("edit_list_over_key", 29)])
def test_edit_list_discards_pictures(name: str, cut: int, hard_file: HardFiles) -> None:
    file = hard_file(name)
    assert b"elst" in file.path.read_bytes()
    assert sum(discarded for *_, discarded in packets(file.path)) >= cut % 25
    assert file.numbers is not None and file.numbers[0] == 25 + cut


@pytest.mark.parametrize("name", ["open_gop_h264", "open_gop_hevc", "open_gop_hevc_mkv", "transport_mpeg2"])
def test_open_groups_have_leading_pictures(name: str, hard_file: HardFiles) -> None:
    assert _leading(hard_file(name).path) >= 6


@pytest.mark.parametrize("name", ["cut_open_gop_h264", "cut_open_gop_hevc"])
def test_cut_open_groups_have_packets_that_show_nothing(name: str, hard_file: HardFiles) -> None:
    file = hard_file(name)
    assert file.numbers is not None and len(packets(file.path)) > len(file.numbers)


def test_other_difficulties(hard_file: HardFiles) -> None:
    assert _leading(hard_file("avi_b_frames").path) >= 6
    assert min(pts for pts, *_ in packets(hard_file("transport_stream").path) if pts is not None) > 37 * 90000
    assert b"moof" in hard_file("fragmented").path.read_bytes()
    assert sum(key for _, _, key, _ in packets(hard_file("one_key_frame").path)) == 1
    assert sum(key for _, _, key, _ in packets(hard_file("intra_refresh").path)) > 3
    vp8 = hard_file("vp8")
    assert vp8.numbers is not None and len(packets(vp8.path)) == len(vp8.numbers) + 2
    assert {pts for pts, *_ in packets(hard_file("elementary").path)} == {None}
    with hard_files.av.open(str(hard_file("over_reported").path)) as container:
        assert container.streams.video[0].frames == 140
    gaps = {b - a for a, b in zip(*(iter(hard_file("variable_rate").times or ()),) * 2)}
    assert len(gaps) > 20
