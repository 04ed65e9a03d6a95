import random

import pytest

from rmexp.models.chat import Encoded
from rmexp.models.forks import Fork, count_tokens, find_forks
from rmexp.scoring.plan import plan

PROMPT = tuple(range(100, 120))


def row(prompt: tuple[int, ...], response: tuple[int, ...]) -> Encoded:
    return Encoded(prompt + response, len(prompt), len(prompt + response))


def some_rows(seed: int, count: int = 60) -> list[Encoded]:
    """Few prompts, many responses, some of which begin alike, or as another prompt does."""
    draw = random.Random(seed)
    prompts = [PROMPT[: draw.choice((0, 5, 18, 20))] + (n,) * draw.randint(0, 30) for n in range(7)]
    return [
        row(draw.choice(prompts), tuple(draw.choices((1, 2), k=draw.randint(1, 25))))
        for _ in range(count)
    ]


def test_responses_share_their_prompt_and_what_they_begin_with() -> None:
    """The prompt has 20 tokens; 7 and 8 follow in both, so 22 run once and 2 + 1 besides."""
    rows = [row(PROMPT, (7, 8, 1)), row((1, 2), (7,)), row(PROMPT, (7, 8, 2, 3))]
    shared, alone = find_forks(rows)
    assert (shared, alone) == (Fork(22, (2, 0)), Fork(0, (1,)))
    assert count_tokens(shared, [len(r.ids) for r in rows]) == 22 + 2 + 1


def test_every_sequence_keeps_a_token_of_its_own() -> None:
    """The second response is how the first begins, and the third is the first again."""
    rows = [row(PROMPT, (7, 8)), row(PROMPT, (7,)), row(PROMPT, (7, 8))]
    (fork,) = find_forks(rows)
    assert fork == Fork(20, (0, 2, 1))


def test_few_equal_tokens_are_not_worth_sharing() -> None:
    rows = [row(PROMPT[:15], (1,)), row(PROMPT[:15], (2,))]
    assert find_forks(rows) == [Fork(0, (0,)), Fork(0, (1,))]


def test_a_prompt_is_split_where_its_responses_exceed_the_budget() -> None:
    """20 + 4 * 10 = 60 tokens fit in 60; the fifth begins a fork of its own."""
    rows = [row(PROMPT, (n, *range(9))) for n in range(5)]
    assert find_forks(rows, 60) == [Fork(20, (0, 1, 2, 3)), Fork(0, (4,))]
    assert [batch.tokens for batch in plan(rows, 60, packs=100)] == [60, 30]
    assert [batch.tokens for batch in plan(rows, 60, packs=100, most=70)] == [70]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("packs", [0, 35, 1000])
def test_plans_cover_everything_once_within_the_budget(seed: int, packs: int) -> None:
    rows = some_rows(seed)
    batches = list(plan(rows, 90, packs))
    assert sorted(at for batch in batches for at in batch.rows) == list(range(60))
    for batch in batches:
        lengths = [len(rows[at].ids) for at in batch.rows]
        assert batch.padded <= 90 or len(batch.rows) == 1
        if batch.forks is None:
            assert min(lengths) > packs
            assert (batch.tokens, batch.padded) == (sum(lengths), len(lengths) * max(lengths))
            continue
        assert max(lengths) <= packs
        assert sorted(at for f in batch.forks for at in f.rows) == list(range(len(lengths)))
        assert batch.tokens == batch.padded == sum(count_tokens(f, lengths) for f in batch.forks)
        for fork in batch.forks:
            begins = {rows[batch.rows[at]].ids[: fork.shared] for at in fork.rows}
            assert len(begins) == 1
            assert fork.shared < min(lengths[at] for at in fork.rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("packs", [0, 35, 1000])
def test_a_plan_goes_on_where_it_was_cut(seed: int, packs: int) -> None:
    """After any number of whole batches, the rest is planned as it was: equal bits on resuming."""
    rows = some_rows(seed)
    batches = list(plan(rows, 90, packs))
    assert len(batches) > 5
    for done in range(len(batches)):
        left = sorted(at for batch in batches[done:] for at in batch.rows)
        again = plan([rows[at] for at in left], 90, packs)
        assert [tuple(left[at] for at in batch.rows) for batch in again] == [
            batch.rows for batch in batches[done:]
        ]


def test_a_sequence_longer_than_the_budget_goes_alone() -> None:
    rows = [row((), (1,) * length) for length in (7, 100, 3, 50)]
    for packs in (0, 1000):
        batches = list(plan(rows, 60, packs))
        assert batches[0].rows == (1,)
        assert len(batches) == 3 - (packs > 0)
