"""Measure scoring and training on a GPU against what the field uses: `make gpu DATA=FOLDER`.

FOLDER holds `RMB_dataset/` and `preferences/auto_j.jsonl`, in upstream's layouts. Weights are drawn
at random in the shapes of real models, and nothing is downloaded: torch, transformers, lightning
and the checkout are enough, and TRL is compared with where it is installed. What a way takes is
printed as soon as it is known, most telling first, and is in the JSON from then on. Loading, and
the libraries' first calls, are never timed.
"""

import argparse
import gc
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # without an installation
sys.path.insert(0, str(Path(__file__).parent))
import torch
import transformers
from lightning import Callback, Trainer
from sample import PEER_BATCH, peer_order, share_of_rate, whole_prompts
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rmexp.benchmarks.preference import Preference
from rmexp.benchmarks.rmb import RMB
from rmexp.files import cache_folder
from rmexp.models.backbone import enable_packing
from rmexp.models.chat import Chat
from rmexp.models.forward import logps_forward, scalar_forward
from rmexp.models.fused import fuse
from rmexp.models.loading import to_float
from rmexp.schema import Example, Message
from rmexp.scoring.computing import Request, compute
from rmexp.scoring.plan import padded, plan
from rmexp.scoring.store import ScoreStore, response_key
from rmexp.tables import markdown
from rmexp.training.batches import Batches
from rmexp.training.encoded import encode_pairs
from rmexp.training.module import PreferenceModule
from rmexp.training.objectives import DPO, BradleyTerry

Way = Callable[[], "Took"]

GIB = 2**30
H100 = 781e12  # FLOP/s of the card for which the samples are sized
SORTED_TOKENS = 16_384  # padded ones in a batch of the sorted way
PAIRS, LENGTH = 8, 1024  # pairs a step and tokens a response, in training
WARM, STEPS = 4, 14  # steps before the clock, and of all
TINY_TOKENS, TINY_WARM, TINY_STEPS = 2000, 1, 2
GROUPS = ["*/Helpfulness/Chat/*", "*/Helpfulness/Reasoning/*"]
_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "max_position_embeddings": 131_072,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-1b": _LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
    },
}
TRAINED = SHAPES["llama-1b"] | {"num_hidden_layers": 8}
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
# Padded tokens of the peers on an H100, and the seconds that a part is given.
PARTS: dict[str, tuple[int, float]] = {
    "llama-8b": (200_000, 100),
    "dpo": (0, 60),
    "bt": (0, 60),
    "llama-1b": (400_000, 70),
    "qwen3-0.6b": (400_000, 60),
}


@dataclass(frozen=True, slots=True)
class Took:
    """What one way took: seconds, tokens of the texts, tokens run with padding, memory in GiB."""

    seconds: float
    tokens: float
    run: float
    gib: float | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table; `ratio` is how many times faster rmexp is than this row's way."""

    what: str
    way: str
    seconds: float
    tokens_per_second: float
    share: float
    gib: float | None
    ratio: float | None = None
    note: str = ""


