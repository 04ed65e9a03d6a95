"""Conversations to token ids: the only place that knows templates, BOS and truncation."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

from rmexp.errors import ConfigError, DataError
from rmexp.models.rendering import DATE, Refusal, Renderer, RenderError
from rmexp.schema import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnOverlength = Literal["left_truncate", "drop", "error"]

# Stands for a response while its place in the template is looked for; nothing strips or merges it.
_PROBE = "RMEXPRESPONSE"
_CHUNK = 1024  # texts handed to the tokenizer at once
# Today, for a template that asks: Llama 3.1's and 3.2's own where there is no clock.
TODAY = "26 Jul 2024"
_renderer = Renderer()


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token ids of a conversation; `ids[start:end]` is the response with its end-of-turn token.

    The ids of `Chat.encode` are an array of 32-bit integers, a seventh of what a tuple takes.
    `truncated` says that tokens were cut off on the left. Where the template changes the prompt for
    this response, its place is not known: `placed` is False, and `start` and `end` are the end.
    """

    ids: Sequence[int]
    start: int
    end: int
    truncated: bool = False
    placed: bool = True


class Chat:
    """Render conversations with a model's template and tokenize them as they come.

    The text is `apply_chat_template(messages + [assistant's response], tokenize=False)`, tokenized
    without adding special tokens, since the template writes its own BOS. `chat_template` is
    another template than the tokenizer's, or the name of one where it has several. `date` is the
    day that a template takes for today. `other` is the reference's tokenizer where that is another
    one: it must make the same tokens of each text.

    Raises ConfigError where the tokenizer has no chat template, or several and no default: there
    is no fallback.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        chat_template: str | None = None,
        date: str = TODAY,
        other: "PreTrainedTokenizerBase | None" = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path} does not tell where its tokens lie in "
                "the text (it is not a fast one): convert it to a tokenizer.json"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.template = _template(tokenizer, chat_template)
        self.date = _date(date)
        self.other = other
        special = {
            token for token, added in tokenizer.added_tokens_decoder.items() if added.special
        }
        self._special = special | set(tokenizer.all_special_ids)
        self._first = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}

    def encode(
        self,
        conversations: Sequence[tuple[tuple[Message, ...], str]],
        on_overlength: OnOverlength = "left_truncate",
    ) -> list[Encoded | None]:
        """Encode each (prompt, response); None stands for one that was dropped as too long.

        Left truncation keeps a BOS (or CLS) and the last tokens. Raises DataError for a
        conversation that the template refuses, and for one that is too long under
        `on_overlength="error"`, ConfigError for a template that fails.
        """
        encoded: list[Encoded | None] = []
        pending = iter(conversations)
        while chunk := list(islice(pending, _CHUNK)):
            texts, spans = zip(*self._render(chunk), strict=True)
            tokens = self.tokenizer(
                list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            if self.other is not None:
                check_same_tokens(texts, tokens["input_ids"], self.other)
            for text, span, ids, offsets in zip(
                texts, spans, tokens["input_ids"], tokens["offset_mapping"], strict=True
            ):
                self._check_bos(ids, text)
                tokens_of = array("i", ids)
                if span is None:
                    whole = Encoded(tokens_of, len(ids), len(ids), placed=False)
                else:
                    whole = Encoded(tokens_of, *self._response(ids, offsets, *span))
                encoded.append(self._fit(whole, text, on_overlength))
        return encoded

    def encode_prompt(self, prompt: Sequence[Message]) -> list[int]:
        """Return the token ids of a prompt and of what begins the assistant's answer."""
        (text,) = self._texts([prompt], add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def text(self, prompt: Sequence[Message], response: str, encoded: Encoded) -> str:
        """Return the text of an encoded conversation, for those who make the tokens again.

        A BOS that the tokenizer writes by itself is left out.
        """
        if encoded.truncated:
            text = str(self.tokenizer.decode(list(encoded.ids), skip_special_tokens=False))
        else:
            (text,) = self._texts([(*prompt, Message("assistant", response))])
        bos = self.tokenizer.bos_token
        if bos and text.startswith(bos):
            made: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
            if made[:2] == [self.tokenizer.bos_token_id] * 2:
                return text.removeprefix(bos)
        return text

    def check(self) -> None:
        """Raise ConfigError for a template that fails whatever the conversation.

        One that refuses the plainest conversation may take others.
        """
        with suppress(DataError):
            self._texts([(Message("user", "Hi"), Message("assistant", "Hello"))])

    @property
    def dated(self) -> str | None:
        """Return the date if the template asks for it."""
        asks = "strftime_now" in self.template or "date_string" in self.template
        return self.date if asks else None

    def identity(self) -> dict[str, object]:
        """Return what determines the texts, besides the conversations."""
        template = hashlib.sha256(self.template.encode()).hexdigest()
        return {"template": template, **({"date": self.dated} if self.dated else {})}

    def _render(
        self, conversations: Sequence[tuple[tuple[Message, ...], str]]
    ) -> Iterator[tuple[str, tuple[int, int] | None]]:
        """Yield each conversation's text and the response's place in it, in characters.

        What surrounds a response is found by rendering the same prompt with a probe. So it does not
        matter whether the template knows a generation prompt, strips responses or adds a preamble.
        The place is None where the response changes what surrounds it.
        """
        prompts = list(dict.fromkeys(prompt for prompt, _ in conversations))
        asked = [(prompt, _PROBE) for prompt in prompts]
        texts = self._texts(
            [
                (*prompt, Message("assistant", response))
                for prompt, response in [*asked, *conversations]
            ]
        )
        frames: dict[tuple[Message, ...], tuple[str, str]] = {}
        for prompt, text in zip(prompts, texts, strict=False):
            header, probe, footer = text.rpartition(_PROBE)
            if not probe:
                raise ConfigError(
                    f"the chat template of {self.tokenizer.name_or_path} leaves the response "
                    "out: give another one as model.chat_template"
                )
            frames[prompt] = header, footer
        for (prompt, _), text in zip(conversations, texts[len(prompts) :], strict=True):
            header, footer = frames[prompt]
            if text.startswith(header) and text.endswith(footer):
                yield text, (len(header), max(len(header), len(text) - len(footer)))
            else:
                yield text, None

    def _texts(
        self, conversations: Sequence[Sequence[Message]], add_generation_prompt: bool = False
    ) -> list[str]:
        """Return each conversation's text.

        Raises DataError for one that the template refuses, ConfigError for a template that fails.
        """
        variables = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "date_string": self.date,
            **self.tokenizer.special_tokens_map,
        }
        turns = [
            [{"role": turn.role, "content": turn.content} for turn in conversation]
            for conversation in conversations
        ]
        name = f"the chat template of {self.tokenizer.name_or_path}"
        try:
            texts = _renderer.render(self.template, turns, variables, self.date)
        except RenderError as error:
            raise ConfigError(
                f"{name} cannot be rendered ({error}): give another one as model.chat_template"
            ) from error
        rendered = []
        for text, conversation in zip(texts, conversations, strict=True):
            if isinstance(text, Refusal):
                roles = ", ".join(turn.role for turn in conversation)
                raise DataError(
                    f"{name} refuses a conversation of the turns {roles} ({text.reason}): give "
                    "another one as model.chat_template"
                )
            rendered.append(text)
        return rendered

    def _check_bos(self, ids: Sequence[int], text: str) -> None:
        bos = self.tokenizer.bos_token_id
        if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
            raise ConfigError(
                f"the text {text[:40]!r} begins with two BOS tokens: mend the chat template of "
                f"{self.tokenizer.name_or_path}, or give another one as model.chat_template"
            )

    def _response(
        self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], first: int, last: int
    ) -> tuple[int, int]:
        """Return the half-open range of the tokens of the text's characters `first` to `last`.

        It reaches to the first special token behind them, which ends the turn; where the template
        writes none, to the last token of the response itself.
        """
        start = next((i for i, (_, stop) in enumerate(offsets) if stop > first), len(ids))
        end = start
        for position in range(start, len(ids)):
            if offsets[position][0] < last:
                end = position + 1
            elif ids[position] in self._special:
                return start, position + 1
        return start, end

    def _fit(self, encoded: Encoded, text: str, on_overlength: OnOverlength) -> Encoded | None:
        excess = len(encoded.ids) - self.max_length
        if excess <= 0:
            return encoded
        if on_overlength == "drop":
            return None
        if on_overlength == "error":
            raise DataError(
                f"a conversation of {len(encoded.ids)} tokens is longer than model.max_length="
                f"{self.max_length} (it begins {text[:60]!r}): leave such ones out with "
                "on_overlength=drop, or cut them with on_overlength=left_truncate"
            )
        kept = list(encoded.ids[:1]) if encoded.ids[0] in self._first else []
        ids = array("i", [*kept, *encoded.ids[excess + len(kept) :]])
        start, end = max(encoded.start - excess, len(kept)), max(encoded.end - excess, 0)
        return Encoded(ids, start, end, truncated=True, placed=encoded.placed)


