import pytest

from rmexp.correlation.tables import Score, read_published, read_table, table
from rmexp.errors import ConfigError, DataError


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_users_table(tmp_path):
    path = written(
        tmp_path / "t.csv",
        "rm, task, score, base_score, n, group\r\nA,gsm8k,0.5,0.4,100,x\r\nB,gsm8k,0.6,-,,\r\n"
        '"C, the third",bbh,1e-1,,,\r\n',
    )
    found = read_table(path=path)
    assert found.rows == (
        Score("A", "gsm8k", 0.5, 0.4, 100, "x"),
        Score("B", "gsm8k", 0.6),
        Score("C, the third", "bbh", 0.1),
    )
    assert found.tasks == ("gsm8k", "bbh")
    assert found.source == path
    assert list(found.of("gsm8k")) == ["A", "B"]


def test_the_chosen_task_comes_first(tmp_path):
    path = written(tmp_path / "t.csv", "rm,task,score\nA,a,1\nA,b,2\nB,b,3\nA,c,4\n")
    found = read_table(path=path, tasks=["b", "a"])
    assert [(row.rm, row.task) for row in found.rows] == [("A", "b"), ("B", "b"), ("A", "a")]
    assert found.fingerprint() != read_table(path=path).fingerprint()
    with pytest.raises(ConfigError, match=r"has no task d: choose from a, b, c"):
        read_table(path=path, tasks=["d"])
    with pytest.raises(ConfigError, match=r"give a list, such as tasks=\[a\]"):
        read_table(path=path, tasks="a")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("rm,score\nA,1\n", DataError, r"has no column task \(it has rm, score\): add it"),
        ('rm,"a\nb"\nA,1\n', DataError, r"\(it has rm, 'a\\nb'\): add it"),
        ("", DataError, r"has no column rm, task, score \(it has none\)"),
        ("rm,task,score\n", DataError, "has no row: give one"),
        ("rm,task,score\nA,t,high\n", DataError, r"t\.csv:2 has 'high' where a number belongs"),
        ("rm,task,score\nA,t,nan\n", DataError, "has 'nan' where a number belongs"),
        ("rm,task,score\nA,t,\n", DataError, "has '' where a number belongs"),
        ("rm,task,score\n,t,1\n", DataError, r"t\.csv:2 has an empty cell where a name belongs"),
        ("rm,task,score\nA,t,1,5\n", DataError, r"t\.csv:2 has more cells than the first line"),
        ("rm,task,score\nA,t,1\nA,t,2\n", DataError, r"1 scores twice \(A on t\): keep one row"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        read_table(path=written(tmp_path / "t.csv", text))


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*No such file.*: give a CSV file"):
        read_table(path=str(tmp_path / "no.csv"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no CSV file"):
        read_table(path=str(tmp_path / "b.csv"))


def published(**more):
    options = {"file": "rewardbench2_ppo_bon.csv", "source": "s", "rm": "RM {id}"}
    return read_published(**{**options, "columns": {"rb2": "rbv2"}, **more})


def test_a_published_table():
    """Rows 1, 12 and 16 of RewardBench 2's table 8."""
    found = published(scale=0.01, group="group", base=54.1)
    assert len(found.rows) == 17
    rows = found.of("rb2")
    assert rows["RM 1"] == Score("RM 1", "rb2", 0.687, 0.541, None, "on_policy")
    assert rows["RM 12"].score == 0.061
    assert rows["RM 16"].group == "off_policy"


def test_a_published_base_row_is_no_rm_and_names_select():
    found = read_published(
        file="tulu25_dpo_policies.csv",
        source="s",
        rm="{source}",
        columns={"average": "average", "safety": "safety"},
        base="Tulu 2 13B SFT",
        names={"Nectar": "one", "HH-RLHF": "two"},
    )
    assert found.of("average") == {
        "one": Score("one", "average", 59.2, 56.8),
        "two": Score("two", "average", 58.1, 56.8),
    }
    assert found.of("safety")["two"].base_score == 91.8


def test_citations_fall_away_and_what_is_not_published_is_left_out():
    found = read_published(
        file="skywork_v2_seven_benchmarks.csv",
        source="s",
        rm="{model}",
        columns={"a": "rewardbench", "b": "rewardbench2"},
    )
    names = found.of("a")
    assert {"Eurus-RM-7b", "DeepSeek-GRM-27B (w/ MetaRM)", "J1-Llama-8B"} <= set(names)
    assert "J1-Llama-8B (Maj@32)" not in names  # "-"
    assert not any("20" in name.rpartition("(")[2] for name in names if "(" in name)
    assert len({row.rm for row in found.rows}) == len(names) == 42
    assert len(found.of("b")) == 34


def test_twice_is_named():
    rows = [Score("A", "t", 1.0), Score("A", "t", 1.0), Score("B", "t", 1.0)]
    with pytest.raises(DataError, match=r"^here has 1 scores twice \(A on t\)"):
        table(rows, "here", None)
