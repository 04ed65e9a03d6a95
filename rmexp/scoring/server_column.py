"""The rewards of a server as a column: asked for in rounds, and stored when a round is verified.

A server may change what it serves under the same name, mix up the answers of a batch, or squeeze
rewards between 0 and 1. Each of these is looked for, and nothing that it concerns is stored.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from rmexp.client import Client
from rmexp.errors import ConfigError, ScoreError
from rmexp.progress import WorkProgress
from rmexp.scoring.computing import Work
from rmexp.scoring.servers import Asked, ServerProtocol, Serving

log = logging.getLogger(__name__)

_ROUND = 10.0  # seconds, about, between two times that the server is verified
_PROBED = 4  # responses that are asked for in both orders
_CHECKED = 3  # responses of each round, and of the store, that are asked for again alone
_TOLERANCE = 0.05  # relative: a server computes in 16 bits, and its batches are its own
_ACTIVATED = 0.02  # by how much a reward and its sigmoid differ where they can be told apart

Keep = Callable[[Sequence[tuple[str, float]]], None]


class ServerColumn:
    """What a server gives to responses, `batch` of them a request.

    `bounded` says that rewards between 0 and 1 are the model's own. `name` stands for the model
    where the server does not tell one.
    """

    def __init__(
        self, client: Client, protocol: ServerProtocol, name: str, batch: int, bounded: bool
    ) -> None:
        self.client, self.protocol, self.name = client, protocol, name
        self._batch, self._raw = batch, bounded  # raw: known to be no sigmoid's
        self._serving: Serving | None = None

    @property
    def serving(self) -> Serving:
        """Return what the server says that it serves, asked for once."""
        if self._serving is None:
            self._serving = self.protocol.serving(self.client)
        return self._serving

    def identity(self, cache: Path) -> dict[str, object]:
        """Return what determines the rewards, besides the tokens, as far as the server tells."""
        said = dict(self.serving.said)
        if "model" not in said:
            said |= {"model": self.name, "address": self.client.address("")}
        return {"server": self.protocol.name, "reads": "score", **said}

    def compute(
        self,
        rows: Mapping[str, Asked],
        stored: Sequence[tuple[Asked, float]],
        keep: Keep,
        seed: int,
        told: Callable[[int], None] | None = None,
    ) -> tuple[dict[str, float], Work]:
        """Return the rewards of new responses by key, and what they took; `keep` stores them.

        `stored` are responses whose rewards the store has from an earlier run. `told` hears of the
        tokens in place of a progress of its own. Raises ScoreError for what the server cannot or
        does not do, ConfigError for responses that it does not take.
        """
        self._check_length(rows.values())
        names = list(rows)
        self.protocol.begin(self.client, rows[names[0]])
        self._check_stored(stored[:_CHECKED])
        raw = self._raw or any(not _squeezed(reward) for _, reward in stored)
        shortest = sorted(rows.values(), key=lambda row: len(row.ids))[:_PROBED]
        first, shown = self._probe(shortest)
        self._raw = raw or shown
        rng = np.random.default_rng(seed)
        values: dict[str, float] = {}
        held: dict[str, float] = {}
        work = Work()

        def settle(made: Mapping[str, float]) -> None:
            """Store what a round has made, if the server is still what it was."""
            chosen = rng.choice(len(made), min(_CHECKED, len(made)), replace=False)
            some = [list(made)[at] for at in chosen]
            delta = self._verify([first, *((rows[name], made[name]) for name in some)])
            work.max_delta = float(np.fmax(work.max_delta, delta))
            values.update(made)
            held.update(made)
            self._raw = self._raw or any(not _squeezed(reward) for reward in made.values())
            if self._raw:  # what is not finite may be another time
                keep([(name, reward) for name, reward in held.items() if math.isfinite(reward)])
                held.clear()

        began = time.monotonic()
        tokens = sum(len(row.ids) for row in rows.values())
        left = [names[at : at + self._batch] for at in range(0, len(names), self._batch)]
        count = self.client.concurrency
        with WorkProgress(self.name, tokens, told=told) as progress:
            while left:
                part, left = left[:count], left[count:]
                started = time.monotonic()
                settle(self._round(part, rows, progress, settle))
                took = max(time.monotonic() - started, 1e-3)
                count = max(self.client.concurrency, min(2 * count, int(count * _ROUND / took)))
        if any(map(math.isfinite, held.values())):
            switched = ", with its activation and without" if self.protocol.switch else ""
            raise ScoreError(
                f"all {len(held)} rewards of {self.name} lie between 0 and 1{switched}, as a "
                "sigmoid's do: have them served raw, or say that they are the model's own, "
                "model.bounded=true; nothing is stored"
            )
        work.tokens = work.tokens_run = work.tokens_padded = tokens
        work.seconds = time.monotonic() - began
        return values, work

    def _round(
        self,
        batches: Sequence[Sequence[str]],
        rows: Mapping[str, Asked],
        progress: WorkProgress,
        settle: Callable[[Mapping[str, float]], None],
    ) -> dict[str, float]:
        """Return the rewards of some batches; of those before a failure, settle them and raise."""
        made: dict[str, float] = {}

        def done(at: int, rewards: list[float]) -> None:
            made.update(zip(batches[at], rewards, strict=True))
            progress.advance(sum(len(rows[name].ids) for name in batches[at]))

        try:
            self.client.ask(
                [self.protocol.call([rows[name] for name in batch]) for batch in batches], done
            )
        except ScoreError:
            if made:
                with suppress(ScoreError):  # the server may be gone
                    settle(made)
            raise
        return made

    def _check_length(self, rows: Collection[Asked]) -> None:
        """Raise ConfigError for a response that is longer than the server says it takes."""
        limit, longest = self.serving.max_length, max(len(row.ids) for row in rows)
        if limit is not None and longest > limit:
            raise ConfigError(
                f"{self.name} is served with {limit} tokens at most, and a response has {longest}: "
                f"give model.max_length={limit}, or serve it with more"
            )

    def _probe(self, rows: Sequence[Asked]) -> tuple[tuple[Asked, float], bool]:
        """Ask for a few responses in both orders; return one, and if all are seen to be raw.

        They are if one lies outside of [0, 1], or differs from what the activation makes of it.
        """
        there = self.client.ask_one(self.protocol.call(rows))
        back = self.client.ask_one(self.protocol.call(rows[::-1]))[::-1]
        for one, other in zip(there, back, strict=True):
            if _delta(one, other) > _TOLERANCE:
                raise ScoreError(
                    f"{self.name} gives a response {one:g} or {other:g}, by the order in which "
                    "several are asked for: ask for one at a time, model.endpoint.batch=1"
                )
        raw = not all(map(_squeezed, there))
        if not raw and self.protocol.switch:
            activated = self.client.ask_one(self.protocol.call(rows, activation=True))
            pairs = zip(there, activated, strict=True)
            raw = any(abs(one - other) > _ACTIVATED for one, other in pairs)
        return (rows[0], there[0]), raw

    def _check_stored(self, stored: Sequence[tuple[Asked, float]]) -> None:
        """Raise ScoreError where the server does not give a reward that the store has of it."""
        self._again(
            stored,
            "in an earlier run: another model is served under the same name; give another "
            "store_dir, or serve the one of then",
        )

    def _verify(self, some: Sequence[tuple[Asked, float]]) -> float:
        """Return by how much rewards change when they are asked for again, alone.

        Raises ScoreError where the server serves another model than before.
        """
        now = self.protocol.serving(self.client).said
        if now != self.serving.said:
            raise ScoreError(
                f"{self.name} is served as {dict(now)} and was as {dict(self.serving.said)}: the "
                "server has changed meanwhile; run the command again, it goes on from what was "
                "verified"
            )
        return self._again(
            some,
            "in this run: it serves another model than it did, or its rewards depend on the batch "
            "(model.endpoint.batch=1); run the command again, it goes on from what was verified",
        )

    def _again(self, some: Sequence[tuple[Asked, float]], said: str) -> float:
        """Return by how much rewards differ from those of before, each asked for alone.

        Raises ScoreError, which ends in `said`, where one is not the same.
        """
        delta = math.nan
        for (_, reward), alone in zip(some, self._alone(some), strict=True):
            if _delta(reward, alone) > _TOLERANCE:
                raise ScoreError(
                    f"{self.name} gives {alone:g} to a response to which it gave {reward:g} {said}"
                )
            delta = float(np.fmax(delta, abs(reward - alone)))
        return delta

    def _alone(self, some: Sequence[tuple[Asked, float]]) -> list[float]:
        """Return the rewards of responses that are asked for again, each in its own request."""
        found: dict[int, float] = {}
        calls = [self.protocol.call([row]) for row, _ in some]
        self.client.ask(calls, lambda at, rewards: found.update({at: rewards[0]}))
        return [found[at] for at in range(len(some))]


def _squeezed(reward: float) -> bool:
    """Say whether a reward may come out of a sigmoid; what is not finite says nothing."""
    return not math.isfinite(reward) or 0 <= reward <= 1


def _delta(one: float, other: float) -> float:
    """Return the relative difference; of what is not finite, none."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return 0.0
    return abs(one - other) / max(1.0, abs(one), abs(other))
