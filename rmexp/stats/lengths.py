"""What a reward has to do with length, on every benchmark.

A length is the number of characters of a response: it is known for recorded scores too, and does
not depend on a model's tokenizer. Everything is compared within an example, whose responses answer
one prompt, so that neither long prompts nor hard ones enter.
"""

import math
from collections.abc import Sequence
from itertools import combinations

from rmexp.metrics import Mean
from rmexp.schema import ScoredExample

PREFIX = "style/"


def length_metrics(scored: Sequence[ScoredExample]) -> list[Mean]:
    """Return how the reward goes with length, each a mean over the examples where it is defined.

    - `style/length_correlation`: Kendall's tau-b between reward and length over an example's
      responses; of two responses, 1 where the longer is rewarded more and -1 where the shorter is.
      Undefined where all lengths or all rewards are equal.
    - `style/accuracy_rejected_longer`, `_shorter`: the share with r(chosen) > r(rejected) among an
      example's comparisons whose rejected response is longer, or shorter. A tie is wrong.
    """
    correlations: dict[int, float] = {}
    longer: dict[int, float] = {}
    shorter: dict[int, float] = {}
    for position, row in enumerate(scored):
        if not row.lengths:
            continue
        correlation = tau_b(row.chosen + row.rejected, row.lengths)
        if correlation is not None:
            correlations[position] = correlation
        for outcomes, sign in ((longer, 1), (shorter, -1)):
            if won := [won for won, difference in _comparisons(row) if difference * sign > 0]:
                outcomes[position] = sum(won) / len(won)
    found = {
        "length_correlation": correlations,
        "accuracy_rejected_longer": longer,
        "accuracy_rejected_shorter": shorter,
    }
    return [
        Mean(
            f"{PREFIX}{name}",
            tuple(outcomes),
            tuple(outcomes.values()),
            bounds=(-1.0, 1.0) if outcomes is correlations else (0.0, 1.0),
        )
        for name, outcomes in found.items()
    ]


def tau_b(rewards: Sequence[float], lengths: Sequence[int]) -> float | None:
    """Return Kendall's tau-b without the rewards that are NaN, None where it is undefined.

    As scipy's, which takes over a hundred times as long for two responses.

    >>> tau_b([0.5, 0.1], [10, 3]), tau_b([1.0, 1.0], [10, 3])
    (1.0, None)
    """
    concordant = rewards_differ = lengths_differ = 0
    finite = [pair for pair in zip(rewards, lengths, strict=True) if not math.isnan(pair[0])]
    for (reward, length), (other_reward, other_length) in combinations(finite, 2):
        first = (reward > other_reward) - (reward < other_reward)
        second = (length > other_length) - (length < other_length)
        concordant += first * second
        rewards_differ += first != 0
        lengths_differ += second != 0
    if not rewards_differ or not lengths_differ:
        return None
    return concordant / math.sqrt(rewards_differ * lengths_differ)


def _comparisons(row: ScoredExample) -> list[tuple[bool, int]]:
    """Return each comparison's outcome, and by how much its rejected response is longer.

    Responses with recorded rewards were ranked, and rejected by nobody.
    """
    count = len(row.rejected) - len(row.recorded)
    chosen = zip(row.chosen, row.lengths, strict=False)
    rejected = list(zip(row.rejected, row.lengths[len(row.chosen) :], strict=True))[:count]
    return [
        (good > bad, other_length - length)
        for good, length in chosen
        for bad, other_length in rejected
    ]