class Measured:
    """The rows so far: printed, and kept as JSON."""

    def __init__(self, machine: dict[str, Any], path: Path) -> None:
        self.machine, self.path = machine, path
        self.rows: list[Row] = []
        self.left_out: list[str] = []
        self.began = time.monotonic()
        self.write()

    def add(self, row: Row) -> None:
        """Print a row and keep it."""
        self.rows.append(row)
        memory = "" if row.gib is None else f", peak {row.gib:.1f} GiB"
        print(
            f"[{time.monotonic() - self.began:4.0f} s] {row.what}, {row.way}: {row.seconds:.3f} s, "
            f"{row.tokens_per_second:,.0f} tokens/s, {row.share:.0%} of the rate{memory}"
            f"{', ' + row.note if row.note else ''}",
            flush=True,
        )
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        """Say what is not measured, and why."""
        self.left_out.append(f"{what}: {why}")
        print(f"left out, {what}: {why}", flush=True)
        self.write()

    def write(self) -> None:
        """Write what is known so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            "machine": self.machine,
            "rows": [asdict(row) for row in self.rows],
            "left_out": self.left_out,
            "seconds": time.monotonic() - self.began,
        }
        self.path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    def table(self) -> str:
        """Return the rows as a Markdown table, with rmexp's ratio to each peer."""
        columns = (
            "what",
            "way",
            "seconds",
            "tokens/s",
            "of the rate",
            "peak GiB",
            "rmexp is faster by",
            "note",
        )
        cells = [
            (
                row.what,
                row.way,
                f"{row.seconds:.3f}",
                f"{row.tokens_per_second:,.0f}",
                f"{row.share:.0%}",
                "" if row.gib is None else f"{row.gib:.1f}",
                "" if row.ratio is None else f"{row.ratio:.2f}",
                row.note,
            )
            for row in self.rows
        ]
        return "\n".join(markdown(columns, cells))


