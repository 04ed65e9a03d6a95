"""Progress: by work, with the rate and the time left; off a terminal a line now and then."""

from types import SimpleNamespace

import pytest

from rmexp import progress
from rmexp.training.logger import StepProgress


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
        clock[0] += 1
        shown.advance(50)
        clock[0] += 3.9
        shown.advance(150)
        assert not caplog.messages
        clock[0] += 0.1
        shown.advance(50)
        # 200 of 1,000 tokens in the 4 s since the first: 50 a second, and 15 s for the rest.
        assert caplog.messages == ["a model: 25 % of 1,000 tokens, 50 a second, 0:00:15 left"]
        clock[0] += 29.9
        shown.advance(100)
        assert len(caplog.messages) == 1
        clock[0] += 0.1
        shown.advance(380)
        assert caplog.messages[1:] == ["a model: 73 % of 1,000 tokens, 20 a second, 0:00:14 left"]


def test_what_came_before_the_first_work_tells_no_speed(clock, caplog):
    """A model that takes a minute to load, and then a second for a tenth."""
    caplog.set_level("INFO")
    with progress.WorkProgress("a model", 10, "rows") as shown:
        clock[0] += 60
        shown.advance(1)
        clock[0] += 4
        shown.advance(4)
        clock[0] += 1
        shown.advance(1)
    assert caplog.messages == [
        "a model: 10 % of 10 rows",
        "a model: 60 % of 10 rows, 1 a second, 0:00:04 left",
    ]


def test_of_several_side_by_side_one_is_shown(clock, caplog):
    caplog.set_level("INFO")
    with progress.WorkProgress("a model", 10, "answers", shown=False) as shown:
        clock[0] += 60
        shown.advance(5)
    assert not caplog.messages


def test_a_note_ends_the_line(clock, caplog):
    caplog.set_level("INFO")
    with progress.WorkProgress("training", 10, "steps") as shown:
        shown.advance(1)
        clock[0] += 5
        shown.advance(5, "loss 0.69")
    assert caplog.messages == ["training: 60 % of 10 steps, 1 a second, 0:00:04 left; loss 0.69"]


def test_a_training_counts_its_steps(clock, caplog):
    """Of a run that goes on those that are left; what ended a step early is counted once."""
    caplog.set_level("INFO")
    module = SimpleNamespace(steps=8, history=[{"train/loss": 0.5}])
    trainer = SimpleNamespace(global_step=4, is_global_zero=True)
    counted = StepProgress()
    counted.on_train_start(trainer, module)
    for step in (4, 5, 5, 6):  # two batches a step
        clock[0] += 2.5
        trainer.global_step = step
        counted.on_train_batch_end(trainer, module)
    counted.teardown()
    assert caplog.messages == [
        "training: 25 % of 4 steps; loss 0.5",
        "training: 50 % of 4 steps, 0.2 a second, 0:00:10 left; loss 0.5",
    ]
