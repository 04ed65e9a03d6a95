"""A chat model as a judge: asked in both orders, several times, and taken at its last line."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmexp.errors import ConfigError, DataError
from rmexp.judges.engine import TOO_LONG, Answer, Engine, Question, Sampling
from rmexp.judges.prompts import Prompts, open_prompts, parse_rating, parse_verdict
from rmexp.judges.verdicts import Pair, Rating, Tally, Verdict, judge_examples
from rmexp.schema import Dataset, Message
from rmexp.scoring.score import Scoring, Settings
from rmexp.scoring.store import Store

UNPARSED = {"half": 0.5, "wrong": 0.0}


@dataclass(frozen=True, slots=True)
class ChatJudge:
    """A chat model that is asked which of two responses is better, or how good one is.

    Each order is asked `samples` times and goes to the response with more votes. An order without a
    majority counts `undecided`; a verdict is the mean of its two orders.
    """

    name: str
    engine: Engine
    prompts: Prompts
    prompt: str
    sampling: Sampling
    samples: int
    undecided: float
    pointwise: bool

    @property
    def description(self) -> str:
        """Say how the verdicts are made."""
        how = "rates each response" if self.pointwise else "both orders"
        drawn = "greedy" if self.sampling.temperature == 0 else f"{self.samples} samples"
        share = "half a point" if self.undecided else "wrong"
        return f"judge, {self.prompt} prompt, {how}, {drawn}, unparsed {share}"

    def fingerprints(self, cache: Path) -> dict[str, str]:
        """Return digests of the engine and of the prompts."""
        engine = json.dumps(self.engine.identity(cache), sort_keys=True)
        return {
            "rmexp.weights": hashlib.sha256(engine.encode()).hexdigest(),
            "rmexp.prompts": self.prompts.fingerprint(),
        }

    def traits(self) -> dict[str, str]:
        """Return how it judges, and what is known of the chat model."""
        return {**self.engine.traits(), "method": "judge", "reader": self.description}

    def score(self, data: Dataset, settings: Settings) -> Scoring:
        """Compare, or rate, the responses of every example."""
        return judge_examples(self, data, settings)

    def compare(
        self, pairs: Sequence[Pair], settings: Settings, tally: Tally
    ) -> list[Verdict | None]:
        """Ask about each pair in both orders."""
        ask = self.prompts.ask_verdict
        orders = [
            (ask(p.prompt, p.chosen, p.rejected), ask(p.prompt, p.rejected, p.chosen))
            for p in pairs
        ]
        answers = self._ask([text for both in orders for text in both], settings, tally)
        verdicts: list[Verdict | None] = []
        for first, second in orders:
            both = answers[first], answers[second]
            if _dropped(both, settings):
                verdicts.append(None)
                continue
            votes = [[parse_verdict(answer.text) for answer in order] for order in both]
            unparsed = votes[0].count(None) + votes[1].count(None)
            tally.add(unparsed=unparsed)
            winners = _winner(votes[0], "A", "B"), _winner(votes[1], "B", "A")
            shares = [self.undecided if won is None else float(won) for won in winners]
            consistent = None if None in winners else winners[0] == winners[1]
            texts = [answer.text for answer in both[0]], [answer.text for answer in both[1]]
            share = math.fsum(shares) / 2
            verdicts.append(Verdict(share, consistent, unparsed / (2 * self.samples), texts))
        tally.add(dropped=verdicts.count(None))
        return verdicts

    def rate(
        self,
        responses: Sequence[tuple[tuple[Message, ...], str]],
        settings: Settings,
        tally: Tally,
    ) -> list[Rating | None]:
        """Ask how good each response is; a reward is the mean of the answers that hold a rating."""
        texts = [self.prompts.ask_rating(prompt, response) for prompt, response in responses]
        answers = self._ask(texts, settings, tally)
        rated: list[Rating | None] = []
        for text in texts:
            if _dropped([answers[text]], settings):
                rated.append(None)
                continue
            said = [parse_rating(answer.text) for answer in answers[text]]
            ratings = [rating for rating in said if rating is not None]
            unparsed = len(said) - len(ratings)
            reward = math.fsum(ratings) / len(ratings) if ratings else math.nan
            tally.add(unparsed=unparsed, non_finite=int(not ratings))
            kept = [answer.text for answer in answers[text]]
            rated.append(Rating(reward, unparsed / len(said), kept))
        tally.add(dropped=rated.count(None))
        return rated

    def _ask(
        self, texts: Sequence[str], settings: Settings, tally: Tally
    ) -> dict[str, list[Answer]]:
        """Return each text's answers, one a sample; those not in the store are asked for now."""
        sampling = self.sampling
        questions = {
            question.key: question
            for text in texts
            for question in (Question(text, sample) for sample in range(self.samples))
        }
        identity = self.engine.identity(settings.store_dir) | {"sampling": asdict(sampling)}
        new: dict[str, Answer] = {}
        with Store[list[Any]](settings.store_dir, identity) as store:

            def done(answered: Sequence[tuple[Question, Answer]]) -> None:
                new.update((question.key, answer) for question, answer in answered)
                # What is too long for a model as it runs today may fit tomorrow: it is not kept.
                kept = [(q.key, list(answer)) for q, answer in answered if answer.ended != TOO_LONG]
                if kept:
                    store.append(kept)

            def make(keys: list[str]) -> dict[str, list[Any]]:
                self.engine.answer([questions[key] for key in keys], sampling, settings, done)
                return {key: list(new[key]) for key in keys}

            known, asked = store.fill(questions, make)
        answers: dict[str, list[Answer]] = {}
        for key, question in questions.items():
            answers.setdefault(question.text, []).append(Answer(*known[key]))
        every = [answer for group in answers.values() for answer in group]
        tally.add(
            answers=len(every),
            cached=len(every) - asked,
            tokens=sum(answer.prompt_tokens + answer.completion_tokens for answer in new.values()),
            prompt_tokens=sum(answer.prompt_tokens for answer in every),
            completion_tokens=sum(answer.completion_tokens for answer in every),
            cut_off=sum(answer.ended == "length" for answer in every),
            too_long=sum(answer.ended == TOO_LONG for answer in every),
        )
        if tally.first_example is None and texts:
            first = answers[texts[0]][0]
            tally.first_example = f"--- question\n{texts[0]}\n--- answer\n{first.text}\n"
        return answers


