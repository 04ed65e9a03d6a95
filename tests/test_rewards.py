"""Rewards equal what plain transformers gives for the same text, alone and in fp32."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scored_rows import score
from tiny import tiny_encoder, tiny_policy, tiny_scalar
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rmexp.errors import ConfigError
from rmexp.schema import Example, Message, ScoredExample
from rmexp.scoring import rewards as rewards_file
from rmexp.scoring.rewards import ImplicitReward, ScalarReward, implicit_rewards, open_reward
from rmexp.scoring.score import Settings

ANSWERS = ("It is 42.", "42", "", "Well, 17 and 25 make 41, I think.\n\nOr **43**.")


def examples(n: int = 3) -> list[Example]:
    """Prompts of different lengths, two answers right and two wrong, some shared."""
    return [
        Example(
            str(i), "s", (Message("user", "What is 17 + 25? " * (i + 1)),), ANSWERS[:2], ANSWERS[2:]
        )
        for i in range(n)
    ]


def flat(scored: list[ScoredExample]) -> np.ndarray:
    return np.array([reward for row in scored for reward in (*row.chosen, *row.rejected)])


def rewards(path: Path, tmp_path: Path, batch_tokens: int = 4096, **options: Any) -> np.ndarray:
    reward = open_reward(path=str(path), **options)
    settings = Settings(tmp_path / f"store{batch_tokens}", batch_tokens=batch_tokens)
    return flat(score(reward, examples(), settings).scored)


def texts(tokenizer: Any) -> list[tuple[str, str]]:
    """Each conversation's text, and the same up to where the response begins."""
    pairs = []
    for example in examples():
        turns = [{"role": m.role, "content": m.content} for m in example.prompt]
        header = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for response in example.responses:
            turn = {"role": "assistant", "content": response}
            pairs.append((tokenizer.apply_chat_template([*turns, turn], tokenize=False), header))
    return pairs


@torch.inference_mode()
def plain_scalar(path: Path) -> np.ndarray:
    """One text at a time, so that the library's own pooling sees no padding."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    found = []
    for text, _ in texts(tokenizer):
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        found.append(float(model(input_ids=ids).logits[0, 0]))
    return np.array(found)


@torch.inference_mode()
def plain_logps(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Summed log-probabilities of the response and its end-of-turn token, and their number."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    sums, lengths = [], []
    for text, header in texts(tokenizer):
        text = text.removesuffix("\n")  # behind the end-of-turn token
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        start = len(tokenizer(header, add_special_tokens=False)["input_ids"])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        read = logps.gather(-1, ids[0, 1:, None])[start - 1 :, 0]
        sums.append(float(read.sum()))
        lengths.append(len(read))
    return np.array(sums), np.array(lengths)


@pytest.mark.parametrize(
    "make", [tiny_scalar, lambda folder: tiny_scalar(folder, "qwen2"), tiny_encoder]
)
def test_scalar_equals_transformers(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    expected = plain_scalar(path)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(rewards(path, tmp_path), expected, rtol=0, atol=1e-4)


def test_implicit_equals_transformers(tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path / "policy", seed=1)
    reference = tiny_policy(tmp_path / "reference", seed=2)
    (logps, lengths), (ref_logps, _) = plain_logps(policy), plain_logps(reference)
    alone = rewards(policy, tmp_path)
    np.testing.assert_allclose(alone, logps, rtol=0, atol=1e-4)
    per_token = rewards(policy, tmp_path, length_normalised=True)
    np.testing.assert_allclose(per_token, logps / lengths, rtol=0, atol=1e-4)
    both = rewards(policy, tmp_path, reference={"path": str(reference)}, beta=0.5)
    np.testing.assert_allclose(both, 0.5 * (logps - ref_logps), rtol=0, atol=1e-4)


def test_smollm2_equals_transformers(smollm2: Path, tmp_path: Path) -> None:
    logps, _ = plain_logps(smollm2)
    found = rewards(smollm2, tmp_path, batch_tokens=200)
    np.testing.assert_allclose(found, logps, rtol=0, atol=1e-4)


def test_smollm2_with_a_head_equals_transformers(smollm2: Path, tmp_path: Path) -> None:
    """Its pad token is its end-of-turn token: the library alone would pool one token early."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(smollm2, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.02)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(tmp_path / "model")
    # The text ends in a line break behind the end-of-turn token, so the library pools rightly here.
    np.testing.assert_allclose(
        rewards(tmp_path / "model", tmp_path, batch_tokens=150),
        plain_scalar(tmp_path / "model"),
        rtol=0,
        atol=1e-4,
    )


