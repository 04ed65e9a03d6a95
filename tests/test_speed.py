"""The arithmetic and the sampling of `make bench`, and `make gpu` in tiny shapes, on the CPU."""

import ast
import json
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from scored_rows import write_json, write_lines
from tiny import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent / "speed"))
import bench
import gpu
from contenders import from_json, to_json
from growth import draw, examples, linear, points
from rows import score_here, write_pairs
from sample import Line, faster, padded_tokens, peer_order, share_of_rate, table, whole_prompts
from startup import TYPED, first_line

from rmexp.schema import Example, Message


def example(id: str, prompt: str, chosen: str, rejected: str) -> Example:
    return Example(
        id, "", (Message("user", prompt),), tuple(chosen.split()), tuple(rejected.split())
    )


PAIRS = [
    example("p0", "one", "a", "b"),
    example("p1", "two", "a", "c"),
    example("p2", "one", "c", "b"),
]
LISTS = [example("l0", "one", "a", "b c d"), example("l1", "three", "a", "b")]


def length(prompt: tuple[Message, ...], response: str) -> int:
    return 10 if prompt[0].content == "one" else 100


def test_peers_score_all_chosen_and_then_all_rejected() -> None:
    texts = [(prompt[0].content, response) for prompt, response in peer_order(PAIRS)]
    assert texts == [
        ("one", "a"), ("two", "a"), ("one", "c"), ("one", "b"), ("two", "c"), ("one", "b")
    ]  # fmt: skip


def test_padding_by_hand() -> None:
    """Batches of 2: (3, 5) run 10 tokens, (4, 4) run 8, and 7 is alone."""
    assert padded_tokens([3, 5, 4, 4, 7], 2) == 25
    assert padded_tokens([3, 5, 4, 4, 7]) == 35


def test_prompts_are_drawn_with_all_that_asks_about_them() -> None:
    """The pairs about "one" run 4 * 10 tokens, the list 4 * 10; the other prompts 2 * 100 each."""
    for seed in range(9):
        pairs, lists = whole_prompts([PAIRS, LISTS], length, 290, seed)
        drawn = {e.prompt[0].content for e in (*pairs, *lists)}
        assert [e.id for e in pairs] == [e.id for e in PAIRS if e.prompt[0].content in drawn]
        assert [e.id for e in lists] == [e.id for e in LISTS if e.prompt[0].content in drawn]
        assert sum({"one": 80, "two": 200, "three": 200}[name] for name in drawn) <= 290
    assert whole_prompts([PAIRS, LISTS], length, 290, 0) == whole_prompts(
        [PAIRS, LISTS], length, 290, 0
    )
    assert any(whole_prompts([PAIRS, LISTS], length, 1, 0))


def test_padding_counts_among_the_tokens_drawn() -> None:
    """Both prompts together are one batch of the peers: 6 pairs' texts of up to 100 tokens."""
    for seed in range(9):
        assert whole_prompts([PAIRS], length, 600, seed) == [PAIRS]
        assert len(whole_prompts([PAIRS], length, 599, seed)[0]) < len(PAIRS)


def test_the_ratio_is_that_of_medians() -> None:
    line = Line("x", (2.0, 1.0, 9.0), (8.0, 6.0, 5.0), 3.5, 1200, 0.5, (1.0, 4.0))
    assert line.ratio == 3.0
    assert table([line]).splitlines()[-1] == (
        "| x | 2.0 (1.0 to 9.0) | 6.0 (5.0 to 8.0) | 3.00 | 3.50 | 1,200 | 50% | 1.0, 4.0 (0.25) |"
    )
    assert table([Line("y", (2.0,), (3.0,))]).endswith("| 1.50 |  |  |  |  |\n")


def test_training_is_in_bf16_where_the_processor_has_such_products() -> None:
    assert faster({"float32": 135e9, "bfloat16": 353e9}) == "bfloat16"
    assert faster({"float32": 60e9, "bfloat16": 2e9}) == "float32"


def test_share_of_the_matrix_rate() -> None:
    """1,000 tokens of 0.2 GFLOP in 4 s are 50 GFLOP/s of 100."""
    assert share_of_rate(1000, 0.2e9, 4.0, 100e9) == pytest.approx(0.5)