class Machine:
    """A device with its clock, its memory, and the rate of its matrix product."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.cuda = device.startswith("cuda")
        self.rate = self._rate()

    def _rate(self) -> float:
        """Return the FLOP/s of a bf16 product of square matrices, the best of five."""
        size = 8192 if self.cuda else 64
        one = torch.randn(size, size, device=self.device, dtype=torch.bfloat16)
        seconds = []
        for _ in range(6):  # the first one warms up
            began = self.now()
            for _ in range(5):
                one @ one
            seconds.append((self.now() - began) / 5)
        return 2 * size**3 / min(seconds[1:])

    def now(self) -> float:
        """Return the seconds of a clock, when everything before has been done."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def clear(self) -> None:
        """Give memory back, and count its peak from here on."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | None:
        """Return the peak of the memory since `clear`, in GiB."""
        return torch.cuda.max_memory_allocated() / GIB if self.cuda else None

    def describe(self) -> dict[str, Any]:
        """Return what the numbers are of."""
        name = torch.cuda.get_device_name() if self.cuda else "CPU"
        return {
            "device": name,
            "bf16_tflops": self.rate / 1e12,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


class Scored:
    """One model and a sample of examples, scored in three ways."""

    def __init__(
        self, machine: Machine, shape: dict[str, Any], tokenizer: Any, examples: Sequence[Example]
    ) -> None:
        self.machine, self.tokenizer, self.examples = machine, tokenizer, list(examples)
        self.model = build(AutoModelForSequenceClassification, shape, tokenizer, machine.device)
        self.flop = flop_per_token(self.model)
        self.chat = Chat(tokenizer, LENGTH * 4)
        self.order = peer_order(self.examples)
        rows = [row for row in self.chat.encode(self.order) if row is not None]
        self.lengths = [len(row.ids) for row in rows]

    def pipeline(self) -> Took:
        """Score as RewardBench's scripts do: batches of 8 in the given order."""
        pipe = transformers.pipeline(
            "text-classification",
            model=self.model,
            tokenizer=self.tokenizer,
            device=self.machine.device,
        )
        options: dict[str, Any] = {
            "batch_size": PEER_BATCH,
            "function_to_apply": "none",
            "truncation": True,
            "padding": True,
            "max_length": self.chat.max_length,
        }
        pipe(["Hello " * 50] * PEER_BATCH, **options)
        self.machine.clear()
        began = self.machine.now()
        scores = pipe(self.texts(), **options)
        seconds = self.machine.now() - began
        batches = [
            self.lengths[at : at + PEER_BATCH] for at in range(0, len(self.lengths), PEER_BATCH)
        ]
        run = sum(len(batch) * max(batch) for batch in batches)
        return self.took(seconds, run, [score["score"] for score in scores])

    @torch.inference_mode()
    def sorted(self) -> Took:
        """Score each response once, sorted by length, in batches of so many padded tokens."""
        self.run_padded([[1, 2, 3]] * PEER_BATCH)
        self.machine.clear()
        began = self.machine.now()
        texts = self.texts()
        unique = list(dict.fromkeys(texts))
        made = self.tokenizer(unique, add_special_tokens=False)["input_ids"]
        rows = [ids[-self.chat.max_length :] for ids in made]
        values, run = [0.0] * len(rows), 0
        for batch in padded([len(row) for row in rows], SORTED_TOKENS):
            scores = self.run_padded([rows[at] for at in batch])
            run += len(batch) * len(rows[batch[0]])
            for at, score in zip(batch, scores, strict=True):
                values[at] = score
        by_text = dict(zip(unique, values, strict=True))
        seconds = self.machine.now() - began
        return self.took(seconds, run, [by_text[text] for text in texts])

    def rmexp(self) -> Took:
        """Score as this project does, from an empty store on: encoding, plan, store included."""
        pad = self.tokenizer.pad_token_id
        forward = scalar_forward(self.model, pad)
        warm = self.chat.encode([((Message("user", "Hello " * 50),), "Hello.")])
        forward([row for row in warm if row is not None])
        column: Any = SimpleNamespace(
            checkpoint=SimpleNamespace(name="random"),
            dtype="bfloat16",
            autocast=None,
            device=self.machine.device,
            device_map=None,
        )
        unique = list(dict.fromkeys(self.order))
        self.machine.clear()
        with tempfile.TemporaryDirectory() as folder:
            began = self.machine.now()
            encoded = [row for row in self.chat.encode(unique) if row is not None]
            rows = {response_key(row.ids): row for row in encoded}
            request = Request(column, rows, Path(folder), pad, None, 0, forward)
            with ScoreStore(Path(folder), {"weights": "random"}) as store:
                values, work = compute(request, store, 1)
            seconds = self.machine.now() - began
        by_text = {
            at: values[response_key(row.ids)] for at, row in zip(unique, encoded, strict=True)
        }
        return self.took(seconds, work.tokens_run, [by_text[at] for at in self.order])

    def texts(self) -> list[str]:
        """Return the conversations' texts, in the peers' order."""
        return [
            self.tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in prompt]
                + [{"role": "assistant", "content": response}],
                tokenize=False,
            )
            for prompt, response in self.order
        ]

    def run_padded(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Return the library's own rewards of a batch padded on the right."""
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        device = self.machine.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        scores: list[float] = logits[:, 0].float().tolist()
        return scores

    def took(self, seconds: float, run: float, values: Sequence[float]) -> Took:
        """Return what a way took, counting the peers' texts as they are."""
        return Took(seconds, sum(self.lengths), run, self.machine.peak(), tuple(values))


class Trained:
    """A model and pairs to train on, eight a step, in bf16-mixed: with rmexp and with TRL."""

    def __init__(
        self,
        machine: Machine,
        shape: dict[str, Any],
        tokenizer: Any,
        examples: Sequence[Example],
        warm: int,
        steps: int,
    ) -> None:
        self.machine, self.shape, self.tokenizer = machine, shape, tokenizer
        self.warm, self.steps = warm, steps
        chat = Chat(tokenizer, LENGTH)
        some = examples[: 4 * steps * PAIRS]  # of which those that are short enough are taken
        pairs = encode_pairs(chat, some, "drop", needs_place=True, skips=True).pairs
        self.pairs = pairs[: self.steps * PAIRS]
        if len(self.pairs) < self.steps * PAIRS:  # a small folder: its pairs again
            times = -(-self.steps * PAIRS // len(pairs))
            self.pairs = (pairs * times)[: self.steps * PAIRS]
        by_id = {example.id: example for example in examples}
        self.examples = [by_id[pair.id] for pair in self.pairs]
        timed = self.pairs[self.warm * PAIRS :]
        self.tokens = sum(len(row.ids) for pair in timed for row in (pair.chosen, pair.rejected))
        rows = [row for pair in timed for row in (pair.chosen, pair.rejected)]
        self.shared = sum(batch.tokens for batch in plan(rows, LENGTH * 2 * PAIRS, LENGTH))

    def model(self, objective: str) -> Any:
        """Return the model in fp32."""
        auto = {"bt": AutoModelForSequenceClassification, "dpo": AutoModelForCausalLM}[objective]
        return build(auto, self.shape, self.tokenizer, self.machine.device, torch.float32)

    def rmexp(self, objective: str) -> Took:
        """Train with this project's module and batches; references are computed before."""
        model = self.model(objective)
        enable_packing(model)
        fuse(model)
        pairs = self.pairs
        if objective == "dpo":
            rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
            forward = logps_forward(model, "bfloat16")
            logps = [0.0] * len(rows)
            for batch in plan(rows, 16_384, forward.packs):
                made = forward([rows[at] for at in batch.rows], batch.forks)
                for at, value in zip(batch.rows, made, strict=True):
                    logps[at] = value
            pairs = tuple(
                replace(pair, references=(logps[2 * at], logps[2 * at + 1]))
                for at, pair in enumerate(pairs)
            )
            del forward
        kind = {"bt": BradleyTerry, "dpo": DPO}[objective]()
        module = PreferenceModule(model.train(), kind, steps=self.steps, learning_rate=1e-6)
        clock = _LightningClock(self.machine, self.warm, self.steps)
        trainer = Trainer(
            accelerator="gpu" if self.machine.cuda else "cpu",
            devices=1,
            precision="bf16-mixed",
            max_epochs=1,
            gradient_clip_val=1.0,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self.machine.clear()
        trainer.fit(module, Batches(pairs, PAIRS, pad=self.tokenizer.pad_token_id))
        first = module.history[0]["train/loss"]
        return Took(clock.step, self.tokens, self.shared, self.machine.peak(), (first,))

    def trl(self, objective: str) -> Took:
        """Train with TRL's trainer on the same texts, references computed before."""
        from datasets import Dataset, disable_progress_bars
        from transformers import TrainerCallback
        from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

        disable_progress_bars()
        machine, warm, steps = self.machine, self.warm, self.steps

        class Clock(TrainerCallback):
            began = step = 0.0

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == warm:
                    self.began = machine.now()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == steps:
                    self.step = (machine.now() - self.began) / (steps - warm)

        rows = [
            {
                "prompt": [{"role": turn.role, "content": turn.content} for turn in e.prompt],
                "chosen": [{"role": "assistant", "content": e.chosen[0]}],
                "rejected": [{"role": "assistant", "content": e.rejected[0]}],
            }
            for e in self.examples
        ]
        make, config, more = {
            "bt": (RewardTrainer, RewardConfig, {}),
            "dpo": (DPOTrainer, DPOConfig, {"precompute_ref_log_probs": True}),
        }[objective]
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = config(
                output_dir=folder,
                per_device_train_batch_size=PAIRS,
                max_length=LENGTH,
                num_train_epochs=1,
                learning_rate=1e-6,
                gradient_checkpointing=False,
                bf16=True,
                use_cpu=not machine.cuda,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=self.steps,
                **more,
            )
            trainer = make(
                model=self.model(objective),
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=self.tokenizer,
                callbacks=[clock],
            )
            machine.clear()
            trainer.train()
        lengths = [
            max(len(row.ids) for pair in self.pairs[at : at + PAIRS] for row in _both(pair))
            for at in range(self.warm * PAIRS, len(self.pairs), PAIRS)
        ]
        return Took(clock.step, self.tokens, sum(2 * PAIRS * n for n in lengths), machine.peak())


class _LightningClock(Callback):
    """Seconds a step behind the first few, of which none waits for the clock."""

    def __init__(self, machine: Machine, warm: int, steps: int) -> None:
        self.machine, self.warm, self.steps = machine, warm, steps
        self.began, self.step = 0.0, 0.0

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, number: int) -> None:
        if number == self.warm:
            self.began = self.machine.now()

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, number: int
    ) -> None:
        if number == self.steps - 1:
            self.step = (self.machine.now() - self.began) / (self.steps - self.warm)


def _both(pair: Any) -> tuple[Any, Any]:
    return pair.chosen, pair.rejected


def build(
    auto: Any,
    shape: dict[str, Any],
    tokenizer: Any,
    device: str,
    dtype: torch.dtype = torch.bfloat16,
) -> Any:
    """Return a model of the shape with random weights, made where it runs."""
    shape = dict(shape)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape, num_labels=1)
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    with torch.device(device):
        model = auto.from_config(config, dtype=dtype).eval()
    if hasattr(model, "score"):
        to_float(model.score)
    return model.to(device)


