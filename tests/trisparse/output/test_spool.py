"""A run that is stopped anywhere and started again writes the file that an uninterrupted one writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trisparse.output.spool import Journal, Spool

ITEMS = {"a": [1, 2], "b": [], "c": [3], "d": [4, 5, 6]}


class Stopped(Exception):
    pass


def run(path: Path, stop_after: int | None = None, settings: object = 1, overwrite: bool = False) -> list[str]:
    """Write ITEMS, stopping after so many lines; the items that were worked on."""
    worked = []
    with Journal(path, {"settings": settings}, overwrite) as journal:
        for item, values in ITEMS.items():
            if item in journal.finished:
                continue
            worked.append(item)
            for value in values:
                journal.write([{"item": item, "value": value}])
                if stop_after is not None:
                    stop_after -= 1
                    if stop_after < 0:
                        raise Stopped
            journal.finish(item)
    return worked


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


EXPECTED = [{"item": item, "value": value} for item, values in ITEMS.items() for value in values]


@pytest.mark.parametrize("stop_after", range(6))
def test_goes_on_where_it_stopped(tmp_path: Path, stop_after: int) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(Stopped):
        run(path, stop_after)
    assert not path.exists()
    again = run(path)
    assert "a" not in again or stop_after < 2
    assert lines(path) == EXPECTED
    assert sorted(tmp_path.iterdir()) == [path]


def test_stopped_twice(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for stop_after in (2, 1):
        with pytest.raises(Stopped):
            run(path, stop_after)
    run(path)
    assert lines(path) == EXPECTED


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_marks_and_lines_cut_off_by_a_crash(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(Stopped):
        run(path, 3)
    for name in ("out.jsonl.progress", "out.jsonl.partial"):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-cut])
    run(path)
    assert lines(path) == EXPECTED


def test_a_finished_file_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious\n")
    with pytest.raises(FileExistsError, match="--overwrite"):
        run(path)
    assert path.read_text() == "precious\n"
    run(path, overwrite=True)
    assert lines(path) == EXPECTED


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious\n")
    with pytest.raises(Stopped):
        run(path, 3, overwrite=True)
    assert path.read_text() == "precious\n"


def test_other_settings_do_not_continue(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(Stopped):
        run(path, 3)
    with pytest.raises(FileExistsError, match="other settings"):
        run(path, settings=2)
    run(path, settings=2, overwrite=True)
    assert lines(path) == EXPECTED


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Journal(tmp_path, {})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Journal(tmp_path / "none" / "out.jsonl", {})


def test_lines_of_an_item_that_was_not_finished_stay_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(Stopped), Journal(path, {}) as journal:
        journal.write([{"frame": 0}])
        raise Stopped
    assert (tmp_path / "out.jsonl.partial").read_text() == '{"frame": 0}\n'


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Stopped), Journal(tmp_path / "out.jsonl", {}):
        raise Stopped
    assert list(tmp_path.iterdir()) == []


def test_marks_of_an_unfinished_run(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(Stopped), Spool(path, {}, notes=[1]) as spool:
        spool.append(b"one", {"n": 1})
        spool.append(b"two", {"n": 2})
        spool.write(b"three")
        raise Stopped
    with Spool(path, {}) as spool:
        assert (spool.marks, spool.mark, spool.found) == ([{"n": 1}, {"n": 2}], {"n": 2}, [1])
        spool.finish()
    assert path.read_bytes() == b"onetwo" and list(tmp_path.iterdir()) == [path]


def test_a_spool_whose_results_are_elsewhere(tmp_path: Path) -> None:
    with Spool(tmp_path / "progress", {}) as spool:
        spool.set_mark({"item": "a"})
        spool.discard()
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with Journal(tmp_path / "out.jsonl", {}), pytest.raises(FileExistsError, match="is being written by another run"):
        Journal(tmp_path / "out.jsonl", {}, overwrite=True)
