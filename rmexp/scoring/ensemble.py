"""Several reward models as one. Nothing is computed where each one's scores are kept already."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from rmexp.errors import ConfigError
from rmexp.schema import Dataset, ScoredExample
from rmexp.scoring.score import (
    NOTHING_COMPUTED,
    Reward,
    Scoring,
    Settings,
    check_finite,
    count,
)

RULES = ("mean", "min", "rank")

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EnsembleReward:
    """Reward models whose rewards are joined, response by response.

    Rewards of different models have different units. For `mean` and `min` each member's are
    z-scores over all responses of the benchmark; `min` is the pessimist's (Coste et al. 2024). For
    `rank` each member ranks the responses to a prompt, equal ones sharing their ranks, and the mean
    rank counts, 1 being the best of all and 0 the worst. A response that has no reward of a member
    has none.

    Raises ConfigError for fewer than two members, judges among them, or another rule.
    """

    members: Sequence[Reward]
    rule: str = "mean"
    name: str = "ensemble"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"model.rule={self.rule}: use one of {', '.join(RULES)}")
        if len(self.members) < 2:
            raise ConfigError("model.members: give two or more, as in [skywork,fsfairx]")
        judges = [one.name for one in self.members if one.traits().get("method") == "judge"]
        if judges:
            raise ConfigError(
                f"model.members: {judges[0]} is a judge and gives no rewards: give reward models"
            )

    @property
    def description(self) -> str:
        """Say what is joined, and how."""
        members = ", ".join(f"{one.name} ({one.description})" for one in self.members)
        return f"{self.rule} of {members}"

    def fingerprints(self, cache: Path) -> dict[str, str]:
        """Return a digest of the members' and of the rule."""
        every = [self.rule, [member.fingerprints(cache) for member in self.members]]
        return {"rmexp.weights": hashlib.sha256(json.dumps(every).encode()).hexdigest()}

    def traits(self) -> dict[str, str]:
        """Return that it is an ensemble."""
        return {"method": "ensemble", "reader": self.description}

    def score(self, data: Dataset, settings: Settings) -> Scoring:
        """Score with each member, and join what all of them have; raises as they do."""
        scorings = [member.score(data, settings) for member in self.members]
        found = [{row.id: row for row in scoring.scored} for scoring in scorings]
        shared = [id for id in found[0] if all(id in rows for rows in found)]
        joined = self._joined([[rows[id] for id in shared] for rows in found])
        done = {
            name: math.fsum(scoring.counts.get(name, 0) for scoring in scorings)
            for name in NOTHING_COMPUTED
        }
        if done["seconds"]:
            done["tokens_per_second"] = done["tokens"] / done["seconds"]
        check_finite(joined, settings.max_non_finite)
        return Scoring(
            joined,
            done | count(data.examples, joined),
            scorings[0].first_example,
            tuple(dict.fromkeys(row for scoring in scorings for row in scoring.bad_rows)),
        )

    def _joined(self, of: Sequence[Sequence[ScoredExample]]) -> list[ScoredExample]:
        """Return the examples `(members, examples)` with joined rewards."""
        tables = [[np.array(row.chosen + row.rejected) for row in rows] for rows in of]
        if self.rule == "rank":
            tables = [[_ranks(rewards) for rewards in rows] for rows in tables]
        else:
            tables = [_standardised(rows) for rows in tables]
        join = np.min if self.rule == "min" else np.mean
        rows = []
        for at, row in enumerate(of[0]):
            rewards = join(np.stack([table[at] for table in tables]), axis=0).tolist()
            split = len(row.chosen)
            chosen, rejected = tuple(rewards[:split]), tuple(rewards[split:])
            rows.append(replace(row, chosen=chosen, rejected=rejected))
        return rows


def _standardised(rows: Sequence[Array]) -> list[Array]:
    """Return z-scores over all responses; what is NaN stays so."""
    every = np.concatenate([rewards[~np.isnan(rewards)] for rewards in rows])
    mean, spread = (every.mean(), every.std()) if every.size else (0.0, 1.0)
    return [(rewards - mean) / (spread or 1.0) for rewards in rows]


def _ranks(rewards: Array) -> Array:
    """Return ranks from 0, the worst, to 1; a single response has 1/2, what is NaN stays so."""
    known = ~np.isnan(rewards)
    ranks = np.full(len(rewards), np.nan)
    others = known.sum() - 1
    ranks[known] = (rankdata(rewards[known]) - 1) / others if others > 0 else 0.5
    return ranks
