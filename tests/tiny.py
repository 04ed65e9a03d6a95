"""Model folders of a few kilobytes with random weights, made in code in well under a second each.

They render and tokenize as large ones do: a byte-level BPE with tokens for the ends of turns, and a
ChatML-like template that begins with a BOS.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<|im_start|>", "<|im_end|>")
BOS, EOS, PAD, UNK, START, END = SPECIAL
MAX_LENGTH = 1024
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen 3's does, it writes thoughts before each answer, and moves an answer's own there.
THINKING = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set parts = message['content'].split('</think>') %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "<think>{{ parts[0] if parts | length > 1 else '' }}</think>\n"
    "{% endif %}"
    "{{ parts[-1] }}<|im_end|>\n{% endfor %}"
)
_LINES = (
    "system user assistant\n",
    "What is 17 + 25? The answer is 42, because 17 and 25 make 42.",
    "Who came first? Then **three** others followed, and so the last one was here.",
    "def double(value):\n    return 2 * value\n",
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a fast tokenizer that knows every byte; it adds no special tokens of its own."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[START, END],
        model_max_length=MAX_LENGTH,
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_scalar(folder: Path, kind: str = "llama", seed: int = 0, **sizes: int) -> Path:
    """Save a decoder ("llama" or "qwen2") with a score head of one output."""
    config, model = {
        "llama": (LlamaConfig, LlamaForSequenceClassification),
        "qwen2": (Qwen2Config, Qwen2ForSequenceClassification),
    }[kind]
    return _save(folder, model, config, seed, num_labels=1, **_decoder() | sizes)


def tiny_policy(folder: Path, seed: int = 0) -> Path:
    """Save a causal language model."""
    return _save(folder, LlamaForCausalLM, LlamaConfig, seed, **_decoder())


def tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """Save an encoder with a head of one output."""
    return _save(folder, BertForSequenceClassification, BertConfig, seed, num_labels=1, **_sizes())


def tiny_adapter(base: Path, folder: Path, task: str, **settings: Any) -> torch.nn.Module:
    """Save a LoRA adapter with peft, as its users do, and return the model with it.

    `task` is "SEQ_CLS" or "CAUSAL_LM".
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if task == "SEQ_CLS":
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    else:
        model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(
        task_type=task, r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **settings
    )
    adapted = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2, generator=generator)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    return adapted


def _save(folder: Path, model: Any, config: Any, seed: int, **settings: Any) -> Path:
    tokenizer = tiny_tokenizer()
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in (("bos_token_id", BOS), ("eos_token_id", EOS), ("pad_token_id", PAD))
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: PreTrainedModel = model(config(vocab_size=len(tokenizer), **ids, **settings))
        # Of the size that training leaves: the library's initial 0.02 makes all rewards alike.
        for parameter in made.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _decoder() -> dict[str, int]:
    return {**_sizes(), "num_key_value_heads": 2}


def _sizes() -> dict[str, int]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
    }
