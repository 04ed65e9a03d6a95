"""Write the finished evaluations of an experiment as one page, leaderboard.html and leaderboard.md.

python leaderboard.py tracking.experiment=NAME
"""

from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from rmexp.cli.commands import Work, launch, run_command
from rmexp.cli.configs import benchmark_config, benchmarks, given, rebuild
from rmexp.errors import ConfigError
from rmexp.files import CONF
from rmexp.metrics import metric_name, partial_name

if TYPE_CHECKING:
    from rmexp.evaluation.leaderboard import Board
    from rmexp.tracking.runs import Run

_MEASURED = "Measured"
_NOTE_LENGTH = 7500  # characters of a table on the run's page, which MLflow limits


def headlines() -> list[str]:
    """Return the headline metric of each benchmark that `bench=` takes."""
    configs = [benchmark_config(name) for name in benchmarks()]
    classes: list[Any] = [hydra.utils.get_class(config["_target_"]) for config in configs]
    names = [
        each.headline.replace(each.name, metric_name(config.get("name") or each.name), 1)
        for each, config in zip(classes, configs, strict=True)
    ]
    return list(dict.fromkeys(names))


def boards(config: dict[str, Any]) -> "dict[str, Board]":
    """Return the boards of what was measured and of what was published, as far as there are any.

    Raises ConfigError where the experiment has neither.
    """
    from rmexp.evaluation.compare import read_run
    from rmexp.evaluation.first_place import with_first_places
    from rmexp.evaluation.leaderboard import make_board, with_chance
    from rmexp.tracking.finished import recorded_numbers
    from rmexp.tracking.tracked import every_evaluation

    names = headlines()
    uri, experiment = (given(config["tracking"], name) for name in ("uri", "experiment"))
    metrics = [metric for name in names for metric in (name, partial_name(name))]
    found = every_evaluation(uri, experiment, metrics, config["query"])
    if not found:
        among = f" that matches {config['query']!r}" if config["query"] else ""
        raise ConfigError(
            f"the experiment {experiment} has no finished evaluation{among} with a benchmark's "
            f"headline number: run eval_rm.py tracking.experiment={experiment} first"
        )
    parts = {
        _MEASURED: [each for each in found if not each.published],
        "Published, not measured here": [each for each in found if each.published],
    }
    made = {name: make_board(part, names) for name, part in parts.items() if part}
    if (measured := made.get(_MEASURED)) is not None:
        with TemporaryDirectory() as folder:
            made[_MEASURED] = with_first_places(
                measured,
                lambda run: read_run(run, uri, Path(folder) / run, rebuild),
                config["seed"],
            )
        made[_MEASURED] = with_chance(made[_MEASURED], partial(recorded_numbers, uri))
    return made


def write(boards: "dict[str, Board]", experiment: str, out_dir: Path, run: "Run") -> str:
    """Write the page and the Markdown, show the latter on the run's page, and count the lines."""
    from rmexp.evaluation.leaderboard_page import to_html, to_markdown
    from rmexp.tracking.pages import run_page

    counts = ", ".join(f"{len(board.lines)} {name.lower()}" for name, board in boards.items())
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = f"Leaderboard of {experiment}"
    about = f"Reward models: {counts}. Written {now} by rmexp {version('rmexp')}."
    link = partial(run_page, run.uri, run.experiment_id)
    markdown = to_markdown(title, about, boards)
    (out_dir / "leaderboard.html").write_text(to_html(title, about, boards, link), encoding="utf-8")
    (out_dir / "leaderboard.md").write_text(markdown, encoding="utf-8")
    run.keep(out_dir / "leaderboard.html", out_dir / "leaderboard.md")
    note = markdown
    if len(note) > _NOTE_LENGTH:
        note = note[: note.rindex("\n", 0, _NOTE_LENGTH)] + "\n\nAll of it: leaderboard.html."
    run.note(note)
    return f"{counts}: {out_dir / 'leaderboard.html'}"


def tags(config: dict[str, Any]) -> dict[str, str]:
    """Name the run by what it writes."""
    return {"rmexp.name": "leaderboard", "rmexp.command": "leaderboard"}


def prepare(config: dict[str, Any], out_dir: Path) -> Work:
    """Read the boards, before the run is opened, which makes an experiment that is not there."""
    return partial(write, boards(config), config["tracking"]["experiment"], out_dir)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="leaderboard")
def main(config: DictConfig) -> float | None:
    """Write under Hydra."""
    return run_command(config, prepare, tags)


def run() -> None:
    """Run the command, and exit."""
    launch(main)
