"""Tokenizers: loaded from a model's folder, with its limit of tokens and its chat template."""

from pathlib import Path
from typing import Any

from rmexp.errors import ConfigError
from rmexp.models.checkpoints import Checkpoint
from rmexp.outside import known, read_json

_MEND = "get the model folder again"


def check_max_length(max_length: object) -> None:
    """Raise ConfigError for a limit that is no positive number of tokens."""
    if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
        raise ConfigError(f"model.max_length={max_length}: give a positive number of tokens")


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the tokenizer, an adapter's own if it has one; raise ConfigError for one that fails."""
    folder = checkpoint.folder
    if checkpoint.adapter is not None and (checkpoint.adapter / "tokenizer_config.json").exists():
        folder = checkpoint.adapter
    from transformers import AutoTokenizer

    from rmexp.models.loading import LIBRARY_ERRORS, reason

    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (path := folder / name).exists():
            limit = read_json(path, _MEND).get("model_max_length")
            known({"model_max_length": limit}, {"model_max_length": float | None}, str(path))
            if limit is not None and limit < 1:
                raise ConfigError(f"{path} has model_max_length: {limit}, it must be above 0")
    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=checkpoint.trust_remote_code, local_files_only=True
        )
    except LIBRARY_ERRORS as error:
        said = reason(error)
    except Exception as error:  # the tokenizers library has no class of its own
        if type(error) is not Exception:
            raise
        said = str(error)
    if (path := folder / "tokenizer.json").exists():
        read_json(path, _MEND)  # says it better, and takes too long to be asked first
    raise ConfigError(
        f"{folder} has no tokenizer that loads ({said}): get tokenizer.json, "
        "tokenizer_config.json and config.json of the model again"
    )


def token_limit(checkpoint: Checkpoint, tokenizer: Any) -> int:
    """Return the smaller of the positions that the model has and the tokenizer's own limit."""
    own = int(tokenizer.model_max_length)
    known_positions = (checkpoint.folder / "config.json").exists()
    positions = checkpoint.max_length if known_positions else None
    return own if positions is None else min(own, positions)


def template_text(chat_template: str | None, tokenizer: Any) -> str | None:
    """Return a template's text or its name in the tokenizer, or what the file it names holds."""
    several = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if chat_template is None or "{" in chat_template or chat_template in several:
        return chat_template
    try:
        return Path(chat_template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        own = f"; the tokenizer's own are {', '.join(several)}" if several else ""
        raise ConfigError(
            f"model.chat_template={chat_template}: cannot read it ({error}){own}"
        ) from error
