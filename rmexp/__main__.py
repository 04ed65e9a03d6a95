"""python -m rmexp: what there is."""

from rmexp.cli.called import COMMANDS, called
from rmexp.files import INSTALLED, PACKAGE


def _said(command: str) -> str:
    """Return the first line of what a command says of itself."""
    text = (PACKAGE / "cli" / f"{command}.py").read_text(encoding="utf-8")
    return text.split('"""')[1].splitlines()[0]


def main() -> None:
    """Print the commands, and what else there is."""
    import rmexp

    width = max(map(len, map(called, COMMANDS)))
    ui = "mlflow ui --backend-store-uri sqlite:///mlflow.db" if INSTALLED else "make ui"
    lines = [
        "rmexp: experiment tracking for LLM reward models. Each command answers --help.",
        "",
        *(f"  {called(each):<{width}}  {_said(each)}" for each in COMMANDS),
        "",
        f"For instance: {called('eval_rm')} model=smollm2 bench=toy bench.limit=2",
        "The models, with their published scores: python -m rmexp.models.catalogue",
        "To MLflow what its server missed while it was away: python -m rmexp.deliver FOLDER",
        f"The UI with all runs: {ui}. From Python: rmexp.{', rmexp.'.join(rmexp.__all__)}.",
    ]
    if not INSTALLED:
        lines.append(f"The README begins with a picture: {PACKAGE.parent / 'README.md'}")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
