import csv
import gzip
import json
import re
import shutil
import subprocess
import sys
import threading

import pytest

from rmexp.data.formats import stem
from rmexp.data.rows import Row
from rmexp.data.sources import github_folder, hub_rows, local_rows
from rmexp.errors import DataError
from rmexp.schema import Message

ROWS = [{"id": "a", "text": 'one\u2028line, "quoted"'}, {"id": "b", "text": "Zwölf\nzeilen"}]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows):
    import io

    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


FORMATS = {
    "x.jsonl": lines(ROWS),
    "x.jsonl.gz": gzip.compress(lines(ROWS)),
    "x.json": json.dumps(ROWS).encode(),
    "x.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "x.csv": table(ROWS),
    "x.csv.gz": gzip.compress(table(ROWS)),
    "X.JSONL": lines(ROWS),
    "with.dots.jsonl": b"\xef\xbb\xbf" + lines(ROWS).replace(b"\n", b"\r\n") + b"\n",
}


@pytest.mark.parametrize("name", [*FORMATS, "x.parquet"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    (tmp_path / name).write_bytes(FORMATS[name] if name in FORMATS else parquet(ROWS))
    rows = list(local_rows(tmp_path / name))
    assert [row.values for row in rows] == ROWS
    assert {row.file for row in rows} == {name}
    line_based = "jsonl" in name.lower()
    assert rows[1].place == (f"{name}:2" if line_based else f"{name}, row 1")


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    for name in ("b.json", "a/2.json", "a/1.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps([{"name": name}]))
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "._b.json").write_text("not data")
    rows = list(local_rows(str(tmp_path)))
    assert [row.file for row in rows] == ["a/1.json", "a/2.json", "b.json"]
    assert [row.values["name"] for row in rows] == ["a/1.json", "a/2.json", "b.json"]


def test_stem_knows_the_suffixes_only():
    names = ["a/x.jsonl.gz", "x.csv", "v1.5.json", "plain", "x.JSON", "x.tar.gz"]
    assert [stem(name) for name in names] == ["x", "x", "v1.5", "plain", "x", "x.tar.gz"]


def test_a_csv_field_may_be_long(tmp_path):
    long = "x" * 200_000
    (tmp_path / "x.csv").write_text(f"id,text\n1,{long}\n")
    before = csv.field_size_limit()
    (row,) = local_rows(tmp_path / "x.csv")
    assert row.values == {"id": "1", "text": long}
    assert csv.field_size_limit() == before


BAD_FILES = {
    "empty.jsonl": (b"", "holds no rows: download it again"),
    "empty.json": (b"", "holds no rows"),
    "blank.jsonl": (b"\n \n", "holds no rows"),
    "list.json": (b"[]", "holds no rows"),
    "header.csv": (b"id,text\n", "holds no rows"),
    "a.txt": (b"text", r"the format of .*a\.txt is unknown: known are \.jsonl, \.json, \.csv,"),
    "broken.jsonl": (
        b'{"id": 1}\n{"id": \n',
        r"broken\.jsonl:2 is no valid JSON .*correct the line",
    ),
    "deep.jsonl": (b"[" * 100_000, r"deep\.jsonl:1 is no valid JSON"),
    "large.json": (b"[" + b"9" * 5000 + b"]", r"large\.json is no valid JSON"),
    "broken.json": (b'[{"id": 1},\n{"id": ]', r"broken\.json:2 is no valid JSON"),
    "lines.json": (b'{"id": 1}\n{"id": 2}\n', r"lines\.json:2 is no valid JSON .*call it \.jsonl"),
    "object.json": (b'{"id": 1}', r"object\.json must hold a list of objects, not dict"),
    "number.jsonl": (b'{"id": 1}\n5\n', r"number\.jsonl:2 is not an object but int"),
    "number.json": (b'[{"id": 1}, "x"]', r"number\.json, row 1 is not an object but str"),
    "latin.jsonl": (
        b'{"id": "\xfc"}',
        r"latin\.jsonl:1 is no UTF-8 text \(byte 8\): save the file as UTF-8",
    ),
    "binary.csv": (b"\x89PNG", r"binary\.csv:1 is no UTF-8 text \(byte 0\)"),
    "plain.jsonl.gz": (b'{"id": 1}', r"plain\.jsonl\.gz cannot be read .*download it again"),
    "cut.jsonl.gz": (gzip.compress(b'{"id": 1}' * 99)[:20], r"cut\.jsonl\.gz cannot be read"),
    "short.csv": (b"id,text\n1,a\n2\n", r"short\.csv, row 1 has 1 fields where the header has 2"),
    "long.csv": (b"id,text\n1,a,b\n", r"long\.csv, row 0 has 3 fields where the header has 2"),
    "twice.csv": (b"id,id\n1,2\n", r"twice\.csv needs a header of distinct column names"),
    "quote.csv": (b'id,text\n1,"a\n', r"quote\.csv:2 is no valid CSV"),
    "bad.parquet": (b"PAR1 no", r"bad\.parquet cannot be read as Parquet"),
    "cut.parquet": (parquet(ROWS)[:-20], r"cut\.parquet cannot be read as Parquet"),
    "utf16.jsonl": ('{"id": 1}'.encode("utf-16"), r"utf16\.jsonl:1 is no UTF-8 text \(byte 0\)"),
    "zipped.jsonl": (gzip.compress(b'{"id": 1}'), r"zipped\.jsonl:1 is no UTF-8 text \(byte 1\)"),
    "later.jsonl": (b'{"id": 1}\n{"id": "\xfc"}', r"later\.jsonl:2 is no UTF-8 text \(byte 8\)"),
    "named.json": (b'{"data": [{"id": 1}]}', r"named\.json must hold a list of objects, not dict"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(local_rows(tmp_path / name))


def test_the_bad_files_are_all_there():
    assert len(BAD_FILES) == 28


def test_empty_lines_are_no_rows(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfid,text\r\n\r\n1,a\r\n\r\n2,b\r\n\r\n")
    rows = list(local_rows(tmp_path / "x.csv"))
    assert [(row.values["id"], row.place) for row in rows] == [
        ("1", "x.csv, row 0"),
        ("2", "x.csv, row 1"),
    ]
    (tmp_path / "old.csv").write_bytes(b"id,text\r1,a\r2,b")
    assert [row.values["text"] for row in local_rows(tmp_path / "old.csv")] == ["a", "b"]


def test_columns_of_one_name_in_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet has two columns of one name"):
        list(local_rows(tmp_path / "x.parquet"))


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.csv", "x.parquet"])
def test_rows_are_read_as_they_are_asked_for(tmp_path, name):
    rows = [{"id": str(i), "text": f"{i}"} for i in range(3000)]
    content = {"x.jsonl": lines, "x.jsonl.gz": lines, "x.csv": table, "x.parquet": parquet}
    whole = content[name](rows)
    (tmp_path / name).write_bytes(gzip.compress(whole) if name.endswith(".gz") else whole)
    read = local_rows(tmp_path / name)
    assert next(iter(read)).values == rows[0]
    assert (read.count, read.whole) == (1, False)
    assert read.notes == ("only the first 1 rows were read: they fill the limit",)
    again = local_rows(tmp_path / name)
    assert [row.values for row in again] == rows
    assert (again.count, again.whole, again.notes) == (3000, True, ())


def test_a_file_whose_name_is_no_text(tmp_path):
    (tmp_path / "\udcff.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"name is no UTF-8 \('\\udcff\.jsonl'\): rename it"):
        local_rows(tmp_path)


def test_a_path_that_cannot_be(tmp_path):
    for path in ("x" * 5000, "a\0b", "~nobody-is-called-so/x"):
        with pytest.raises(DataError, match=r"does not exist: check the path"):
            local_rows(path)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist: check the path"):
        local_rows(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no file of a known format \(\.jsonl"):
        local_rows(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"1")
    with pytest.raises(DataError, match="holds no file of a known format"):
        local_rows(tmp_path)


VALUES = {
    "id": 3,
    "text": "t",
    "list": ["a", "b"],
    "object": {"x": "y"},
    "none": None,
    "true": True,
}
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]


def test_columns_of_the_right_type():
    row = Row(VALUES | {"turns": TURNS}, "f.json", "f.json, row 7")
    assert row.text("text") == "t"
    assert row.texts("list") == row.texts("list", 2) == ("a", "b")
    assert row.identifier("id") == "3"
    assert row.identifier("text") == "t"
    assert row.inner("object").text("x") == "y"
    assert row.messages("turns") == (Message("user", "hi"), Message("assistant", ""))


BAD_COLUMNS = [
    (
        lambda r: r.text("absent"),
        "column 'absent' is missing at f:7 (columns there: id, text, list, ",
    ),
    (lambda r: r.text("id"), "column 'id' must hold a string, not int 3, at f:7"),
    (lambda r: r.text("none"), "column 'none' must hold a string, not NoneType None"),
    (lambda r: r.texts("text"), "column 'text' must hold a list of strings, not str 't'"),
    (
        lambda r: r.texts("list", 3),
        "column 'list' must hold a list of 3 strings, not list ['a', 'b']",
    ),
    (
        lambda r: r.identifier("true"),
        "must hold an integer or a string that is not empty, not bool",
    ),
    (lambda r: r.identifier("none"), "must hold an integer or a string that is not empty"),
    (lambda r: r.inner("text"), "column 'text' must hold an object, not str"),
    (
        lambda r: r.inner("object").text("z"),
        "column 'z' is missing at f:7, 'object' (columns there: x)",
    ),
    (lambda r: r.inners("list"), "column 'list' must hold a list of one or more objects"),
    (lambda r: r.messages("object"), "column 'object' must hold a list of one or more objects"),
    (
        lambda r: Row({"m": []}, "f", "f:7").messages("m"),
        "a list of one or more objects, not list []",
    ),
    (
        lambda r: Row({"m": [{"role": "gpt", "content": ""}]}, "f", "f:7").messages("m"),
        "role 'gpt' is unknown at f:7, 'm' 0: rename it to one of system, user, assistant",
    ),
    (
        lambda r: Row({"m": [{"role": "user"}]}, "f", "f:7").messages("m"),
        "column 'content' is missing at f:7, 'm' 0 (columns there: role)",
    ),
]


@pytest.mark.parametrize(("read", "message"), BAD_COLUMNS)
def test_columns_missing_or_of_the_wrong_type(read, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read(Row(VALUES, "f", "f:7"))


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(DataError) as caught:
        Row({"a": ["x" * 5000]}, "f", "f:1").text("a")
    assert len(str(caught.value)) < 250


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A zip as GitHub serves it, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "made" / "repo-abc" / "data").mkdir(parents=True)
    (tmp_path / "made" / "repo-abc" / "data" / "x.json").write_text("[]")
    shutil.make_archive(str(tmp_path / "repo"), "zip", tmp_path / "made")
    return tmp_path / "repo.zip"


def test_an_archive_is_fetched_once(tmp_path, archive):
    folder = github_folder("owner/repo", "abc", archive.as_uri())
    assert folder == tmp_path / "cache" / "rmexp" / "owner--repo-abc"
    assert (folder / "data" / "x.json").read_text() == "[]"
    archive.unlink()
    assert github_folder("owner/repo", "abc", archive.as_uri()) == folder
    assert sorted(path.name for path in folder.parent.iterdir() if path.suffix != ".lock") == [
        "owner--repo-abc"
    ]


def test_an_archive_is_fetched_once_by_many(archive, monkeypatch):
    import urllib.request

    opened = []
    original = urllib.request.urlopen
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda *args, **kw: opened.append(1) or original(*args, **kw)
    )
    url = archive.as_uri()
    threads = [threading.Thread(target=github_folder, args=("o/r", "abc", url)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1


@pytest.mark.parametrize("content", [None, b"no zip", "cut"])
def test_an_archive_that_fails_leaves_nothing_behind(tmp_path, archive, content):
    whole = archive.read_bytes()
    if content is None:
        archive.unlink()
    else:
        archive.write_bytes(whole[:-30] if content == "cut" else content)
    with pytest.raises(DataError, match=r"could not be downloaded.*git clone .*set bench\.path"):
        github_folder("owner/repo", "abc", archive.as_uri())
    left = [path for path in (tmp_path / "cache" / "rmexp").iterdir() if path.suffix != ".lock"]
    assert left == []
    archive.write_bytes(whole)
    assert github_folder("owner/repo", "abc", archive.as_uri()).is_dir()


def test_a_cache_that_cannot_be_made(tmp_path, archive, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be made .*set XDG_CACHE_HOME"):
        github_folder("owner/repo", "abc", archive.as_uri())


def test_rows_of_the_hub(monkeypatch):
    import datasets

    asked = []

    def load(name, split, revision):
        asked.append((name, split, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = list(hub_rows("owner/set", "test", "v1"))
    assert asked == [("owner/set", "test", "v1")]
    assert [row.values for row in rows] == ROWS
    assert (rows[1].file, rows[1].place) == ("", "owner/set (test), row 1")


def test_a_hub_data_set_that_cannot_be_loaded(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match=r"owner/nothing, split 'test', could not .*check the name"):
        hub_rows("owner/nothing", "test")


def test_importing_is_cheap():
    modules = ["data.sources", "benchmarks.rewardbench", "benchmarks.rmbench", "benchmarks.rmb"]
    heavy = {"torch", "transformers", "datasets", "pandas", "matplotlib", "pyarrow", "mlflow"}
    code = (
        f"import sys\n"
        f"{''.join(f'import rmexp.{name}{chr(10)}' for name in modules)}"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("value", ["a\nb", "a\u2028b", "x" * 1001])
def test_what_names_something_is_one_line(value):
    row = Row({"id": value, "\ud83d": 1, "a\nb": 2}, "f", "f:7")
    for read in (row.identifier, row.label):
        with pytest.raises(DataError, match=r"'id' must hold one line of up to 1000 characters"):
            read("id")
    assert row.columns == r"id, '\ud83d', 'a\nb'"
