"""A chat model in a local folder: answers made in batches, longest questions first."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmexp.errors import ConfigError
from rmexp.judges.engine import TOO_LONG, Answer, Done, Question, Sampling
from rmexp.models.checkpoints import Checkpoint
from rmexp.progress import WorkProgress
from rmexp.schema import Message
from rmexp.scoring.budget import run_halving
from rmexp.scoring.model_reward import ModelReward
from rmexp.scoring.plan import Batch, padded
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Settings

_BATCH_TOKENS = 4096  # of questions and answers together, where nothing else is said


@dataclass(frozen=True, slots=True)
class Local:
    """A causal language model that `transformers` runs; `policy` holds its folder and tokenizer."""

    policy: ModelReward

    @property
    def _checkpoint(self) -> Checkpoint:
        return self.policy.columns[0].checkpoint

    def identity(self, cache: Path) -> dict[str, object]:
        """Return what determines the answers, besides question and sampling."""
        column = self.policy.columns[0]
        return {
            "weights": column.checkpoint.fingerprint(cache),
            "reads": "answers",
            "dtype": column.dtype,
            "attention": column.attention,
            **self.policy.chat.identity(),
        }

    def traits(self) -> dict[str, str]:
        """Return the chat model's size, dtype and template."""
        return self.policy.traits()

    def answer(
        self, questions: Sequence[Question], sampling: Sampling, settings: Settings, done: Done
    ) -> None:
        """Answer the questions that leave room for an answer; the others are too long."""
        from rmexp.judges.generation import generate, load_generator

        assert sampling.max_tokens is not None
        chat = self.policy.chat
        encoded = [chat.encode_prompt([Message("user", one.text)]) for one in questions]
        room = chat.max_length - sampling.max_tokens
        too_long = [at for at, ids in enumerate(encoded) if len(ids) > room]
        if too_long:
            done([(questions[at], Answer("", 0, 0, TOO_LONG)) for at in too_long])
        fitting = [at for at, ids in enumerate(encoded) if len(ids) <= room]
        if not fitting:
            return
        lengths = [len(encoded[at]) + sampling.max_tokens for at in fitting]
        model, tokenizer = load_generator(self.policy.columns[0]), chat.tokenizer
        name = self._checkpoint.name

        def make(left: Sequence[int], limit: int) -> Iterator[Batch]:
            for rows in padded([lengths[at] for at in left], limit):
                tokens = [lengths[left[at]] for at in rows]
                yield Batch(tuple(rows), None, sum(tokens), len(tokens) * tokens[0])

        def begin(batch: Batch) -> Callable[[], list[Answer]]:
            rows = [fitting[at] for at in batch.rows]
            seed = _seed([questions[at] for at in rows], sampling.seed)
            made = generate(model, tokenizer, [encoded[at] for at in rows], sampling, seed)
            return lambda: made

        limit = settings.batch_tokens or _BATCH_TOKENS
        with WorkProgress(name, sum(lengths)) as progress:
            for batch, made in run_halving(
                len(fitting), make, begin, limit, "a question and its answer"
            ):
                rows = [fitting[at] for at in batch.rows]
                done([(questions[at], answer) for at, answer in zip(rows, made, strict=True)])
                progress.advance(batch.tokens)


def open_local(path: str, sampling: Sampling, **settings: Any) -> Local:
    """Open a chat model without loading its weights; `settings` are those of `open_reward`.

    Raises ConfigError for a sampling that leaves something open, and for a folder that is no chat
    model's.
    """
    for name in ("temperature", "top_p", "max_tokens"):
        if getattr(sampling, name) is None:
            raise ConfigError(f"model.{name} is null, which only an endpoint can fill: give one")
    return Local(open_reward(path=path, reader="implicit", reference={"path": None}, **settings))


def _seed(questions: Sequence[Question], seed: int | None) -> int:
    """Return a seed that follows from the batch alone, so that a resumed run draws the same."""
    keys = " ".join([str(seed), *(question.key for question in questions)])
    return int.from_bytes(hashlib.sha256(keys.encode()).digest()[:4], "big")