def _winner(votes: Sequence[str | None], chosen: str, rejected: str) -> bool | None:
    """Say whether the chosen response has more votes than the rejected one; None if as many."""
    ahead = votes.count(chosen) - votes.count(rejected)
    return None if ahead == 0 else ahead > 0


def _dropped(groups: Sequence[Sequence[Answer]], settings: Settings) -> bool:
    """Say whether a question that was too long leaves its example out."""
    too_long = any(answer.ended == TOO_LONG for group in groups for answer in group)
    if too_long and settings.on_overlength == "error":
        raise DataError(
            "a question is longer than the judge takes: leave such examples out with "
            "on_overlength=drop, or count them as unparsed with on_overlength=left_truncate"
        )
    return too_long and settings.on_overlength == "drop"


def open_judge(
    *,
    path: str,
    url: str | None = None,
    name: str | None = None,
    prompt: str = "reasoned",
    criteria: str | None = "general",
    style: str | None = "ignore",
    samples: int = 1,
    temperature: float | None = 0.0,
    top_p: float | None = 1.0,
    max_tokens: int | None = 1024,
    seed: int = 0,
    unparsed: str = "half",
    pointwise: bool = False,
    endpoint: Mapping[str, Any],
    local: Mapping[str, Any],
) -> ChatJudge:
    """Open a judge: the chat model `path` of the endpoint at `url`, or else of a local folder.

    `endpoint` and `local` are further arguments of `Endpoint` and of `open_local`. Nothing is
    loaded and nobody asked. Raises ConfigError for whatever cannot work.
    """
    if unparsed not in UNPARSED:
        raise ConfigError(f"model.unparsed={unparsed}: use one of {', '.join(UNPARSED)}")
    for setting, value in (("samples", samples), ("max_tokens", max_tokens)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"model.{setting}={value}: give a whole number of 1 or more")
    if temperature is not None and temperature < 0:
        raise ConfigError(f"model.temperature={temperature}: give 0 (greedy) or more")
    if temperature == 0 and samples > 1:
        raise ConfigError(
            f"model.samples={samples} at model.temperature=0 would ask for the same answer again: "
            "raise the temperature, or ask once"
        )
    sampling = Sampling(temperature, top_p, max_tokens, None if temperature == 0 else seed)
    engine: Engine
    if url is not None:
        from rmexp.judges.endpoint import Endpoint

        engine = Endpoint(url, path, **endpoint)
    else:
        from rmexp.judges.local import open_local

        engine = open_local(path, sampling, **local)
    prompts = open_prompts(prompt, criteria, style)
    share = UNPARSED[unparsed]
    return ChatJudge(
        name or path, engine, prompts, prompt, sampling, samples, share, bool(pointwise)
    )
