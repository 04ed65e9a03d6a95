"""Will a reward model teach a policy anything? Its rewards of the policy's own responses."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmexp.benchmarks.bon100 import agreement_metrics, curve_metrics, ranked
from rmexp.data.pairs import read_prompt
from rmexp.data.rankings import read_ranking
from rmexp.data.rows import Row
from rmexp.data.selection import Entry, Selection, check_path
from rmexp.data.sources import local_rows
from rmexp.errors import ConfigError, DataError
from rmexp.metrics import ANY, Mean, Metric
from rmexp.schema import Dataset, Example, ScoredExample
from rmexp.stats.bounds import Array
from rmexp.stats.intervals import Estimate
from rmexp.stats.lengths import tau_b

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Teacher:
    """What there is to learn from the rewards of several responses to each prompt.

    A policy learns from how rewards differ between its own responses to one prompt; a reward model
    may rank well and yet hardly tell them apart (arXiv 2503.15477).

    - `within`: the share of the variance of rewards that is within prompts, the rest being between
      them; every prompt weighs alike. Rewards of another unit have the same share.
    - `ties`: the share of pairs of responses to a prompt that are rewarded alike.
    - `rank_entropy`: the entropy of a prompt's levels of reward over that of as many levels as
      responses: 1 where all differ, 0 where all are alike.
    - `markdown_correlation`: Kendall's tau-b between reward and marks of Markdown within a prompt;
      that with length is `style/length_correlation`.
    - With gold scores also `spearman` and `kendall` with them, prompt by prompt, and
      `best_of/<n>`: the gold score of the response ranked first among n; all n in `curve.csv`.

    `path` is a file or folder of rows with `prompt`, `responses`, a list of two or more, and maybe
    `gold`, a list of numbers; or rows as `bench=bon100` reads them. `subset` names parts.

    Raises ConfigError or DataError at once for options that cannot work.
    """

    name = "teacher"
    headline = "teacher/within"

    def __init__(
        self,
        *,
        path: str | None = None,
        include: Sequence[str] | None = None,
        limit: int | None = None,
        on_bad_row: str = "error",
    ):
        if path is None:
            raise ConfigError("bench=teacher needs data: set bench.path to a file of samples")
        check_path(path)
        self._path = path
        self._selection = Selection(include, limit, on_bad_row)

    def load(self) -> Dataset:
        """Read, check and select the prompts with their responses."""
        rows = local_rows(self._path, self._selection.include)
        examples, bad_rows = self._selection.select(_entries(rows), files=rows.files)
        gold = [example.id for example in examples if example.recorded]
        if 0 < len(gold) < len(examples):
            raise DataError(
                f"{len(gold)} of {len(examples)} prompts of {rows.source} have gold scores: give "
                "them for all or for none"
            )
        note = "with gold scores" if gold else "no gold scores: nothing says which is better"
        rated = frozenset(example.subset for example in examples)
        return Dataset(examples, rows.source, bad_rows, (note,), rated, self._selection.skips)

    def metrics(self, scored: Sequence[ScoredExample]) -> list[Metric]:
        """Return how rewards differ within prompts, and how they go with the gold scores."""
        finite = [at for at, row in enumerate(scored) if np.isfinite(row.rejected).all()]
        if not finite:
            return []
        rewards = [np.array(scored[at].rejected) for at in finite]
        lost = tuple(row.id for at, row in enumerate(scored) if at not in set(finite))
        metrics: list[Metric] = []
        if (shares := _within(rewards)) is not None:
            metrics.append(Mean(self.headline, tuple(finite), shares, undefined=lost, bounds=ANY))
        metrics += [
            Mean(f"{self.name}/ties", tuple(finite), tuple(map(_ties, rewards))),
            Mean(f"{self.name}/rank_entropy", tuple(finite), tuple(map(_entropy, rewards))),
        ]
        markdown = {
            at: tau_b(row.rejected, row.marks) for at, row in enumerate(scored) if row.marks
        }
        known = {at: tau for at, tau in markdown.items() if tau is not None}
        name = f"{self.name}/markdown_correlation"
        metrics.append(Mean(name, tuple(known), tuple(known.values()), bounds=(-1.0, 1.0)))
        if scored[0].recorded:
            of = [ranked(row) for row in scored]
            metrics += agreement_metrics(self.name, scored, of)
            metrics += curve_metrics(self.name, scored, of)
        return metrics

    def figures(
        self, estimates: Mapping[str, Estimate], scored: Sequence[ScoredExample]
    ) -> "dict[str, Figure]":
        """Draw nothing besides the curve, which every evaluation draws."""
        return {}


def _entries(rows: Iterable[Row]) -> Iterator[Entry]:
    for number, row in enumerate(rows):
        id = row.identifier("id") if row.has("id") else str(number)
        if "responses" not in row.values:
            entry = read_ranking(row, id)
            ranked = entry.example.rejected[-len(entry.example.recorded) :]
            example = Example(
                id, entry.example.subset, entry.example.prompt, (), ranked,
                recorded=entry.example.recorded,
            )  # fmt: skip
            yield Entry(example, row, entry.flaw)
            continue
        responses = row.texts("responses")
        gold = tuple(_number(row, value) for value in row.items("gold")) if row.has("gold") else ()
        prompt, flaw = read_prompt(row)
        if len(responses) < 2:
            flaw = f"{len(responses)} responses, where two or more are compared"
        elif gold and len(gold) != len(responses):
            flaw = f"{len(responses)} responses and {len(gold)} gold scores"
        subset = row.label("subset") if row.has("subset") else "teacher"
        yield Entry(Example(id, subset, prompt, (), responses, recorded=gold), row, flaw)


def _number(row: Row, value: object) -> float:
    return Row({"gold": value}, row.file, row.place).number("gold")


def _within(rewards: Sequence[Array]) -> tuple[float, ...] | None:
    """Return outcomes whose mean is the share of the variance that is within prompts.

    With w a prompt's variance, t its mean square distance from the mean of all prompts' means, and
    R = mean(w) / mean(t) the share, an outcome is R + (w - R t) / mean(t): so the bootstrap of the
    mean is that of the ratio, in first order. None where all rewards are one.
    """
    centre = np.mean([of.mean() for of in rewards])
    within = np.array([of.var() for of in rewards])
    total = np.array([((of - centre) ** 2).mean() for of in rewards])
    if not total.mean() > 0:
        return None
    share = within.mean() / total.mean()
    return tuple((share + (within - share * total) / total.mean()).tolist())


def _ties(rewards: Array) -> float:
    """Return the share of the pairs whose two rewards are equal."""
    _, counts = np.unique(rewards, return_counts=True)
    n = len(rewards)
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))


def _entropy(rewards: Array) -> float:
    """Return the entropy of the levels of reward, over ln n."""
    _, counts = np.unique(rewards, return_counts=True)
    shares = counts / len(rewards)
    return float(-(shares * np.log(shares)).sum() / np.log(len(rewards))) + 0.0
