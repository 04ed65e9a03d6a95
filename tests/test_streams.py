"""Data of any size, a span at a time: the rows that reading the whole would give."""

import gzip
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from scored_rows import write_json, write_lines

from rmexp.data.pairs import Columns, read_response
from rmexp.data.rows import Row
from rmexp.data.streams import RowStream
from rmexp.errors import ConfigError, DataError
from rmexp.schema import Message

ROWS = [{"a": at, "turns": [{"role": "user", "content": str(at)}]} for at in range(50)]


def write(folder: Path, form: str) -> Path:
    path = folder / f"rows.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=17)
    elif form == "jsonl":
        write_lines(path, ROWS)
        path.write_text(path.read_text().replace("\n", "\n\n"))  # empty lines are no rows
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(write_lines(folder / "plain", ROWS).read_bytes()))
    elif form == "json":
        write_json(path, ROWS)
    else:
        path.write_text("a\n" + "".join(f"{row['a']}\n" for row in ROWS))
    return path


@pytest.mark.parametrize("form", ["parquet", "jsonl", "jsonl.gz", "json", "csv"])
@pytest.mark.parametrize("step", [1, -1, 3])
def test_spans_hold_the_rows_in_whatever_order_they_are_asked_for(form, step, tmp_path):
    rows = RowStream(str(write(tmp_path, form)))
    assert rows.form == ("parquet" if form == "parquet" else "jsonl")
    assert rows.counts == {f"rows.{form}": 50}
    for size in (1, 7, 17, 50):
        spans = rows.spans(size)
        assert sum(span.rows for span in spans) == 50
        for span in spans[::step]:
            content = rows.read(span)
            found = [int(row.values["a"]) for row in content.rows]
            assert found == list(range(span.first, span.first + span.rows))
            if form == "parquet":
                assert content.table.column("a").to_pylist() == found
                assert content.rows[0].place == f"rows.parquet, row {span.first}"


def test_spans_are_of_one_file_each_and_end_at_the_limit(tmp_path):
    for name in ("b", "a"):
        write_lines(tmp_path / f"{name}.jsonl", ROWS[:10])
    rows = RowStream(str(tmp_path))
    assert [(s.file, s.first, s.rows, s.start) for s in rows.spans(8)] == [
        ("a.jsonl", 0, 8, 0),
        ("a.jsonl", 8, 2, 8),
        ("b.jsonl", 0, 8, 10),
        ("b.jsonl", 8, 2, 18),
    ]
    assert [(s.start, s.rows) for s in rows.spans(8, limit=11)] == [(0, 8), (8, 2), (10, 1)]
    assert [(s.start, s.rows) for s in rows.spans(8, limit=4)] == [(0, 4)]
    assert list(RowStream(str(tmp_path), include=["b"]).counts) == ["b.jsonl"]
    with pytest.raises(DataError, match=r"no file matches data\.include's 'c': choose from a\.js"):
        RowStream(str(tmp_path), include=["c"])


@pytest.mark.parametrize("include", [{}, [], "a.jsonl", [1]])
def test_patterns_that_are_none(include, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.include must be a list of patterns, not"):
        RowStream(str(tmp_path), include=include)


def test_patterns_for_a_split_are_refused():
    with pytest.raises(ConfigError, match=r"data\.include selects files of a folder"):
        RowStream("some/data", "train", include=["*"])


def test_the_digest_is_that_of_what_is_in_the_files(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    before = RowStream(str(path)).digest
    assert RowStream(str(path)).digest == before
    write_lines(path, [*ROWS[:-1], {"a": 0}])
    assert RowStream(str(path)).digest != before


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(DataError, match=r"does not exist.*, or set data\.split for a hub data set"):
        RowStream(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"data\.split is for hub data sets"):
        RowStream(str(tmp_path), split="train")
    write(tmp_path, "parquet")
    write(tmp_path, "jsonl")
    with pytest.raises(DataError, match="holds Parquet and other files: select one kind"):
        RowStream(str(tmp_path))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl holds no rows"):
        _ = RowStream(str(tmp_path / "empty.jsonl")).counts
    rows = RowStream(str(tmp_path / "rows.jsonl"))
    (span,) = rows.spans(50)
    write_lines(tmp_path / "rows.jsonl", ROWS[:3])
    with pytest.raises(DataError, match=r"rows\.jsonl has lost rows meanwhile"):
        rows.read(span)


def test_a_split_of_the_hub_is_read_from_its_table(monkeypatch, tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    asked = []

    def load(name: str, split: str, revision: str | None) -> Any:
        asked.append((name, split, revision))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = RowStream("owner/name", "train", "abc")
    assert asked == [("owner/name", "train", "abc")]
    assert (rows.source, rows.form) == ("owner/name (train, abc)", "parquet")
    content = rows.read(rows.spans(20)[2])
    assert [row.values for row in content.rows] == ROWS[40:]
    assert content.rows[0].place == "owner/name (train), row 40"
    assert isinstance(content.table, pyarrow.Table)
    assert rows.digest != RowStream("owner/name", "test", "abc").digest
    digests = set()
    for commit in ("a1", "b2"):  # the library's folder of a commit, when none was asked for
        table.save_to_disk(tmp_path / commit)
        kept = datasets.load_from_disk(str(tmp_path / commit))
        monkeypatch.setattr(datasets, "load_dataset", lambda *names, kept=kept, **more: kept)
        digests.add(RowStream("owner/name", "train").digest)
    assert len(digests) == 2


USER, ANSWER = Message("user", "one?"), {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "one?", "response": "yes"},
        {"prompt": [{"role": "user", "content": "one?"}], "response": "yes"},
        {"messages": [{"role": "user", "content": "one?"}, ANSWER]},
        {"prompt": "one?", "response": [{"role": "user", "content": "one?"}, ANSWER]},
        {"response": "\n\nHuman: one?\n\nAssistant: yes"},
    ],
)
def test_a_response_is_read_in_the_forms_of_a_pairs_side(values):
    entry = read_response(Row(values, "", "row 0"), "0", "")
    assert (entry.example.prompt, entry.example.chosen) == ((USER,), ("yes",))
    assert (entry.example.rejected, entry.flaw) == ((), None)


def test_a_response_that_is_none_has_a_flaw():
    ends = {"messages": [{"role": "user", "content": "one?"}]}
    assert "ends with the user's turn" in str(read_response(Row(ends, "", "r"), "0", "").flaw)
    other = {"prompt": "two?", "messages": [{"role": "user", "content": "one?"}, ANSWER]}
    assert read_response(Row(other, "", "r"), "0", "").flaw == "prompts differ"
    named = {"question": "one?", "answer": "yes", "system": "s"}
    columns = Columns(prompt="question", response="answer")
    found = read_response(Row(named, "", "r"), "0", "", columns).example
    assert found.prompt == (Message("system", "s"), USER)
