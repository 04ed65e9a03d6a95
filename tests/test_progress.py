"""Progress: by work, with the rate and the time left; off a terminal a line now and then."""

import pytest

from rmexp import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set, and a terminal that is none."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("rich.console.Console.is_terminal", False)
    return now


def test_the_first_line_comes_after_five_seconds_and_counts_work(clock, caplog):
    caplog.set_level("INFO")
    with progress.WorkProgress("a model", 1000) as shown:
        clock[0] += 4.9
        shown.advance(100)
        assert not caplog.messages
        clock[0] += 0.1
        shown.advance(150)
        # 250 of 1,000 tokens in 5 s: 50 a second, and 15 s for the rest.
        assert caplog.messages == ["a model: 25 % of 1,000 tokens, 50 a second, 0:00:15 left"]
        clock[0] += 29.9
        shown.advance(100)
        assert len(caplog.messages) == 1
        clock[0] += 0.1
        shown.advance(350)
        assert caplog.messages[1:] == ["a model: 70 % of 1,000 tokens, 20 a second, 0:00:15 left"]


def test_of_several_side_by_side_one_is_shown(clock, caplog):
    caplog.set_level("INFO")
    with progress.WorkProgress("a model", 10, "answers", shown=False) as shown:
        clock[0] += 60
        shown.advance(5)
    assert not caplog.messages
