"""Pairwise preference models: a prompt and two responses in, which one is better out.

The model reads the pair as one conversation, of which its chat template makes a text: the prompt's
turns, a turn of the role `response_a`, and B, which is the conversation's response; or a turn of
the role `response_b` and an answer, A or B, which is. So scoring does the work as for any reward
model, and keeps the numbers in the same store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmexp.errors import ConfigError
from rmexp.judges.verdicts import Pair, Rating, Tally, Verdict, judge_examples
from rmexp.schema import Dataset, Example, Message
from rmexp.scoring.model_reward import ModelReward
from rmexp.scoring.rewards import open_reward
from rmexp.scoring.score import Scoring, Settings


@dataclass(frozen=True, slots=True)
class PairwiseJudge:
    """A pairwise preference model; `reward` reads a pair's margin, above 0 where A is better.

    Without `labels` the margin is a classifier's output. With two labels it is the difference of
    their log-probabilities, A's less B's, as the turn after the pair, of the role `assistant`. A
    verdict goes to the response with the higher sum of margins over both orders, which is where the
    mean of the two probabilities is above one half; equal ones are undecided, half a point.
    """

    name: str
    reward: ModelReward
    labels: tuple[str, str] | None
    undecided: float = 0.5
    pointwise: bool = False

    @property
    def description(self) -> str:
        """Say how the verdicts are made."""
        reads = "head" if self.labels is None else f"{' or '.join(self.labels)} as next tokens"
        return f"pairwise, {reads}, both orders"

    def fingerprints(self, cache: Path) -> dict[str, str]:
        """Return the model's digests."""
        return self.reward.fingerprints(cache)

    def traits(self) -> dict[str, str]:
        """Return the classifier's, read as a judge."""
        return {**self.reward.traits(), "method": "judge", "reader": self.description}

    def check_labels(self) -> None:
        """Raise ConfigError where the template does not leave a label its place."""
        if self.labels is None:
            return
        pair = self._example("", (Message("user", "Hi"),), "Hello", "Go")
        rows = self.reward.chat.encode([(pair.prompt, label) for label in self.labels])
        if not all(row is None or row.placed for row in rows):
            raise ConfigError(
                f"the chat template of {self.name} writes another pair before {self.labels[0]} "
                f"than before {self.labels[1]}: give another one as model.chat_template"
            )

    def score(self, data: Dataset, settings: Settings) -> Scoring:
        """Compare the responses of every example."""
        return judge_examples(self, data, settings)

    def compare(
        self, pairs: Sequence[Pair], settings: Settings, tally: Tally
    ) -> list[Verdict | None]:
        """Read each pair's margin in both orders."""
        examples = tuple(
            self._example(f"{at}/{order}", pair.prompt, *responses)
            for at, pair in enumerate(pairs)
            for order, responses in enumerate(
                ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen))
            )
        )
        scoring = self.reward.score(Dataset(examples, "pairs in both orders"), settings)
        skipped = ("responses", "unique", "ties", "seconds", "tokens_per_second")
        tally.add(**{name: n for name, n in scoring.counts.items() if name not in skipped})
        tally.first_example = scoring.first_example
        margins = {
            row.id: row.chosen[0] - (row.rejected[0] if self.labels else 0.0)
            for row in scoring.scored
        }
        return [
            self._verdict(margins.get(f"{at}/0"), margins.get(f"{at}/1"))
            for at in range(len(pairs))
        ]

    def rate(
        self,
        responses: Sequence[tuple[tuple[Message, ...], str]],
        settings: Settings,
        tally: Tally,
    ) -> list[Rating | None]:
        """Raise ConfigError: a pairwise model has no rating for a single response."""
        raise ConfigError(
            f"{self.name} compares two responses and rates none, which this benchmark needs for "
            f"{len(responses)} responses: leave these parts out with bench.include, or use another "
            "model"
        )

    def _example(self, id: str, prompt: tuple[Message, ...], a: str, b: str) -> Example:
        """Return the pair as a conversation whose last turn is what is read."""
        turns = (*prompt, Message("response_a", a))
        if self.labels is None:
            return Example(id, "", turns, (b,), ())
        return Example(
            id, "", (*turns, Message("response_b", b)), (self.labels[0],), (self.labels[1],)
        )

    def _verdict(self, first: float | None, second: float | None) -> Verdict | None:
        """Return the verdict of the margins with the chosen response as A, and with it as B."""
        if first is None or second is None:
            return None
        total = first - second
        share = self.undecided if total == 0 else float(total > 0)
        decided = first != 0 and second != 0
        consistent = (first > 0) == (second < 0) if decided else None
        return Verdict(share, consistent, said=((first,), (second,)))


def open_pairwise(
    *,
    path: str,
    name: str | None = None,
    revision: str | None = None,
    labels: Sequence[str] | None = None,
    dtype: str | None = None,
    max_length: int | None = None,
    attention: str | None = None,
    chat_template: str | None = None,
    device: str = "auto",
    device_map: str | None = None,
    fused: bool = True,
    convert_bin: bool = False,
) -> PairwiseJudge:
    """Open a pairwise preference model without loading its weights.

    `labels` are the two words that a language model answers with; null is for a classifier with one
    output. Raises ConfigError for whatever cannot work.
    """
    if labels is not None and (isinstance(labels, str) or len(labels) != 2):
        raise ConfigError(f"model.labels={labels}: give two, [A,B], or null for a classifier")
    reward = open_reward(
        path=path,
        name=name,
        revision=revision,
        reader="scalar" if labels is None else "implicit",
        reference={"path": None},
        length_normalised=False,
        dtype=dtype,
        max_length=max_length,
        attention=attention,
        chat_template=chat_template,
        device=device,
        device_map=device_map,
        fused=fused,
        convert_bin=convert_bin,
    )
    words = None if labels is None else (str(labels[0]), str(labels[1]))
    judge = PairwiseJudge(reward.name, reward, words)
    judge.check_labels()
    return judge