@pytest.mark.parametrize("make", [tiny_scalar, tiny_policy, tiny_encoder])
def test_rewards_do_not_depend_on_the_batch(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    alone, together = rewards(path, tmp_path, batch_tokens=1), rewards(path, tmp_path)
    np.testing.assert_allclose(
        alone, together, rtol=2e-7, atol=1e-5
    )  # an ulp of 200 nats is 1.5e-5


def test_an_implicit_reward_of_one_model_is_zero(tmp_path: Path) -> None:
    path = tiny_policy(tmp_path / "policy")
    assert not rewards(path, tmp_path, reference={"path": str(path)}).any()


def test_swapping_chosen_and_rejected_flips_the_margin(tmp_path: Path) -> None:
    reward = open_reward(path=str(tiny_scalar(tmp_path / "model")))
    settings = Settings(tmp_path / "store")
    ordered = examples()
    swapped = [replace(e, chosen=e.rejected, rejected=e.chosen) for e in ordered]
    for one, other in zip(
        score(reward, ordered, settings).scored,
        score(reward, swapped, settings).scored,
        strict=True,
    ):
        assert (one.chosen, one.rejected) == (other.rejected, other.chosen)
        assert one.chosen != one.rejected


def test_implicit_rewards_by_hand() -> None:
    """0.5 * (-2 + 3) = 0.5; per token of 4: 0.125; log pi alone -2, or -0.5 a token."""
    logps, ref_logps, lengths = np.array([-2.0]), np.array([-3.0]), np.array([4])
    assert implicit_rewards(logps, ref_logps, lengths, 0.5, False) == [0.5]
    assert implicit_rewards(logps, ref_logps, lengths, 0.5, True) == [0.125]
    assert implicit_rewards(logps, None, lengths, 0.5, False) == [-2.0]
    assert implicit_rewards(logps, None, lengths, 0.5, True) == [-0.5]


def test_the_folder_says_how_it_is_read(tmp_path: Path) -> None:
    scalar, policy = tiny_scalar(tmp_path / "scalar"), tiny_policy(tmp_path / "policy")
    assert isinstance(open_reward(path=str(scalar)), ScalarReward)
    assert open_reward(path=str(policy)).description == "implicit, without reference, sum"
    (policy / "rmexp.json").write_text(
        '{"reader": "implicit", "beta": 0.25, "length_normalised": true, '
        f'"reference": {{"name": "base", "path": "{tiny_policy(tmp_path / "base")}"}}}}'
    )
    read = open_reward(path=str(policy))
    assert isinstance(read, ImplicitReward)
    assert (read.beta, read.length_normalised, len(read.columns)) == (0.25, True, 2)
    assert read.description == "implicit, reference base, beta 0.25, mean per token"
    without = open_reward(path=str(policy), reference={"path": None}, length_normalised=False)
    assert without.description == "implicit, without reference, sum"
    assert isinstance(open_reward(path=str(scalar), reader="implicit"), ImplicitReward)


def test_bf16_keeps_the_head_in_fp32(tmp_path: Path) -> None:
    """Rewards of a bf16 head would all be bf16 numbers."""
    found = rewards(tiny_scalar(tmp_path / "model"), tmp_path, dtype="bfloat16")
    assert not np.array_equal(found, torch.tensor(found).bfloat16().double().numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "no/such/folder"}, "no such folder"),
        ({"reader": "guess"}, "auto, scalar or implicit"),
        ({"dtype": "int8"}, "float32, bfloat16, float16"),
        ({"max_length": 0}, "positive number of tokens"),
        ({"max_length": "long"}, "positive number of tokens"),
        ({"chat_template": "nowhere.jinja"}, "cannot read it"),
        ({"chat_template": "{{ 1 / 0 }}"}, r"cannot be rendered \(ZeroDivisionError"),
        ({"chat_template": "{% for %}"}, r"cannot be rendered \(TemplateSyntaxError"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
def test_settings_that_cannot_work(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = str(tiny_scalar(tmp_path / "model"))
    with pytest.raises(ConfigError, match=message):
        open_reward(**{"path": path, **options})


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        open_reward(path=str(empty))
    policy = tiny_policy(tmp_path / "policy")
    (policy / "model.safetensors").rename(policy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no \*\.safetensors file but pytorch_model\.bin"):
        open_reward(path=str(policy))


def test_a_missing_head_is_refused(tmp_path: Path) -> None:
    reward = open_reward(path=str(tiny_policy(tmp_path / "policy")), reader="scalar")
    with pytest.raises(ConfigError, match=r"head of 2 outputs"):
        score(reward, examples(), Settings(tmp_path / "store"))
    config = tmp_path / "policy" / "config.json"
    config.write_text(config.read_text().replace("{", '{"id2label": {"0": "reward"},', 1))
    with pytest.raises(ConfigError, match=r"lacks 1 of the weights .*score\.weight"):
        score(reward, examples(), Settings(tmp_path / "store"))


def test_a_reference_with_other_tokens_is_refused(smollm2: Path, tmp_path: Path) -> None:
    path = str(tiny_policy(tmp_path / "policy"))
    with pytest.raises(ConfigError, match="another tokenizer"):
        open_reward(path=path, reference={"path": str(smollm2)})


def test_remote_code_needs_a_pinned_commit() -> None:
    with pytest.raises(ConfigError, match=r"model\.revision=<40 hex>"):
        open_reward(path="some/model", trust_remote_code=True, revision="main")


def test_a_hub_name_that_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot get no-such/model from the hub"):
        open_reward(path="no-such/model")


def test_flash_attention_is_refused_in_one_line_where_it_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And opened where it can: on a GPU, with its package, in 16 bits."""
    path = str(tiny_scalar(tmp_path / "model"))
    options: dict[str, Any] = {"path": path, "attention": "flash_attention_2"}
    with pytest.raises(ConfigError, match=r"attention=flash_attention_2: this model is on the CPU"):
        open_reward(**options, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rewards_file, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the package flash-attn is not installed; without "):
        open_reward(**options)
    monkeypatch.setattr(rewards_file, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"in 16 bits, give model\.dtype=bfloat16 with it"):
        open_reward(**options, dtype="float32")
    assert open_reward(**options, dtype="bfloat16").columns[0].attention == "flash_attention_2"


def test_fused_is_true_or_false(tmp_path: Path) -> None:
    fused: Any = "maybe"
    with pytest.raises(ConfigError, match=r"model\.fused=maybe: use true or false"):
        open_reward(path=str(tiny_scalar(tmp_path / "model")), fused=fused)
