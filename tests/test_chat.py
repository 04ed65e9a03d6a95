from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rmexp.errors import ConfigError, DataError
from rmexp.models.chat import Chat, check_on_overlength
from rmexp.schema import Message

PROMPT = (Message("user", "Is 7 prime?"),)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


def encode(tokenizer: Any, response: str, template: str | None = None, length: int = 8192) -> Any:
    (encoded,) = Chat(tokenizer, length, template).encode([(PROMPT, response)])
    assert encoded is not None
    return encoded


def test_text_is_the_template_as_it_comes(tokenizer: Any) -> None:
    """All ids are those of the rendered text, tokenized without special tokens."""
    messages = [
        {"role": "user", "content": PROMPT[0].content},
        {"role": "assistant", "content": "Yes."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(encode(tokenizer, "Yes.").ids) == expected


@pytest.mark.parametrize(
    ("template", "response", "read"),
    [
        # ChatML: the end-of-turn token is read, the line break behind it is not.
        (None, "Yes, it is.", "Yes, it is.<|im_end|>"),
        (None, "", "<|im_end|>"),
        # A response may hold the end-of-turn token itself: all of it is read.
        (None, "A<|im_end|>\nB", "A<|im_end|>\nB<|im_end|>"),
        # A template may strip the response; the blank before its end-of-turn token is in the turn.
        (LLAMA2, "  Yes. ", " Yes. <|im_end|>"),
        # Without any special token: the response alone, with what its last token spans.
        (PLAIN, "Yes", " Yes"),
    ],
)
def test_response_span(tokenizer: Any, template: str | None, response: str, read: str) -> None:
    encoded = encode(tokenizer, response, template)
    assert tokenizer.decode(encoded.ids[encoded.start : encoded.end]) == read


def test_a_token_across_the_border_belongs_to_the_response(tokenizer: Any) -> None:
    r"""A response that begins with "\n" merges with the header's line break into one token."""
    merged = encode(tokenizer, "\nYes")
    read = tokenizer.decode(merged.ids[merged.start : merged.end])
    assert read.endswith("Yes<|im_end|>")
    assert read.startswith("\n")


def test_left_truncation_keeps_the_response_and_shifts_its_span(tokenizer: Any) -> None:
    whole = encode(tokenizer, "Yes, it is.")
    assert not whole.truncated
    cut = encode(tokenizer, "Yes, it is.", length=len(whole.ids) - 5)
    assert cut.truncated
    assert len(cut.ids) == len(whole.ids) - 5
    assert cut.ids[0] == whole.ids[0] == tokenizer.bos_token_id
    assert cut.ids[1:] == whole.ids[6:]
    assert cut.ids[cut.start : cut.end] == whole.ids[whole.start : whole.end]


def test_truncation_into_the_response(tokenizer: Any) -> None:
    """Five tokens are left: the BOS and the last four, of which the last is no response token."""
    cut = encode(tokenizer, "one two three four five six", length=5)
    assert (cut.start, cut.end) == (1, 4)
    assert tokenizer.decode(cut.ids[1:4]) == " five six<|im_end|>"


def test_overlength_drop_and_error(tokenizer: Any) -> None:
    chat = Chat(tokenizer, 40)
    long, short = "word " * 40, "Yes."
    dropped, kept = chat.encode([(PROMPT, long), (PROMPT, short)], "drop")
    assert dropped is None
    assert kept is not None
    with pytest.raises(DataError, match=r"longer than model\.max_length=40.*on_overlength=drop"):
        chat.encode([(PROMPT, long)], "error")
    with pytest.raises(ConfigError, match="left_truncate, drop, error"):
        check_on_overlength("right")


def test_a_doubled_bos_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="two BOS"):
        encode(tokenizer, "Yes", "{{ bos_token }}{{ bos_token }}" + PLAIN)


def test_no_template_is_refused(smollm2: Path) -> None:
    bare = AutoTokenizer.from_pretrained(smollm2)
    bare.chat_template = None
    with pytest.raises(ConfigError, match=r"no chat template.*model\.chat_template"):
        Chat(bare, 100)
    assert Chat(bare, 100, PLAIN).encode([(PROMPT, "Yes")])[0] is not None


def test_a_template_that_refuses_a_conversation_is_named(tokenizer: Any) -> None:
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"turns user, assistant .*roles must alternate"):
        encode(tokenizer, "Yes", strict)


