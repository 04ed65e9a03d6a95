"""python -m rmexp: what there is."""

from rmexp.files import ROOT

_ABOUT = """\
rmexp: experiment tracking for LLM reward models. Each command answers --help.

{commands}
From the project's root, for instance: python eval_rm.py model=smollm2 bench=toy bench.limit=2
The models, with their published scores: python -m rmexp.models.catalogue
The UI with all runs: make ui. From Python: rmexp.{names}.
The README begins with a picture: {readme}"""


def _said(script: str) -> str:
    """Return the first line of what a command says of itself."""
    text = (ROOT / script).read_text(encoding="utf-8")
    return text.split('"""')[1].splitlines()[0]


def main() -> None:
    """Print the commands, and what else there is."""
    import rmexp

    scripts = ("eval_rm.py", "train_rm.py", "correlate.py", "leaderboard.py")
    commands = "".join(f"  python {script:<15} {_said(script)}\n" for script in scripts)
    names = ", rmexp.".join(rmexp.__all__)
    print(_ABOUT.format(commands=commands, names=names, readme=ROOT / "README.md"))


if __name__ == "__main__":
    main()
