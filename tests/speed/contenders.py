"""The contenders, each in a process of its own: what it takes, as JSON on the last line.

`python contenders.py NAME FILE`, where FILE holds the arguments. Loading the model and the
libraries is never timed, on either side; what else is left out stands with each contender.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sample import PEER_BATCH, peer_order

from rmexp.schema import Dataset, Example, Message
from rmexp.scoring.columns import Column
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings

BATCH, LENGTH = 4, 1024  # pairs a step and tokens a response, in training


class Loaded(Column):
    """A column whose weights are in memory already."""

    forward: Any

    def load(self, pad: int | None) -> Any:
        """Return what was loaded."""
        return type(self).forward


def score_ours(model: str, dtype: str, parts: list[list[Example]]) -> dict[str, float]:
    """Score each part after the one before, from an empty score store on.

    Encoding, batches, and writing to the store are timed; the self-check, three responses however
    many there are, is not.
    """
    reward = open_reward(path=model, dtype=dtype, device="cpu")
    column = reward.columns[0]
    Loaded.forward = column.load(reward.chat.tokenizer.pad_token_id)
    warm = reward.chat.encode([((Message("user", "Hello " * 50),), "Hello.")])
    Loaded.forward([row for row in warm if row is not None])
    fields = {name: getattr(column, name) for name in Column.__dataclass_fields__}
    reward = replace(reward, columns=(Loaded(**fields),))
    found: dict[str, float] = {"run": 0, "tokens": 0}
    with tempfile.TemporaryDirectory() as store:
        for number, examples in enumerate(parts):
            began = time.perf_counter()
            reward.chat.encode(
                list(dict.fromkeys((e.prompt, text) for e in examples for text in e.responses))
            )
            encoding = time.perf_counter() - began
            found |= {f"seconds{number}": encoding, f"computed{number}": 0}
            if examples:
                counts = reward.score(Dataset(tuple(examples), ""), Settings(Path(store))).counts
                found[f"seconds{number}"] += counts["seconds"]
                found[f"computed{number}"] = counts["unique"] - counts["cached"]
                found["run"] += counts["tokens_run"]
                found["tokens"] += counts["tokens"]
    return found


def score_pipeline(model: str, dtype: str, parts: list[list[Example]]) -> dict[str, float]:
    """Score as RewardBench's and RMB's scripts do, with transformers' pipeline."""
    from transformers import pipeline

    pipe = pipeline("text-classification", model=model, dtype=getattr(torch, dtype), device="cpu")
    options: dict[str, Any] = {
        "batch_size": PEER_BATCH,
        "function_to_apply": "none",
        "truncation": True,
        "padding": True,
    }
    pipe(["Hello " * 50], **options)
    found = {}
    for number, examples in enumerate(parts):
        began = time.perf_counter()
        texts = [
            pipe.tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in prompt]
                + [{"role": "assistant", "content": response}],
                tokenize=False,
            )
            for prompt, response in peer_order(examples)
        ]
        scores = pipe(texts, **options) if texts else []
        assert len(scores) == len(texts)
        found[f"seconds{number}"] = time.perf_counter() - began
    return found


def compare(model: str, examples: list[Example]) -> dict[str, float]:
    """Return the largest difference between our fp32 scores and transformers', one at a time."""
    from transformers import AutoModelForSequenceClassification

    reward = open_reward(path=model, dtype="float32", device="cpu")
    with tempfile.TemporaryDirectory() as store:
        scored = reward.score(Dataset(tuple(examples), ""), Settings(Path(store))).scored
    ours = [value for row in scored for value in row.chosen + row.rejected]
    plain = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    rows = reward.chat.encode([(e.prompt, text) for e in examples for text in e.responses])
    with torch.inference_mode():
        theirs = [
            float(plain.score(plain.model(torch.tensor([row.ids])).last_hidden_state[0, -1]))
            for row in rows
            if row is not None
        ]
    delta = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    return {"max_delta": delta, "responses": len(theirs)}


