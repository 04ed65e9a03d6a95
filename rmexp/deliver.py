"""python -m rmexp.deliver FOLDER [URI]: send MLflow what the runs in a folder could not."""

import os
import sys
from pathlib import Path

from rmexp.errors import DataError, RmexpError
from rmexp.secrets import redact
from rmexp.tracking.run_folder import undelivered

_USAGE = """\
python -m rmexp.deliver FOLDER [URI]

Send MLflow what the runs in a folder (a run's, or a sweep's) could not tell it while its server was
away. URI is where the server is now, if that is another address than then, or one with a password,
which is not kept in files. What was sent is not sent again."""


def deliver(folder: Path, uri: str | None = None) -> list[str]:
    """Send what waits in a folder, and return a line a run that was sent.

    Raises DataError for a folder without a run, TrackingError where the server does not take all.
    """
    if not any(folder.rglob("run.json")):
        raise DataError(f"{folder} has no run: give the folder that the command named")
    if not undelivered(folder):
        return [f"all in {folder} was delivered before: nothing is left to send"]
    from rmexp.tracking.delivery import deliver_all
    from rmexp.tracking.pages import run_page

    told = deliver_all(folder, uri)
    return [f"delivered: {run_page(one.uri, one.experiment_id, one.run_id)}" for one in told]


def main() -> None:
    """Deliver, and exit with 1 where something is left."""
    words = sys.argv[1:]
    if not 1 <= len(words) <= 2 or words[0].startswith("-"):
        print(_USAGE)
        sys.exit(0 if words[:1] in (["--help"], ["-h"]) else 2)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        print("\n".join(deliver(Path(words[0]), *words[1:])))
    except RmexpError as error:
        print(redact(str(error)), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
