"""Whatever stands in a file or is typed: a DataError or ConfigError with its place, or none."""

import csv
import gzip
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf, open_dict
from scored_rows import reward_all
from tiny import tiny_policy

from rmexp.benchmarks import open_benchmark
from rmexp.benchmarks.toy import Toy
from rmexp.cli import mistakes
from rmexp.cli.configs import check_early, resolve
from rmexp.correlation.tables import read_table
from rmexp.data.formats import read_rows
from rmexp.errors import ConfigError, DataError, RmexpError, ScoreError
from rmexp.files import CONF
from rmexp.scoring.recorded import RecordedReward
from rmexp.training.data import PreferencePairs, RecordedPairs

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis, of the extra dev")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402


def examples(count: int) -> settings:
    """So many examples, the same in every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # what fails is short
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def few_and_many(few: int, many: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with a few examples, and with many under the marker `real`."""

    def both(test: Callable[..., None]) -> Callable[..., None]:
        sizes = [few, pytest.param(many, marks=[pytest.mark.real])]
        return pytest.mark.timeout(3600)(pytest.mark.parametrize("count", sizes)(test))

    return both


# Texts that begin like something, beside any text.
MEANT = (
    "", " ", "\n", "\x00", "\ud800", "\u2028", "=1+1", "[", "null", "nan", "-1", "1e999", "id", "A",
    "\n\nHuman: a\n\nAssistant: b", "\n\nHuman:", "\n\nAssistant: b", "a\n<extra_id_1>User\nb",
    '[{"role": "user", "content": "a"}]', '[{"role": 1}]', "[{'role': 'user'", "[{'role': open}]",
    '[{"role": "user", "role": "user"}]', "tied:1", "ref:", "A>B", "model_a", "chosen",
    "Pairwise_set/Helpfulness/Chat/x", "x" * 2000,
)  # fmt: skip
TEXTS = st.one_of(st.sampled_from(MEANT), st.text(max_size=8))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**400, -(2**63), 2**63]),
    st.floats(),
    TEXTS,
)
NAMES = st.one_of(
    st.sampled_from(("id", "prompt", "chosen", "rejected", "role", "content", "system", "score")),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)

TURN = {"role": "user", "content": "a?"}
PAIR = {"id": "1", "prompt": "a?", "chosen": "yes", "rejected": "no"}
LISTS = {"id": "2", "prompt": [TURN], "chosen": ["yes", "si"], "rejected": ["no"], "system": "Be"}
DIALOGUE = {
    "chosen": "\n\nHuman: a?\n\nAssistant: yes",
    "rejected": "\n\nHuman: a?\n\nAssistant: no",
}
ANSWERS = {"prompt": "a?", "answers": [{"answer": "x", "rank": 1}, {"answer": "y", "rank": 2}]}
RATED = [{"prompt": "a?", "response": text, "rating": at} for at, text in enumerate("xy")]
RANKING = {"prompt": "a?", "subset": "s"} | {
    f"{name}_{i}": value
    for i in (1, 2, 3)
    for name, value in (("response", f"r{i}"), ("reward", i))
}
GPT = "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl"


class Case(NamedTuple):
    """What reads a file, rows that it can read, and the file's name where it has a meaning."""

    read: Callable[[str], Any]
    rows: list[dict[str, Any]]
    stem: str = "data"


def bench(name: str, **options: object) -> Callable[[str], Any]:
    """Load a benchmark, and aggregate what came."""

    def read(path: str) -> object:
        benchmark = open_benchmark(name, path=path, **options)
        data = benchmark.load()
        return benchmark.metrics(reward_all(data, lambda example, text: float(len(text))))

    return read


