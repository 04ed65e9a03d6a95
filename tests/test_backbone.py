"""Packed rows are run where they are exact, and nowhere else."""

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.mistral import modeling_mistral

from rmexp.models import backbone
from rmexp.models.backbone import enable_packing, exact_length, hidden_states, token_budget
from rmexp.models.chat import Encoded
from rmexp.models.forks import Fork, find_forks
from rmexp.models.forward import logps_forward
from rmexp.models.packing import NAME, Packing, attention

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
PACKED: dict[str, dict[str, Any]] = {
    "Llama": SIZES,
    "Qwen2": SIZES,
    "Qwen3": {**SIZES, "head_dim": 8},
    "Mistral": {**SIZES, "sliding_window": None},
    "Phi3": SIZES,
    "Gemma": {**SIZES, "head_dim": 8},
    "Olmo2": SIZES,
    "GPT2": GPT2,
    "GPTNeoX": SIZES,
}
PLAIN: dict[str, tuple[dict[str, Any], str]] = {
    "Bloom": ({"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "is eager"),
    "Gemma2": ({**SIZES, "head_dim": 8}, "its attention is eager"),
    "GptOss": ({**SIZES, "head_dim": 8, "num_local_experts": 4}, "its attention is eager"),
    "Lfm2": ({**SIZES, "layer_types": ["conv", "full_attention"]}, "layers of conv"),
    "Llama4Text": ({**SIZES, "head_dim": 8}, "layers of chunked_attention"),
    "Mamba": ({"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2}, "is eager"),
    "Qwen3Next": (SIZES, "an attention of its own"),
    "RecurrentGemma": ({**SIZES, "lru_width": 32, "head_dim": 8}, "layers of linear_attention"),
}


def made(kind: str, config: dict[str, Any], auto: Any = AutoModelForCausalLM) -> Any:
    torch.manual_seed(0)
    model = auto.from_config(getattr(transformers, f"{kind}Config")(**config))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def rows(lengths: tuple[int, ...] = (9, 30, 4)) -> list[Encoded]:
    """Return responses to a prompt of 40 tokens, and one to another prompt."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 97, (count,), generator=draw).tolist())

    prompt = tokens(40)
    found = [Encoded(prompt + tokens(n), 40, 40 + n) for n in lengths]
    return [*found, Encoded(tokens(25), 11, 25)]


@pytest.mark.parametrize("kind", PACKED)
def test_packed_log_probabilities_are_the_librarys(kind: str) -> None:
    """Each response alone through the model as the library runs it, against one packed row."""
    model = made(kind, PACKED[kind])
    expected = []
    with torch.inference_mode():
        for row in rows():
            ids = torch.tensor([row.ids])
            logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            expected.append(
                float(logps.gather(-1, ids[0, 1:, None])[row.start - 1 : row.end - 1].sum())
            )
    forward = logps_forward(model)
    assert forward.obstacle is None
    assert forward.packs >= 256
    forks = find_forks(rows())
    assert max(fork.shared for fork in forks) == 40
    assert forward(rows(), forks) == pytest.approx(expected, rel=5e-7, abs=1e-5)
    assert forward(rows()) == pytest.approx(expected, rel=5e-7, abs=1e-5)


@pytest.mark.parametrize("kind", PLAIN)
def test_others_are_not_packed_and_say_why(kind: str) -> None:
    config, reason = PLAIN[kind]
    model = made(kind, config, AutoModel)
    before = model.config._attn_implementation
    assert reason in str(enable_packing(model))
    assert exact_length(model) == 0
    assert model.config._attn_implementation == before


def test_a_given_attention_is_used() -> None:
    model = made("Llama", SIZES)
    model.config._attn_implementation = "flash_attention_2"  # which is as exact in packed rows
    assert backbone._obstacle(model, model.config) is None
    model = made("Llama", SIZES)
    model.set_attn_implementation("eager")
    assert enable_packing(model) == "its attention is eager"
    model = made("Gemma2", PLAIN["Gemma2"][0])
    model.config._attn_implementation = "sdpa"  # which the library itself refuses
    assert enable_packing(model) == "it caps its attention's logits"


BEYOND = [Fork(40, (0, 1)), Fork(40, (2, 3)), Fork(0, (4,))]


def alone(model: Any) -> torch.Tensor:
    """Return the library's states of sequences within a window of 45 tokens and beyond it."""
    with torch.inference_mode():
        ids = [torch.tensor([row.ids]) for row in rows((5, 4, 10, 30))]
        return torch.stack([model.base_model(one).last_hidden_state[0, -1] for one in ids])


def together(model: Any) -> torch.Tensor:
    """Return the same states from one run of all of them."""
    batch = [torch.tensor(row.ids) for row in rows((5, 4, 10, 30))]
    lengths = torch.tensor([len(row) for row in batch])
    ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
    with torch.inference_mode():
        return hidden_states(model, ids, lengths, BEYOND)(torch.arange(5), lengths - 1)


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Gemma3Text"])
def test_sequences_beyond_a_sliding_window_share_nothing_and_are_not_padded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts: list[Packing] = []
    monkeypatch.setattr(
        backbone, "Packing", lambda *parts: layouts.append(Packing(*parts)) or layouts[-1]
    )
    sizes = {**SIZES, "head_dim": 8, "sliding_window": 45}
    if kind != "Mistral":
        sizes |= {"layer_types": ["sliding_attention", "full_attention"]}
        sizes |= {"use_sliding_window": True}
    model = made(kind, sizes)
    expected = alone(model)
    assert enable_packing(model) is None
    assert exact_length(model) == 45
    torch.testing.assert_close(together(model), expected, rtol=0, atol=1e-5)
    assert layouts[-1].tokens == (40 + 5 + 4) + 50 + 70 + 25
    assert layouts[-1].longest_sharing == 45


def test_layers_that_do_not_tell_of_their_window_run_padded_beyond_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library's mask knows of it in any case."""
    attend = modeling_mistral.MistralAttention.forward

    def forward(module: Any, *parts: Any, **options: Any) -> Any:
        window, module.config.sliding_window = module.config.sliding_window, None
        made = attend(module, *parts, **options)
        module.config.sliding_window = window
        return made

    monkeypatch.setattr(modeling_mistral.MistralAttention, "forward", forward)
    model = made("Mistral", {**SIZES, "sliding_window": 45})
    expected = alone(model)
    assert enable_packing(model) is None
    assert exact_length(model) == 45
    torch.testing.assert_close(together(model), expected, rtol=0, atol=1e-5)
    setattr(model.base_model, backbone._TOLD, True)  # and were they packed, they would differ
    assert (together(model) - expected).abs()[2:4].max() > 1e-2


def test_stretched_positions_bound_the_length() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = made("Llama", {**SIZES, "rope_parameters": rope})
    assert enable_packing(model) is None
    assert exact_length(model) == 256


def test_an_encoder_attends_both_ways() -> None:
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    assert enable_packing(made("Bert", sizes, AutoModel)) == "it attends both ways"


@pytest.mark.parametrize("option", ["softcap", "s_aux", "position_bias"])
def test_an_attention_with_more_to_it_is_refused(option: str) -> None:
    parts = [torch.zeros(1, 2, 3, 4)] * 3
    packing = Packing([Fork(0, (0,))], [3])
    with pytest.raises(ValueError, match=f"packed rows know no {option}"):
        attention(torch.nn.Module(), *parts, None, packing=packing, **{option: 1.0})
    with pytest.raises(ValueError, match="no attention dropout"):
        attention(torch.nn.Module(), *parts, None, packing=packing, dropout=0.1)


def test_attention_dropout_is_not_packed_while_training() -> None:
    model = made("Llama", {**SIZES, "attention_dropout": 0.1})
    assert enable_packing(model) is None
    assert exact_length(model) == float("inf")
    assert exact_length(model.train()) == 0


def test_a_recurrent_layer_that_no_config_names_is_found_by_trying() -> None:
    """A sum over all tokens before, as a hidden state carries it, leaks into the next sequence."""
    model = made("Llama", SIZES)

    def leak(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.1 * output.cumsum(1)

    model.model.layers[0].mlp.register_forward_hook(leak)
    assert enable_packing(model) == "LlamaModel gives other numbers in a packed row"
    assert model.config._attn_implementation == "sdpa"


def test_the_librarys_mask_is_made_for_padded_batches() -> None:
    """With the packing attention in place, a batch with a mask is as it was before."""
    model = made("Qwen2", SIZES)
    ids = torch.randint(5, 97, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
        assert enable_packing(model) is None
        assert model.config._attn_implementation == NAME
        found = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[0, 5:], expected[0, 5:], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6)


def test_the_most_that_a_batch_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more tokens nothing is faster; what a GPU's memory holds is measured by scoring."""
    model = made("Llama", SIZES)
    assert token_budget(model) == (2048, 16384)
    monkeypatch.setattr(backbone, "first_device", lambda model: "cuda:1")
    assert token_budget(model) == (65536, 65536)