def train_ours(model: str, dtype: str, objective: str, examples: list[Example]) -> dict[str, float]:
    """Train on the pairs, four a step; a reference's log-probabilities are there already."""
    import warnings

    from lightning import Trainer

    from rmexp.training.batches import Batches
    from rmexp.training.encoded import encode_pairs
    from rmexp.training.module import PreferenceModule
    from rmexp.training.objectives import DPO, BradleyTerry
    from rmexp.training.recipe import Recipe
    from rmexp.training.references import with_references
    from rmexp.training.start import Start, build_model

    warnings.filterwarnings("ignore")
    kind = {"bt": BradleyTerry, "dpo": DPO}[objective]()
    reward = open_reward(path=model, dtype=dtype, max_length=LENGTH, device="cpu")
    start = Start(reward, model, dtype)
    pairs = encode_pairs(reward.chat, examples, "left_truncate").pairs
    found: dict[str, float] = {}
    if objective == "dpo":
        with tempfile.TemporaryDirectory() as store:
            began = time.perf_counter()
            pairs = with_references(pairs, start.reference, Settings(Path(store)), None)
            found["reference"] = time.perf_counter() - began
    module = PreferenceModule(
        build_model(start, kind, Recipe(batch_size=BATCH, learning_rate=1e-5)),
        kind,
        steps=len(examples) // BATCH,
        learning_rate=1e-5,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Batches(pairs, BATCH))
    return found | {"seconds0": module.last_metrics()["train/seconds"]}


def train_trl(model: str, dtype: str, objective: str, examples: list[Example]) -> dict[str, float]:
    """Train on the pairs with TRL, four a step, its clock and its defaults but for what is named.

    Named is what must be equal: dtype, no recomputation of activations, no bf16 autocast.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    rows = [
        {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in example.prompt],
            "chosen": [{"role": "assistant", "content": example.chosen[0]}],
            "rejected": [{"role": "assistant", "content": example.rejected[0]}],
        }
        for example in examples
    ]
    make, config = {"bt": (RewardTrainer, RewardConfig), "dpo": (DPOTrainer, DPOConfig)}[objective]
    with tempfile.TemporaryDirectory() as folder:
        arguments = config(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_length=LENGTH,
            num_train_epochs=1,
            learning_rate=1e-5,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            model_init_kwargs={"dtype": dtype},
        )
        trainer = make(model=model, args=arguments, train_dataset=Dataset.from_list(rows))
        metrics = trainer.train().metrics
    return {"seconds0": metrics["train_runtime"]}


def matrix_rate(dtype: str, size: int = 4096) -> dict[str, float]:
    """Return the FLOP/s of a product of square matrices, the best of five."""
    one = torch.randn(size, size).to(getattr(torch, dtype))
    best = min(_timed(lambda: one @ one) for _ in range(5))
    return {"rate": 2 * size**3 / best}


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


CONTENDERS: dict[str, Callable[..., dict[str, float]]] = {
    "score_ours": score_ours,
    "score_pipeline": score_pipeline,
    "compare": compare,
    "train_ours": train_ours,
    "train_trl": train_trl,
    "matrix_rate": matrix_rate,
}


def to_json(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return the examples as what `from_json` reads."""
    return [
        {
            "id": e.id,
            "prompt": [[turn.role, turn.content] for turn in e.prompt],
            "chosen": e.chosen,
            "rejected": e.rejected,
        }
        for e in examples
    ]


def from_json(rows: Sequence[dict[str, Any]]) -> list[Example]:
    """Return the examples of JSON rows."""
    return [
        Example(
            row["id"],
            "",
            tuple(Message(role, content) for role, content in row["prompt"]),
            tuple(row["chosen"]),
            tuple(row["rejected"]),
        )
        for row in rows
    ]


def main(name: str, file: str) -> None:
    """Run one contender and print what it took.

    With the process's peak memory in GiB, and its CPU seconds, loading included: on a machine that
    does other work they say more than the clock.
    """
    given = json.loads(Path(file).read_text())
    if "parts" in given:
        given["parts"] = [from_json(part) for part in given["parts"]]
    if "examples" in given:
        given["examples"] = from_json(given["examples"])
    found = partial(CONTENDERS[name], **given)()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**found, "memory": peak, "cpu": time.process_time()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