def test_examples_travel_as_json() -> None:
    assert from_json(to_json(LISTS)) == LISTS


def test_conversations_grow_by_one_measure_at_a_time() -> None:
    """Every point of an axis has what it says, and no text occurs twice."""
    texts: list[str] = []
    for point in points():
        made = examples(point, seed=0)
        assert len(made) == point.prompts
        for e in made:
            assert len(e.chosen) == point.responses
            texts += [e.prompt[0].content, *e.chosen]
    assert {len(text.split()) for text in texts} == {point.length for point in points()}
    assert len(set(texts)) == len(texts)


def test_a_line_explains_all_of_a_line_and_less_of_a_parabola() -> None:
    """Of 0, 1, 4 at 0, 1, 2: the line is -1/3 + 2 x, which leaves 2/3 of 26/3."""
    assert linear([1, 2, 3], [5, 7, 9]) == (3, 2, 1)
    assert linear([0, 1, 2], [0, 1, 4]) == pytest.approx((-1 / 3, 2, 1 - (2 / 3) / (26 / 3)))


def test_the_figure_has_a_panel_an_axis() -> None:
    seconds = [float(point.value) for point in points()]
    figure = draw({"one": seconds, "other": [2 * value for value in seconds]}, "a model, fp32")
    assert figure.get_suptitle() == "a model, fp32"
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "prompts", "responses to a prompt", "tokens of prompt and of response"
    ]  # fmt: skip


def test_every_script_of_the_benchmark_can_be_imported() -> None:
    assert callable(bench.main)
    assert callable(gpu.main)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """RMB's pairs and Auto-J's, some of each, in upstream's layouts."""

    def answer(text: str) -> dict[str, str]:
        return {"llm_name": "m", "answer": text}

    rows = [
        {
            "pair_uid": str(n),
            "conversation_input": [{"role": "user", "content": f"what is {n}?"}],
            "chosen": answer(f"{n} is the number behind {n - 1}"),
            "reject": answer("a number" * (1 + n % 3)),
        }
        for n in range(1, 9)
    ]
    for where, some in (("Chat/Discussion", rows[:5]), ("Reasoning/Critical Thinking", rows[5:])):
        place = f"Pairwise_set/Helpfulness/{where}"
        path = tmp_path / f"RMB_dataset/{place}.json"
        write_json(path, [{**one, "category_path": place} for one in some])
    pairs = [
        {
            "prompt": f"say {n}",
            "chosen": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": f"{n}, as you wish"},
            ],
            "rejected": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": "no" * (1 + n % 2)},
            ],
        }
        for n in range(6)
    ]
    write_lines(tmp_path / "preferences/auto_j.jsonl", pairs)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def test_the_measurement_of_a_gpu_runs_in_tiny_shapes(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rows, as they would be on a GPU: equal rewards, and DPO's first loss ln 2."""
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    file = data / "made" / "gpu.json"
    words = [str(data), "--tiny", "--tokenizer", str(data / "tokenizer"), "--json", str(file)]
    measured = gpu.main([*words, "--only", "llama-8b", "dpo", "bt"])
    ways = [(row.what, row.way.split(",")[0]) for row in measured.rows]
    three = ("pipeline", "unique", "rmexp")
    assert ways == [
        *(("score llama-8b", way) for way in three),
        ("train dpo", "rmexp"),
        ("train bt", "rmexp"),
    ]
    assert all(row.seconds > 0 and row.tokens_per_second > 0 for row in measured.rows)
    assert all((row.ratio is None) == (row.way == "rmexp") for row in measured.rows)
    (dpo,) = (row for row in measured.rows if row.what == "train dpo")
    assert dpo.note.endswith("first loss 0.6931")
    for row in measured.rows:
        if row.what.startswith("score") and row.way == "rmexp":
            assert row.note.startswith("16 responses, differs from sorted by ")
            assert float(row.note.split(" by ")[1].split("%")[0]) < 20  # of bf16
    kept = json.loads(file.read_text())
    assert len(kept["rows"]) == len(measured.rows)
    assert [line.split(":")[0] for line in kept["left_out"]] == ["TRL's DPO", "TRL's BT"]
    assert capsys.readouterr().out.count("score llama-8b") == 6  # as it came, and in the table


def test_a_part_that_would_end_too_late_does_not_begin(data: Path, tmp_path: Path) -> None:
    words = [str(data), "--tiny", "--tokenizer", str(data / "tokenizer"), "--minutes", "0.5"]
    measured = gpu.main([*words, "--json", str(tmp_path / "gpu.json")])
    assert not measured.rows
    assert len(measured.left_out) == len(gpu.PARTS)


def test_a_machine_without_gpu_or_tokenizer_is_told_so_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="this machine shows no GPU"):
        gpu.main([str(data)])
    with pytest.raises(SystemExit, match="give a folder with a tokenizer"):
        gpu.open_tokenizer(str(tmp_path / "none"), 100)