def unplaced(id: str, response: str) -> str:
    """Return what to say of an example whose log-probability cannot be read."""
    return f"{id}: the chat template changes the prompt for the response {response[:60]!r}"


def refuse_unplaced(bad_rows: Sequence[str], group: str) -> None:
    """Raise DataError if there are such examples; see `unplaced`."""
    if bad_rows:
        raise DataError(
            f"{len(bad_rows)} bad rows have no log-probability ({bad_rows[0]}): leave them out "
            f"with {group}.on_bad_row=skip, or give another template as model.chat_template"
        )


def _template(tokenizer: "PreTrainedTokenizerBase", chosen: str | None) -> str:
    """Return the template's text: the chosen one, or the tokenizer's."""
    own: object = tokenizer.chat_template
    if isinstance(own, dict):
        if (chosen or "default") in own:
            return str(own[chosen or "default"])
        if chosen is None:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path} has several chat templates and no "
                f"default: choose one, model.chat_template=NAME, of {', '.join(map(str, own))}"
            )
    if chosen is not None:
        return chosen
    if not isinstance(own, str):
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template: give the one "
            "that the model was trained with as model.chat_template (a file or its text)"
        )
    return own


def _date(date: object) -> str:
    """Return the date as templates write it."""
    try:
        return datetime.strptime(str(date), DATE).strftime(DATE)
    except ValueError as error:
        raise ConfigError(f"model.date={date}: write it as {TODAY}") from error


def check_same_tokens(
    texts: Sequence[str], ids: Sequence[Sequence[int]], reference: "PreTrainedTokenizerBase"
) -> None:
    """Raise ConfigError for a text of which the reference's tokenizer makes other ids."""
    others: Any = reference(list(texts), add_special_tokens=False, verbose=False)
    for text, ours, theirs in zip(texts, ids, others["input_ids"], strict=True):
        if list(ours) != theirs:
            raise ConfigError(
                f"the reference {reference.name_or_path} has another tokenizer than the policy, "
                f"which makes other tokens of {text[:40]!r}: their log-probabilities cannot be "
                "subtracted; give the model that the policy started from"
            )


def check_on_overlength(value: str) -> OnOverlength:
    """Return `value` if it is one of the ways to treat overlong input, else raise ConfigError."""
    for known in get_args(OnOverlength):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"on_overlength={value}: use one of {', '.join(get_args(OnOverlength))}")