def test_a_template_without_the_response_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="leaves the response out"):
        encode(tokenizer, "Yes", "{{ messages[0]['content'] }}")


def test_a_response_that_changes_the_prompt_has_no_place(tokenizer: Any) -> None:
    """Its tokens are there, for a head; a response of the probe's length changes nothing."""
    changing = "{{ messages[-1]['content'] | length }}" + PLAIN
    moved = encode(tokenizer, "Yes", changing)
    assert not moved.placed
    assert moved.start == moved.end == len(moved.ids)
    assert tokenizer.decode(moved.ids) == "3user: Is 7 prime?\nassistant: Yes\n"
    assert encode(tokenizer, "A" * 13, changing).placed
    cut = encode(tokenizer, "Yes", changing, length=4)
    assert (len(cut.ids), cut.truncated, cut.placed) == (4, True, False)


def test_today_is_a_setting(tokenizer: Any) -> None:
    """Llama 3.1 asks for a variable, Llama 3.2 for the clock: neither looks at the calendar."""
    for asks in ("{{ date_string }}", "{{ strftime_now('%d %b %Y') }}"):
        chat = Chat(tokenizer, 100, asks + PLAIN)
        (row,) = chat.encode([(PROMPT, "Yes")])
        assert row is not None
        assert tokenizer.decode(row.ids).startswith("26 Jul 2024user")
        other = Chat(tokenizer, 100, asks + PLAIN, date="5 Aug 2025")
        (row,) = other.encode([(PROMPT, "Yes")])
        assert row is not None
        assert tokenizer.decode(row.ids).startswith("05 Aug 2025user")
        assert (chat.dated, other.dated) == ("26 Jul 2024", "05 Aug 2025")
        assert chat.identity() != other.identity()
    plain = [Chat(tokenizer, 100, PLAIN, date) for date in ("26 Jul 2024", "5 Aug 2025")]
    assert plain[0].identity() == plain[1].identity()
    assert plain[0].dated is None
    with pytest.raises(ConfigError, match=r"model\.date=2024-07-26: write it as 26 Jul 2024"):
        Chat(tokenizer, 100, PLAIN, "2024-07-26")


def test_one_of_several_templates_is_chosen_by_name(smollm2: Path) -> None:
    several = AutoTokenizer.from_pretrained(smollm2)
    several.chat_template = {"rag": "rag " + PLAIN, "tool_use": "tools " + PLAIN}
    with pytest.raises(ConfigError, match=r"no default: choose one, .*NAME, of rag, tool_use$"):
        Chat(several, 100)
    assert Chat(several, 100, "rag").template == "rag " + PLAIN
    several.chat_template["default"] = PLAIN
    assert Chat(several, 100).template == PLAIN


def test_a_template_that_fails_is_named(tokenizer: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"template of .* cannot be rendered \(TypeError: .*\): give another one"
    ):
        encode(tokenizer, "Yes", "{{ messages + 1 }}")


def test_a_prompt_ends_with_what_begins_the_answer(tokenizer: Any) -> None:
    ids = Chat(tokenizer, 100).encode_prompt(PROMPT)
    assert tokenizer.decode(ids).endswith("Is 7 prime?<|im_end|>\n<|im_start|>assistant\n")


def test_order_is_kept_over_many_chunks(tokenizer: Any) -> None:
    conversations = [(PROMPT, f"answer {i}") for i in range(2500)]
    encoded = Chat(tokenizer, 100).encode(conversations)
    assert len(encoded) == 2500
    for i in (0, 1023, 1024, 2499):
        row = encoded[i]
        assert row is not None
        assert tokenizer.decode(row.ids[row.start : row.end]) == f"answer {i}<|im_end|>"
