"""Documents from every format: what is read, with which row, and what is said of what cannot be read."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trisparse.output import sinks
from trisparse.texts import documents, sources, tables
from trisparse.texts.reading import Log, Reading


def read(path: Path, counts: dict[str, int] | None = None, format: str | None = None, **options: Any) -> list[Any]:
    """(row, text) of each document, or (row, text, id); fills in counts."""
    log = Log()
    (source,) = sources.plan([str(path)], format)
    found = list(documents.read(source, Reading(**options), log))
    assert all(document.file == str(path) for document in found)
    if counts is not None:
        counts.update(log.counts)
    named = options.get("id_column") is not None
    return [(d.row, d.text, d.id) if named else (d.row, d.text) for d in found]


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_parquet(path: Path, columns: dict[str, Any], rows: int | None = None) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path, row_group_size=rows)
    return path


# Text that looks like an end of line, a cell or markup to somebody.
ODD = [
    "plain",
    "",
    "  spaces  ",
    "tab\there",
    "ü 漢字 🙂",
    "\x0c, \x85, \u2028",
    'a "quote"',
    "[CLS] [SEP]",
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_lines(tmp_path: Path, end: str, mark: bytes, last: bool) -> None:
    data = mark + (end.join(ODD) + (end if last else "")).encode()
    assert read(write(tmp_path, "a.txt", data)) == list(enumerate(ODD))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(data))
    assert read(tmp_path / "a.txt.gz") == list(enumerate(ODD))


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"])
def test_empty_files(tmp_path: Path, name: str, data: bytes) -> None:
    assert read(write(tmp_path, name, data)) == []


def test_whole_files(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfone\r\ntwo\n"
    assert read(write(tmp_path, "a.txt", data), whole_file=True) == [(0, "one\r\ntwo\n")]
    assert read(write(tmp_path, "b.txt", ""), whole_file=True) == [(0, "")]
    with pytest.raises(ValueError, match=r"c\.txt, line 2: not UTF-8 at byte 7 of the file \(0xff\)"):
        read(write(tmp_path, "c.txt", b"\xef\xbb\xbfab\nc\xff"), whole_file=True)


@pytest.mark.parametrize("delimiter, suffix", [(",", "csv"), (";", "csv"), ("\t", "csv"), ("|", "csv"), ("\t", "tsv")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables(tmp_path: Path, delimiter: str, suffix: str, end: str) -> None:
    import csv

    texts = [*ODD, "two\nlines", "a,b;c\td|e"]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    writer.writerow(["name", "text", "n"])
    for i, text in enumerate(texts):
        writer.writerow([f"n{i}", text, i])
    path = write(tmp_path, f"a.{suffix}", "\ufeff" + file.getvalue())
    expected = [(i, text, f"n{i}") for i, text in enumerate(texts)]
    assert read(path, id_column="name") == expected
    (tmp_path / f"b.{suffix}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read(tmp_path / f"b.{suffix}.gz", id_column="name") == expected


def test_tables_without_header_or_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", '1\t"so" he said\n2\t"\n\n3\tc\n')
    options = {"column": "1", "id_column": "0", "header": False}
    assert read(path, quotes=False, **options) == [(0, '"so" he said', "1"), (1, '"', "2"), (2, "c", "3")]
    with pytest.raises(ValueError, match=r"line 1: .* expected after '\"' .*--no-quotes"):
        read(path, **options)
    for column in ("2", "text", "-1"):
        with pytest.raises(ValueError, match=f"with --no-header --column must be a number from 0 to 1, got '{column}'"):
            read(path, column=column, header=False, quotes=False)
    with pytest.raises(ValueError, match="no column '0', .*if the file has no header, add --no-header"):
        read(path, column="0", quotes=False)


def test_a_quote_that_is_never_closed_is_no_bad_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text\nfine\n"open\n' + "more\n" * 100)
    for skip_bad in (False, True):
        with pytest.raises(ValueError, match=r"a\.csv, line 3: a quotation mark is opened and never closed"):
            read(path, skip_bad=skip_bad)
    counts: dict[str, int] = {}
    path = write(tmp_path, "b.csv", 'text\n"open\nmore\n" closed\nfine\n')
    assert read(path, counts, skip_bad=True) == [(1, "fine")]
    assert counts == {"skipped as bad lines": 3}


def test_ragged_tables(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,n\nhello, world,1\nshort\nfine,2\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 2: 2 cells expected, got 3; --skip-bad"):
        read(path)
    counts: dict[str, int] = {}
    assert read(path, counts, skip_bad=True) == [(2, "fine")]
    assert counts == {"skipped as bad lines": 2}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_missing_columns(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        write_parquet(path, {"sentence": ["x"], "label": [1]})
    else:
        write(tmp_path, path.name, "sentence,label\nx,1\n" if suffix == "csv" else '{"sentence": "x", "label": 1}\n')
    with pytest.raises(ValueError, match=r"no column 'text', it has 'sentence', 'label'; name one with --column"):
        read(path)
    with pytest.raises(ValueError, match=r"no column 'sentense'.*did you mean 'sentence'\? Name it with --column"):
        read(path, column="sentense")
    with pytest.raises(ValueError, match=r"no column 'lable'.*did you mean 'label'\? Name it with --id-column"):
        read(path, column="sentence", id_column="lable")
    assert read(path, column="sentence", id_column="label") == [(0, "x", "1")]


def test_a_column_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 columns are called 'text'"):
        read(write(tmp_path, "a.csv", "text,text\na,b\n"))


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"n": i, "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(ODD)]
    path = write(tmp_path, "a.jsonl", "\ufeff" + "\r\n".join(lines) + "\n\n  \n" + json.dumps({"text": "x", "n": None}))
    expected = [(i, text, str(i)) for i, text in enumerate(ODD)]
    assert read(path, id_column="n") == [*expected, (len(ODD) + 2, "x", None)]


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"other": 1}', "no column 'text', it has 'other'"),
        ("{}", "no column 'text', it has no columns"),
        ('{"text": 5}', "'text' holds int, text expected"),
        ('{"text": ["a"]}', "'text' holds list, text expected"),
        ('["text"]', "an object expected, got list"),
        ('{"text": "a"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"text": "a", "id": {}}', "'id' holds dict, text or number expected"),
    ],
)
def test_ragged_json(tmp_path: Path, line: str, words: str) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a", "id": 1.5}\n' + line + '\n{"text": "b", "id": true}\n')
    options = {"id_column": "id"} if "id" in line else {}
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: {re.escape(words)}.*; --skip-bad leaves out such lines"):
        read(path, **options)
    counts: dict[str, int] = {}
    assert [found[:2] for found in read(path, counts, skip_bad=True, **options)] == [(0, "a"), (2, "b")]
    assert counts == {"skipped as bad lines": 1}


INVALID = {
    "a.txt": (b"fine\nb\xffd\nlast\n", r"line 2: not UTF-8 at byte 6 of the file \(0xff\)", "b\ufffdd"),
    "b.txt": (b"\xef\xbb\xbffine\ncut \xe6\xbc\nlast", r"line 2: not UTF-8 at byte 12 of the file", "cut \ufffd"),
    "a.csv": (b"text,n\nfine,1\nb\xffd,2\nlast,3\n", r"line 3: not UTF-8 at byte 15 of the file", "b\ufffdd"),
    "a.jsonl": (
        b'{"text": "fine"}\n{"text": "b\xffd"}\n{"text": "last"}\n',
        r"line 2: not UTF-8 at byte 28 of the file",
        "b\ufffdd",
    ),
    "b.jsonl": (
        b'{"text": "fine"}\n{"text": "b\\ud800d"}\n{"text": "last"}\n',
        r"line 2: half a surrogate pair \(\\ud800\)",
        "b\ufffdd",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_text(tmp_path: Path, name: str) -> None:
    data, words, replaced = INVALID[name]
    path = write(tmp_path, name, data)
    with pytest.raises(ValueError, match=rf"{name}, {words}.*--invalid replace or --invalid skip accepts it"):
        read(path)
    counts: dict[str, int] = {}
    assert read(path, counts, invalid="replace") == [(0, "fine"), (1, replaced), (2, "last")]
    assert counts == {"with invalid UTF-8 replaced": 1}
    counts.clear()
    assert read(path, counts, invalid="skip") == [(0, "fine"), (2, "last")]
    assert counts == {"skipped for invalid UTF-8": 1}


def test_utf16_is_named(tmp_path: Path) -> None:
    for invalid in ("error", "replace"):
        with pytest.raises(ValueError, match=r"a\.txt: UTF-8 was expected, got UTF-16 \(by its byte-order mark\)"):
            read(write(tmp_path, "a.txt", "hello".encode("utf-16")), invalid=invalid)


@pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark(tmp_path: Path, code: str) -> None:
    with pytest.raises(ValueError, match=r"a\.txt: UTF-8 was expected, got UTF-16 \(every other byte is 0\)"):
        read(write(tmp_path, "a.txt", "words\nand more\n".encode(code)))
    nulls = "a\0\0b\n\0a\0b\nb\0\0\0\n"  # odd, but text
    assert [text for _, text in read(write(tmp_path, "b.txt", nulls))] == nulls.splitlines()


def test_carriage_returns_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.csv, line 1: a carriage return that no line feed follows; lines must"):
        read(write(tmp_path, "a.csv", "text,n\rone,1\rtwo,2\r"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_nulls(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        write_parquet(path, {"text": ["a", None, "b"]})
    else:
        write(tmp_path, path.name, '{"text": "a"}\n{"text": null}\n{"text": "b"}\n')
    place = "line 2" if suffix == "jsonl" else "row 1"
    with pytest.raises(ValueError, match=f"{place}: null where a text was expected; --nulls skip or --nulls empty"):
        read(path)
    counts: dict[str, int] = {}
    assert read(path, counts, nulls="skip") == [(0, "a"), (2, "b")]
    assert read(path, counts, nulls="empty") == [(0, "a"), (1, ""), (2, "b")]
    assert counts == {"skipped as null": 1, "null taken as empty": 1}


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    monkeypatch.setattr(tables, "PARQUET_ROWS", 3)
    expected = [(i, text, str(10 + i)) for i, text in enumerate(ODD)]
    numbers = pa.array(range(10, 10 + len(ODD)))
    kinds = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
    for kind in kinds:
        values = [text.encode() for text in ODD] if "binary" in str(kind) else ODD
        path = write_parquet(tmp_path / "a.parquet", {"n": numbers, "text": pa.array(values, kind)}, rows=5)
        assert read(path, id_column="n") == expected, kind
        assert read(path, id_column="text")[5][2] is not None
    assert read(write_parquet(tmp_path / "b.parquet", {"text": pa.array([], pa.string())})) == []
    assert read(write_parquet(tmp_path / "c.parquet", {"text": pa.nulls(2)}), nulls="skip") == []
    with pytest.raises(ValueError, match="column 'text' holds int64, text expected"):
        read(write_parquet(tmp_path / "d.parquet", {"text": [1]}))
    with pytest.raises(ValueError, match="column 'n' holds lists"):
        read(write_parquet(tmp_path / "d.parquet", {"text": ["a"], "n": [[1]]}), id_column="n")
    with pytest.raises(ValueError, match=r"e\.parquet: not a parquet file that can be read"):
        read(write(tmp_path, "e.parquet", b"PAR1 nothing"))
    with pytest.raises(ValueError, match=r"f\.parquet: not a parquet file that can be read"):
        data = (tmp_path / "a.parquet").read_bytes()
        read(write(tmp_path, "f.parquet", data[:8] + b"\x99" * (len(data) // 3) + data[8 + len(data) // 3 :]))


def test_parquet_of_odd_types(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    values = ["one", "two", None]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary_view(), pa.large_binary()):
        for column in (pa.array(values).cast(kind), pa.array(["one", "two", None]).dictionary_encode()):
            path = write_parquet(tmp_path / "a.parquet", {"text": ["a", "b", "c"], "id": column, "t": column})
            assert [name for *_, name in read(path, id_column="id")] == values
            assert read(path, column="t", nulls="skip") == [(0, "one"), (1, "two")]
    times = pa.array([1, None, 3], pa.timestamp("ns"))
    path = write_parquet(tmp_path / "b.parquet", {"text": ["a", "b", "c"], "id": times})
    assert [name for *_, name in read(path, id_column="id")][:2] == ["1970-01-01 00:00:00.000000001", None]
    path = write_parquet(tmp_path / "c.parquet", {"text": ["a", "b"], "id": pa.array([b"x", b"\xff"])})
    with pytest.raises(ValueError, match=r"c\.parquet, row 1: not UTF-8 at byte 0 of the text \(0xff\)"):
        read(path, id_column="id")
    counts: dict[str, int] = {}
    assert read(path, counts, id_column="id", invalid="skip") == [(0, "a", "x")]
    assert counts == {"skipped for invalid UTF-8": 1}
    from pyarrow import parquet

    parquet.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(ValueError, match=r"c\.parquet: 2 columns are called 'text'"):
        read(path)


def test_parquet_with_text_that_is_none(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    careless = pa.array([b"fine", b"b\xffd"]).view(pa.string())
    path = write_parquet(tmp_path / "a.parquet", {"text": careless})
    with pytest.raises(ValueError, match=r"row 1: not UTF-8 at byte 1 of the text \(0xff\)"):
        read(path)
    assert read(path, invalid="replace") == [(0, "fine"), (1, "b\ufffdd")]
    assert read(path, invalid="skip") == [(0, "fine")]


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(100_000))
    for data in (whole[:50_000], whole[:50_000] + b"x" * 50_000, b"plain"):
        with pytest.raises(ValueError, match=r"a\.txt\.gz: an incomplete or damaged gzip file"):
            read(write(tmp_path, "a.txt.gz", data), invalid="replace")


def test_lines_have_a_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST_BYTES", 1000)
    path = write(tmp_path, "a.txt", "a" * 999 + "\n" + "b" * 5000 + "\nend\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 2: longer than"):
        read(path)
    counts: dict[str, int] = {}
    assert read(path, counts, skip_bad=True) == [(0, "a" * 999), (2, "end")]
    assert counts == {"skipped as bad lines": 1}
    with pytest.raises(ValueError, match="too long for one document"):
        read(path, whole_file=True)
    with pytest.raises(ValueError, match=r"line 3: not UTF-8 at byte 6002"):  # counted past the long line
        read(write(tmp_path, "b.txt", b"a" * 999 + b"\n" + b"b" * 5000 + b"\nx\xff"), skip_bad=True)


def test_very_long_lines(tmp_path: Path) -> None:
    long = "word " * 1_000_000
    assert read(write(tmp_path, "a.txt", long + "\nx")) == [(0, long), (1, "x")]
    assert read(write(tmp_path, "a.csv", f'text,n\n"{long}",1\n')) == [(0, long)]
    assert read(write(tmp_path, "a.jsonl", json.dumps({"text": long}))) == [(0, long)]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"invalid": "ignore"}, "--invalid must be one of error, replace, skip, got 'ignore'"),
        ({"nulls": "zero"}, "--nulls must be one of error, skip, empty, got 'zero'"),
    ],
)
def test_choices(options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Reading(**options)  # type: ignore[arg-type]


def plan(*names: object, **options: Any) -> Sequence[sources.Source]:
    return sources.plan([str(name) for name in names], **options)


def test_plans(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    for name in ("b.TXT", "a.csv.gz", "inner/c.jsonl", "notes.doc", "out.parquet", "x.json"):
        write(folder, name, b"")
    found = plan(folder, output=folder / "out.parquet")
    assert [(Path(s.name).name, s.format, s.gzipped) for s in found] == [
        ("a.csv.gz", "csv", True),
        ("b.TXT", "txt", False),
        ("c.jsonl", "jsonl", False),
    ]
    assert [s.format for s in plan(folder / "notes.doc", format="csv")] == ["csv"]
    assert plan("-") == [sources.Source("-", "txt")]
    assert plan("-", format="jsonl") == [sources.Source("-", "jsonl")]


def test_a_file_and_links_to_it_are_read_once(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "store").write_text("one")
    (inner / "m.txt").write_text("two")
    for name, target in {"a.txt": "m.txt", "z.txt": "m.txt", "b.txt": "../store", "c.txt": "../store"}.items():
        (inner / name).symlink_to(target)
    (inner / "loop").symlink_to(".")
    found = [Path(source.name).name for source in sources.plan([str(inner)])]
    assert found == ["b.txt", "m.txt"]


def test_plans_that_cannot_be(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"")
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, options, words in (
        ([tmp_path / "none.txt"], {}, r"none\.txt: no such file"),
        ([empty], {}, r"no text in this folder; expected files with a suffix of \.txt"),
        ([path, f"{tmp_path}/empty/../a.txt"], {}, r"a\.txt was named twice, also as"),
        (["-", "-"], {}, "- was named twice$"),
        (
            [write(tmp_path, "a.doc", b"")],
            {},
            r"a\.doc: unknown suffix, expected one of \.txt .*; for another suffix add --format",
        ),
        ([path], {"format": "word"}, "--format must be one of txt, csv, tsv, jsonl, parquet, got 'word'"),
        ([tmp_path], {"format": "txt"}, "--format is for files and pipes"),
        (["-"], {"format": "parquet"}, "parquet cannot be piped in"),
        ([write(tmp_path, "a.parquet.gz", b"")], {}, "parquet must be a plain file"),
        ([path], {"output": path}, "the output would overwrite the text it comes from"),
    ):
        with pytest.raises((ValueError, OSError), match=words):
            plan(*arguments, **options)


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"reading parquet files needs pyarrow: pip install 'trisparse\[nlp\]'"):
        plan(write(tmp_path, "a.parquet", b""))


def test_real_table(data_dir: Path) -> None:
    path = data_dir / "nlp" / "sst2" / "dev.tsv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1]
    assert read(path, column="sentence", id_column="label") == [
        (i, *line.rsplit("\t", 1)) for i, line in enumerate(lines)
    ]
