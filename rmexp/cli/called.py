"""How the commands are called: a checkout has scripts, and installed they have names."""

from rmexp.files import INSTALLED

COMMANDS = {
    "eval_rm": "rmexp-eval",
    "train_rm": "rmexp-train",
    "score_rm": "rmexp-score",
    "correlate": "rmexp-correlate",
    "leaderboard": "rmexp-leaderboard",
}


def called(command: str) -> str:
    """Return what to type for a command, `eval_rm` and so on, here."""
    return COMMANDS[command] if INSTALLED else f"python {command}.py"


def command_of(program: str) -> str:
    """Return the command that a script or an installed program is, by its name.

    >>> command_of("rmexp-eval"), command_of("eval_rm")
    ('eval_rm', 'eval_rm')
    """
    by_name = {name: command for command, name in COMMANDS.items()}
    return by_name.get(program, program)
