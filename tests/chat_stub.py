"""Chat models that are functions: what a judge's tests put in the place of an engine."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rmexp.judges.engine import Answer, Done, Question, Sampling
from rmexp.judges.llm import ChatJudge
from rmexp.judges.prompts import open_prompts
from rmexp.scoring.score import Settings

_SHOWN = re.compile(r"<(answer\w*)>\n(.*?)\n</\1>", re.DOTALL)


def shown(question: str) -> list[str]:
    """The responses that a question of our own prompts shows, in their order."""
    return [text for _, text in _SHOWN.findall(question)]


@dataclass
class Stub:
    """Answers with `reply(responses, sample)`, and counts what it was asked."""

    reply: Callable[[list[str], int], str]
    ended: str = "stop"
    asked: list[Question] = field(default_factory=list)
    killed_after: int | None = None

    def identity(self, cache: Path) -> dict[str, object]:
        return {"stub": "stub"}

    def answer(
        self, questions: Sequence[Question], sampling: Sampling, settings: Settings, done: Done
    ) -> None:
        for question in questions:
            if len(self.asked) == self.killed_after:
                raise KeyboardInterrupt
            self.asked.append(question)
            text = self.reply(shown(question.text), question.sample)
            done([(question, Answer(text, 10, 2, self.ended))])


def stub_judge(
    reply: Callable[[list[str], int], str] | Stub,
    samples: int = 1,
    undecided: float = 0.5,
    pointwise: bool = False,
) -> ChatJudge:
    engine = reply if isinstance(reply, Stub) else Stub(reply)
    sampling = Sampling(0.0, 1.0, 16, None)
    prompts = open_prompts("brief", "general", "ignore")
    return ChatJudge("stub", engine, prompts, "brief", sampling, samples, undecided, pointwise)


def by_length(responses: list[str], sample: int) -> str:
    """The longer response is better, the second if both are as long."""
    return "[[A]]" if len(responses[0]) > len(responses[1]) else "[[B]]"