def test_the_measurement_of_a_gpu_needs_neither_mlflow_nor_hydra() -> None:
    """What it imports, and what that imports, as each module begins."""
    root = Path(__file__).parents[1]
    left, seen, outside = [Path(gpu.__file__)], set(), set()
    while left:
        path = left.pop()
        seen.add(path)
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
            elif isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            for name in names:
                inside = root / f"{name.replace('.', '/')}.py"
                if inside.exists() and inside not in seen:
                    left.append(inside)
                outside.add(name.split(".")[0])
    assert len(seen) > 20
    assert not outside & {"mlflow", "hydra", "omegaconf", "datasets", "gguf", "trl"}


def memory(name: str, how: str) -> tuple[float, float]:
    """Return the GiB of the states and of the activations, as docs/gpus.md says they are counted.

    A layer that is computed again holds 8 widths and 4 inner widths a token, in 16 bits.
    """
    shape = dict(gpu.SHAPES[name])
    layers, width, inner = (
        shape[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size")
    )
    with torch.device("meta"):
        config = AutoConfig.for_model(shape.pop("model_type"), **shape)
        model = AutoModelForCausalLM.from_config(config)
    count = sum(p.numel() for p in model.parameters())
    short = 2 if "bf16-true" in how else 4
    states: float = 4 * short * count
    if how.startswith("LoRA"):
        linears = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
        rank = 16
        states = 2 * count + 16 * rank * sum(m.in_features + m.out_features for m in linears)
    if "fsdp on" in how:
        states /= int(how.split("fsdp on ")[1].split()[0])
    tokens = 8 * 2 * 1024
    activations = tokens * (short * layers * width + 2 * (8 * width + 4 * inner))
    return states / 2**30, activations / 2**30


def test_the_table_of_memory_is_computed(project_root: Path) -> None:
    lines = (project_root / "docs" / "gpus.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [row for row in rows if row[0] in ("1B", "8B")]
    assert len(rows) == 7
    for size, how, *numbers in rows:
        states, activations = memory(f"llama-{size.lower()}", how)
        expected = [f"{n:.1f}" for n in (states, activations, states + activations)]
        assert numbers == expected, (size, how, expected)


def test_the_time_to_a_commands_first_line_is_measured() -> None:
    assert all(seconds > 0 for seconds in first_line("correlate.py polcy=none"))
    assert len({words.split()[0] for words in TYPED}) == 3


def test_pairs_are_repeated_with_changes_and_scored_with_a_constant(tmp_path: Path) -> None:
    pairs = [
        {"prompt": "1?", "chosen": "a", "rejected": "b"},
        {"prompt": "2?", "chosen": "c", "rejected": "d"},
    ]
    path = tmp_path / "rows.parquet"
    write_pairs(write_lines(tmp_path / "pairs.jsonl", pairs), path, 5)
    took = score_here(path, tmp_path / "out")
    assert took["rows a second"] > 0
    found = pyarrow.parquet.read_table(tmp_path / "out" / "data" / "part-00000.parquet")
    assert found["chosen"].to_pylist() == ["a (0)", "c (0)", "a (1)", "c (1)", "a (2)"]
    assert found["margin"].to_pylist() == [0.0] * 5