def flop_per_token(model: Any) -> float:
    """Return the FLOP of the backbone's matrices for a token: two for each of their weights."""
    weights = sum(p.numel() for p in model.base_model.parameters() if p.dim() == 2)
    return 2.0 * (weights - model.get_input_embeddings().weight.numel())


def open_tokenizer(path: str | None, vocabulary: int) -> Any:
    """Return a folder's tokenizer, or SmolLM2's where that is at hand, with a pad token of its own.

    Of a pad token that ends turns as well the library would take the last real token for padding.
    """
    folder = Path(path) if path else cache_folder() / "SmolLM2-135M-Instruct"
    if not folder.is_dir():
        sys.exit(f"{folder} is not there: give a folder with a tokenizer, --tokenizer FOLDER")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        special = [
            str(token)
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special and ("pad" in str(token) or "reserved" in str(token))
        ]
        tokenizer.add_special_tokens({"pad_token": special[-1] if special else "<|pad|>"})
    if len(tokenizer) > vocabulary:
        sys.exit(f"the tokenizer in {folder} has {len(tokenizer)} tokens, the models {vocabulary}")
    return tokenizer


def score(measured: Measured, name: str, scored: Scored, rate: float) -> None:
    """Score in three ways; rmexp comes last, since it changes the model's attention."""
    ways: list[tuple[str, Way]] = [
        ("pipeline, batches of 8", scored.pipeline),
        (f"unique, sorted, {SORTED_TOKENS:,} padded", scored.sorted),
        ("rmexp", scored.rmexp),
    ]
    took = {}
    for way, run in ways:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = took[way] = run()
        share = share_of_rate(round(one.run), scored.flop, one.seconds, rate)
        speed = one.tokens / one.seconds
        note = f"{len(one.values):,} responses"
        if way == "rmexp":
            peer = took[ways[1][0]].values
            scale = torch.tensor(peer).std().item() or 1.0
            delta = max(abs(a - b) for a, b in zip(one.values, peer, strict=True)) / scale
            note += f", differs from sorted by {delta:.1%} of the scale at most"
        what = f"score {name}"
        measured.add(Row(what, way, one.seconds, speed, share, one.gib, None, note))
    _set_ratios(measured, f"score {name}")


