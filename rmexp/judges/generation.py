"""Batched generation: the only place where a judge runs a model's weights."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from rmexp.judges.engine import Answer, Sampling
from rmexp.models import loading
from rmexp.models.memory import enough_memory
from rmexp.scoring.columns import TOO_LARGE, Column


def load_generator(column: Column) -> Any:
    """Load a causal language model's weights, from safetensors only."""
    with enough_memory(f"{column.checkpoint.name} in {column.dtype}", TOO_LARGE):
        return loading.load_policy(
            column.checkpoint, column.dtype, column.attention, column.device, column.device_map
        )


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
) -> list[Answer]:
    """Continue the prompts' token ids, padded on the left, each up to its end-of-turn token.

    Temperature 0 takes the likeliest token; another draws with `seed` from the whole vocabulary, or
    from its top_p. What else a model's own settings say (top_k, penalties) is left out.
    """
    device = str(model.get_input_embeddings().weight.device)
    own = model.generation_config
    stops = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops)
    pad = stops[0]  # never seen: it is masked before the prompt and cut off behind the answer
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=device)
    mask = torch.tensor(
        [[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device
    )
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=sampling.max_tokens,
        do_sample=sampling.temperature != 0,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=stops,
        pad_token_id=pad,
        **(drawn if sampling.temperature else {}),
    )
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        made = model.generate(ids, attention_mask=mask, generation_config=settings)
    answers = []
    for row, prompt in zip(made[:, width:].tolist(), prompts, strict=True):
        length = next((at for at, token in enumerate(row) if token in stops), None)
        kept = row if length is None else row[:length]
        text = tokenizer.decode(kept, skip_special_tokens=True)
        ended, count = ("length", len(row)) if length is None else ("stop", length + 1)
        answers.append(Answer(text, len(prompt), count, ended))
    return answers
