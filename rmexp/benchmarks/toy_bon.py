"""Best of n from a model's own samples on toy prompts, which a program judges: real policies."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from rmexp.benchmarks.bon100 import BestOf100
from rmexp.benchmarks.toy import PROMPTS
from rmexp.data import toy
from rmexp.errors import ConfigError
from rmexp.files import make_cache, replace
from rmexp.models.embedded import NAME, smollm2
from rmexp.schema import Dataset

log = logging.getLogger(__name__)

_NEW_TOKENS = 96
_BATCH = 64


class ToyBestOfN(BestOf100):
    """SmolLM2's own responses to toy prompts, with 1 recorded for a right and 0 for a wrong one.

    `best_of/<n>` is then how often that policy is right which samples n responses and answers with
    the one that the reward model ranks first. The prompts are the last `prompts` of each domain in
    `bench=toy`: with a `limit` there that leaves them out, the two have no prompt in common. The
    responses are sampled once a machine and kept in the user's cache folder.

    Raises ConfigError at once for options that cannot work.
    """

    name = "toy_bon"
    headline = "toy_bon/spearman"

    def __init__(
        self,
        *,
        prompts: int = 10,
        responses: int = 8,
        temperature: float = 0.7,
        domains: Sequence[str] = toy.DOMAINS,
        seed: int = 0,
    ):
        super().__init__()
        for name, value, most in (("prompts", prompts, PROMPTS), ("responses", responses, 1000)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(f"bench.{name}={value}: give a whole number from 1 to {most}")
        if not isinstance(temperature, int | float) or not temperature > 0:
            raise ConfigError(f"bench.temperature={temperature}: give a number above 0")
        if isinstance(domains, str) or not domains or not set(domains) <= set(toy.DOMAINS):
            raise ConfigError(
                f"bench.domains={domains}: give a list of one or more of {', '.join(toy.DOMAINS)}"
            )
        held_out = toy.examples("test", PROMPTS)
        self._asked = {
            domain: [
                example.prompt[0].content
                for example in held_out
                if example.subset.partition("-")[0] == domain
            ][-prompts:]
            for domain in domains
        }
        self._responses, self._temperature, self._seed = responses, float(temperature), seed

    def load(self) -> Dataset:
        """Sample the responses where that was not done before, and read them."""
        self._path = str(self._sampled())
        data = super().load()
        rates = []
        for domain in self._asked:
            rewards = [r for e in data.examples if e.subset == domain for r in e.recorded]
            rates.append(f"{domain} {sum(rewards) / len(rewards):.0%}")
        log.info("of %s's responses are right: %s", NAME, ", ".join(rates))
        return data

    def _sampled(self) -> Path:
        """Return the file of the responses, one row a prompt, in the schema of `bon100`."""
        settings = [NAME, self._asked, self._responses, self._temperature, self._seed, _NEW_TOKENS]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        path = make_cache() / f"toy-responses-{digest}.jsonl"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                asked = [(domain, text) for domain, some in self._asked.items() for text in some]
                answers = sample(
                    smollm2(),
                    [text for _, text in asked],
                    self._responses,
                    self._temperature,
                    self._seed,
                )
                rows = [
                    {"prompt": text, "subset": domain}
                    | {f"response_{i}": answer for i, answer in enumerate(own, start=1)}
                    | {
                        f"reward_{i}": int(toy.is_right(text, answer))
                        for i, answer in enumerate(own, start=1)
                    }
                    for (domain, text), own in zip(asked, answers, strict=True)
                ]
                replace(path, "".join(json.dumps(row) + "\n" for row in rows))
        return path


def sample(
    folder: Path, prompts: Sequence[str], count: int, temperature: float, seed: int
) -> list[list[str]]:
    """Return `count` responses of a chat model to each prompt, in fp32 on the CPU.

    They are drawn from the whole distribution at `temperature` and end after 96 tokens at most.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in prompts
        for _ in range(count)
    ]
    answers: list[str] = []
    torch.manual_seed(seed)
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer(
            texts[start : start + _BATCH],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        )
        made = model.generate(
            **batch,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            max_new_tokens=_NEW_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )
        new = made[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
        log.info("%s: %d/%d responses sampled", folder.name, len(answers), len(texts))
    return [answers[at : at + count] for at in range(0, len(answers), count)]