def train(measured: Measured, objective: str, trained: Trained, rate: float) -> None:
    """Train with rmexp, and with TRL where it is."""
    ways: list[tuple[str, Callable[[str], Took]]] = [("rmexp", trained.rmexp)]
    if find_spec("trl") is None:
        measured.leave_out(f"TRL's {objective.upper()}", "it is not installed")
    else:
        ways.append(("TRL", trained.trl))
    matrices = flop_per_token(trained.model("bt"))
    for way, run in ways:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = run(objective)
        steps = trained.steps - trained.warm
        share = share_of_rate(round(one.run / steps), 3 * matrices, one.seconds, rate)
        note = "seconds a step"
        if one.values:
            note += f", first loss {one.values[0]:.4f}"
        speed = one.tokens / steps / one.seconds
        measured.add(Row(f"train {objective}", way, one.seconds, speed, share, one.gib, None, note))
        trained.machine.clear()
    _set_ratios(measured, f"train {objective}")


def _set_ratios(measured: Measured, what: str) -> None:
    """Say how many times the other ways of a part take rmexp's time."""
    own = [row.seconds for row in measured.rows if row.what == what and row.way == "rmexp"]
    for at, row in enumerate(measured.rows):
        if own and row.what == what and row.way != "rmexp":
            measured.rows[at] = replace(row, ratio=row.seconds / own[0])
    measured.write()