CASES: Mapping[str, Case] = {
    "pairs": Case(bench("preference"), [PAIR, LISTS]),
    "pairs kept": Case(bench("preference", on_bad_row="keep", subset_column="id"), [PAIR, LISTS]),
    "training pairs": Case(
        lambda path: PreferencePairs(path=path).load(), [PAIR | {"id": "p"}, DIALOGUE]
    ),
    "training answers": Case(lambda path: PreferencePairs(path=path).load(), [ANSWERS, *RATED]),
    "training rankings": Case(lambda path: RecordedPairs(path=path).load(), [RANKING]),
    "bon100": Case(bench("bon100"), [RANKING, RANKING | {"id": "3", "prompt": "b?"}]),
    "teacher": Case(
        bench("teacher"),
        [
            {"prompt": "a?", "responses": ["x", "y"], "gold": [1.0, 0.0]},
            {"prompt": "b?", "responses": ["x", "y"], "gold": [0.5, 1.0], "id": "4", "subset": "s"},
        ],
    ),
    "rewardbench": Case(
        bench("rewardbench"),
        [PAIR | {"subset": "llmbar-natural"}, PAIR | {"id": 2, "subset": "alpacaeval-easy"}],
    ),
    "rewardbench2": Case(
        bench("rewardbench2"),
        [
            {"id": "5", "subset": "Math", "prompt": "a?", "chosen": ["x"], "rejected": ["y", "z"]},
            {"id": "tied:1", "subset": "Ties", "prompt": "a?", "chosen": ["x"], "rejected": ["y"]},
            {"id": "ref:1", "subset": "Ties", "prompt": "a?", "chosen": ["x"], "rejected": ["y"]},
        ],
    ),
    "rmbench": Case(
        bench("rmbench"),
        [{"id": 1, "prompt": "a?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}],
        "chat_filtered",
    ),
    "rmb": Case(
        bench("rmb"),
        [
            {
                "pair_uid": "1",
                "conversation_input": [TURN],
                "chosen": {"answer": "4"},
                "reject": {"answer": "5"},
                "category_path": "Pairwise_set/Helpfulness/Chat/Discussion",
            },
            {
                "bon_uid": "2",
                "conversation_input": [TURN],
                "bon_best": {"answer": "4"},
                "loser_list": [{"answer": "5"}, {"answer": "6"}],
                "category_path": "BoN_set/Harmlessness/S1",
            },
        ],
    ),
    "judgebench": Case(
        bench("judgebench"),
        [
            {
                "pair_id": "1",
                "source": "mmlu-pro-law",
                "question": "a?",
                "response_model": "gpt-4o-2024-05-13",
                "response_A": "x",
                "response_B": "y",
                "label": "A>B",
            }
        ],
        GPT,
    ),
    "rewardmath": Case(
        bench("rewardmath"),
        [
            {
                "problem": "1 + 1?",
                "eval_solution": ["Let x be 1.", f"So x = {at}."],
                "solution_type": "rejected" if at else "chosen",
                "subject": "Algebra",
                "problem_id": 1,
                "id": at,
            }
            for at in range(3)
        ],
    ),
    "ppe_preference": Case(
        bench("ppe_preference"),
        [
            {
                "question_id": "1",
                "winner": "model_a",
                "prompt": "a?",
                "response_1": "x",
                "response_2": "y",
                "language": "English",
                "is_code": True,
            }
        ],
    ),
    "ppe_correctness": Case(
        bench("ppe_correctness"),
        [
            {
                "question_id": "1",
                "prompt": "a?",
                "response_1": "x",
                "response_2": "y",
                "scores": [True, False],
                "sampled_conflict_pairs": [[0, 1]],
            }
        ],
        "mmlu_pro",
    ),
    "table": Case(
        lambda path: read_table(path=path),
        [{"rm": "a", "task": "t", "score": "1", "base_score": "0", "n": "3", "group": "g"}],
    ),
}  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, rows: list[dict[str, Any]]) -> list[Any]:
    """Rows of which some values, keys or whole rows are others, or gone, or there twice."""
    made: list[Any] = json.loads(json.dumps(rows))
    for _ in range(draw(st.integers(1, 3))):
        spots = list(places(made))
        if not spots:
            break
        inside, at = draw(st.sampled_from(spots))
        kind = draw(st.sampled_from(("replace", "replace", "remove", "add", "copy")))
        if kind == "replace":
            inside[at] = draw(VALUES)
        elif kind == "remove":
            del inside[at]
        elif isinstance(inside, dict):
            inside[draw(NAMES)] = inside[at] if kind == "copy" else draw(VALUES)
        else:
            inside.append(inside[at] if kind == "copy" else draw(VALUES))
    return made


def places(value: Any) -> "list[tuple[Any, Any]]":
    """Return every key and every index in a tree, each with what it is in."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def write(folder: Path, stem: str, form: str, rows: list[Any]) -> Path:
    """Write rows in one of the forms; where it cannot hold them, as JSON lines."""
    if form == "parquet":
        import pyarrow
        import pyarrow.parquet

        path = folder / f"{stem}.parquet"
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        except (TypeError, ValueError, OverflowError, AttributeError, pyarrow.ArrowException):
            return write(folder, stem, "jsonl", rows)
        return path
    path = folder / f"{stem}.{form}"
    if form == "csv":
        flat = [row for row in rows if isinstance(row, dict)]
        header = list(dict.fromkeys(key for row in flat for key in row))
        with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(header)
            for row in flat:
                values = (row.get(key) for key in header)
                lines.writerow(v if isinstance(v, str) else json.dumps(v) for v in values)
        return path
    text = json.dumps(rows) if form == "json" else "".join(json.dumps(row) + "\n" for row in rows)
    if form == "jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def check(read: Callable[[str], object], path: Path) -> None:
    """Read the file: it can be, or is refused in one line that names it."""
    try:
        read(str(path))
    except (ConfigError, DataError, ScoreError) as error:
        said = refused(error)
        assert path.name.partition(".")[0] in said or str(path.parent) in said, said


def refused(error: RmexpError) -> str:
    """Return what an error says, which is one line."""
    said = str(error)
    assert "\n" not in said, said
    return said


def forms(case: str) -> "st.SearchStrategy[str]":
    every = ("jsonl", "jsonl", "json", "csv", "parquet", "jsonl.gz")
    return st.just("csv") if case == "table" else st.sampled_from(every)


@few_and_many(40, 2000)
@pytest.mark.parametrize("case", CASES)
def test_rows_that_are_others(case: str, count: int, tmp_path: Path) -> None:
    read, rows, stem = CASES[case]
    read(str(write(tmp_path, stem, "csv" if case == "table" else "jsonl", rows)))

    @examples(count)
    @given(changed(rows), forms(case))
    def run(made: list[Any], form: str) -> None:
        check(read, write(tmp_path, stem, form, made))

    run()


@few_and_many(40, 2000)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".csv.gz"])
def test_bytes_that_are_no_such_file(suffix: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    good = write(tmp_path, "good", suffix.removesuffix(".gz")[1:], [PAIR]).read_bytes()

    @examples(count)
    @given(st.one_of(st.binary(max_size=60), spoilt(good), st.text(max_size=30)))
    def run(made: bytes | str) -> None:
        content = made if isinstance(made, bytes) else made.encode("utf-8", "surrogatepass")
        packed = suffix.endswith(".gz") and isinstance(made, str)
        path.write_bytes(gzip.compress(content) if packed else content)
        check(lambda name: list(read_rows(Path(name), path.name)), path)

    run()


@st.composite
def spoilt(draw: st.DrawFn, good: bytes) -> bytes:
    """A file of which a piece is another, or that ends too soon."""
    at = draw(st.integers(0, len(good)))
    return good[:at] + draw(st.binary(max_size=4)) + good[at + draw(st.integers(0, 200)) :]


@few_and_many(40, 2000)
def test_recorded_rewards_that_are_others(count: int, tmp_path: Path) -> None:
    data = Toy(limit=1).load()
    rows = [{"id": e.id, "chosen": [1, 1, 1], "rejected": [0, 0, 0]} for e in data.examples]

    @examples(count)
    @given(changed(rows))
    def run(made: list[Any]) -> None:
        path = write(tmp_path, "scores", "jsonl", made)
        check(lambda name: RecordedReward(name).lookup(data.examples), path)

    run()


# What may follow a setting's name: plain values, and such as mean something to Hydra.
WORDS = r"""
null true false 0 1 -1 2 0.5 1e999 nan inf '' [] {} [1] [a,b] {a:1} {path:nowhere} {train:nowhere}
x.jsonl auto error skip bt toy [toy] [{name:toy}] [{limit:1}] [null] [[]] ??? '${seed}' '${nowhere}'
'${seed' '${oc.env:NOWHERE}' ä ~ [RUN,RUN] a/b cpu bf16-true {_target_:os.getcwd}
"""
TYPED = st.one_of(
    st.sampled_from(WORDS.split()),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=6).map(lambda text: "'" + text.replace("\\", "").replace("'", "") + "'"),
)
COMMANDS = {
    "eval_rm": ("rmexp.cli.eval_rm", "evaluate"),
    "train_rm": ("rmexp.cli.train_rm", "train"),
    "correlate": ("rmexp.cli.correlate", "correlate"),
    "score_rm": ("rmexp.cli.score_rm", "score"),
    "leaderboard": ("rmexp.cli.leaderboard", "prepare"),
}


def prepare(command: str, words: list[str], out_dir: Path) -> None:
    """Do what a command does before its run is opened."""
    module, name = COMMANDS[command]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, words, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        mistakes.refuse_unknown(config, words)
        resolved = resolve(config)
        check_early(resolved)
        getattr(import_module(module), name)(resolved, out_dir)


@few_and_many(5, 300)
@pytest.mark.parametrize("command", COMMANDS)
def test_settings_that_are_others(
    command: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"{command}.py"])
    policy = tiny_policy(tmp_path / "policy")
    common = [f"tracking.uri=sqlite:///{tmp_path}/t.db", f"store_dir={tmp_path}/s"]
    if command not in ("correlate", "leaderboard"):
        common.append(f"model.path={policy}")
    if command == "score_rm":
        common += [f"data.path={write(tmp_path, 'rows', 'jsonl', [PAIR])}", f"out={tmp_path}/out"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose(command, common), resolve=False)
    names = sorted(set(leaves(plain)) - {"trainer._partial_"})  # which is Hydra's own

    @examples(count)
    @given(st.lists(st.tuples(st.sampled_from(names), TYPED), min_size=1, max_size=2))
    def run(changes: list[tuple[str, str]]) -> None:
        words = [*common, *(f"{name}={value}" for name, value in changes)]
        try:
            prepare(command, words, tmp_path)
        except InstantiationException as error:
            pytest.fail(f"{words}: {error}")
        except HydraException:  # of what cannot be composed, which Hydra says itself
            return
        except RmexpError:  # which is printed as one line
            return
        finally:
            HydraConfig.instance().cfg = None

    if command != "leaderboard":  # which finds no evaluation here
        prepare(command, common, tmp_path)
    run()


def leaves(values: Any, prefix: str = "") -> "list[str]":
    """Return the names of all settings, those of groups left out."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += leaves(value, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found