def main(words: Sequence[str] | None = None) -> Measured:
    """Measure what fits the time, print the table, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the data")
    parser.add_argument("--tokenizer", help="a folder; SmolLM2's by default")
    parser.add_argument("--json", type=Path, default=Path("outputs/gpu.json"))
    parser.add_argument("--minutes", type=float, default=6.5, help="nothing begins that ends later")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU: a rehearsal")
    options = parser.parse_args(words)
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("this machine shows no GPU: make bench measures CPUs; --tiny rehearses here")
    began = time.monotonic()
    smallest = min(shape["vocab_size"] for shape in SHAPES.values())
    tokenizer = open_tokenizer(options.tokenizer, smallest)
    tiny = _TINY | {"vocab_size": len(tokenizer)} if options.tiny else {}
    machine = Machine("cpu" if options.tiny else "cuda")
    measured = Measured(machine.describe(), options.json)
    measured.began = began
    print(", ".join(f"{key} {value}" for key, value in measured.machine.items()), flush=True)
    slower = max(1.0, H100 / machine.rate) if machine.cuda else 1.0
    for part in options.only:
        tokens, seconds = PARTS[part]
        if time.monotonic() - began + seconds > options.minutes * 60:
            measured.leave_out(part, f"not enough of the {options.minutes:g} minutes is left")
            continue
        try:
            if tokens:
                budget = TINY_TOKENS if options.tiny else round(tokens / slower)
                examples = to_score(options.data, tokenizer, budget)
                score(
                    measured,
                    part,
                    Scored(machine, SHAPES[part] | tiny, tokenizer, examples),
                    machine.rate,
                )
            else:
                pairs = to_train(options.data)
                steps = (TINY_WARM, TINY_STEPS) if options.tiny else (WARM, STEPS)
                trained = Trained(machine, TRAINED | tiny, tokenizer, pairs, *steps)
                train(measured, part, trained, machine.rate)
        except torch.OutOfMemoryError as error:
            measured.leave_out(part, str(error).splitlines()[0])
        except FileNotFoundError as error:
            measured.leave_out(part, f"{error} is not there")
        machine.clear()
    print(f"\n{measured.table()}\n\n{options.json}")
    return measured


def to_score(data: Path, tokenizer: Any, budget: int) -> list[Example]:
    """Return RMB's pairs and lists about prompts that are drawn, for so many padded tokens."""
    path = data / "RMB_dataset"
    if not path.exists():
        raise FileNotFoundError(path)
    examples = RMB(path=str(path), include=GROUPS).load().examples
    chat, known = Chat(tokenizer, LENGTH * 4), {}

    def length(prompt: tuple[Message, ...], response: str) -> int:
        if (prompt, response) not in known:
            (row,) = chat.encode([(prompt, response)])
            assert row is not None
            known[prompt, response] = len(row.ids)
        return known[prompt, response]

    (drawn,) = whole_prompts([examples], length, budget, seed=0)
    return drawn


def to_train(data: Path) -> list[Example]:
    """Return Auto-J's pairs."""
    path = data / "preferences" / "auto_j.jsonl"
    if not path.exists():
        raise FileNotFoundError(path)
    return list(Preference(path=str(path), on_bad_row="skip").load().examples)


def _quieten() -> None:
    """Keep the terminal for what is measured."""
    logging.getLogger("rmexp").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    _quieten()
    main()
