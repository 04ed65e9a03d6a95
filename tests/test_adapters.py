"""Each head on a tiny random model, against its definition written out a row at a time."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_policy, tiny_scalar, tiny_tokenizer
from torch.nn.functional import relu, selu, softmax
from transformers import Gemma2Config, Gemma2Model, LlamaConfig, LlamaModel, MistralConfig
from transformers import MistralModel as Mistral

from rmexp.errors import ConfigError, ScoreError
from rmexp.models.adapters import ADAPTERS, find_adapter
from rmexp.models.chat import Encoded
from rmexp.models.checkpoints import Checkpoint, find_checkpoint
from rmexp.models.forks import Fork
from rmexp.models.forward import scalar_forward, scalar_rewards
from rmexp.models.loading import load_scalar
from rmexp.scoring.columns import Column
from rmexp.scoring.rewards import open_reward

WIDTH, HIDDEN, OBJECTIVES, QUANTILES = 16, 8, 5, 3
LLAMA_GATE = (128009, 128006, 78191, 128007, 271)
GEMMA_GATE = (107, 108, 106, 2516, 108)
REWARD_TOKEN = 77
ROWS = ((7, 8, 9), (11, 12, 13, 14, 15, 16, 17, 18), (21, 22, 23, 24, 25))
Weights = dict[str, torch.Tensor]
# (hidden states of one sequence, its ids, the head's weights) -> the reward
Definition = Callable[[torch.Tensor, tuple[int, ...], Weights], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A published head: its weights' shapes, and the reward that its source defines."""

    adapter: str
    shapes: dict[str, tuple[int, ...]]
    reward: Definition
    backbone: str = "llama"
    prefix: str = "model."
    gate: tuple[int, ...] | None = None
    config: tuple[tuple[str, object], ...] = ()

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """The conversations, with the end of two user turns where the head has a gate."""
        if self.gate is None:
            return ROWS
        return tuple((5, *self.gate, 6, *self.gate, *row) for row in ROWS)


def gate_input(hidden, ids, gate):
    starts = [at for at in range(len(ids)) if ids[at : at + len(gate)] == gate]
    assert len(starts) == 2
    return hidden[starts[-1]]


def armorm(hidden, ids, w):
    x = gate_input(hidden, ids, LLAMA_GATE)
    for layer in range(3):
        x = relu(w[f"gating.layers.{layer}.weight"] @ x + w[f"gating.layers.{layer}.bias"])
    x = w["gating.layers.3.weight"] @ x + w["gating.layers.3.bias"]
    gates = softmax(x / 10, 0) * w["gating.logit_scale"][0]
    rewards = w["regression_layer.weight"] @ hidden[-1]
    return sum(gates[k] * (rewards @ w["reward_transform_matrix"][:, k]) for k in range(OBJECTIVES))


def qrm(linears, norms, gate, temperature, transform):
    def reward(hidden, ids, w):
        x = gate_input(hidden, ids, gate)
        for linear, norm in zip(linears, norms, strict=False):
            x = relu(w[f"gating.layers.{linear}.weight"] @ x)
            name = f"gating.layers.{norm}"
            x = (x - w[f"{name}.running_mean"]) / (w[f"{name}.running_var"] + 1e-5).sqrt()
            x = x * w[f"{name}.weight"] + w[f"{name}.bias"]
        last = f"gating.layers.{linears[-1]}"
        logits = w[f"{last}.weight"] @ x + w[f"{last}.bias"]
        gates = softmax(logits / temperature, 0) * w["gating.logit_scale"][0]
        quantiles = w["regression_layer.weight"] @ hidden[-1]
        means = torch.stack(
            [quantiles[k * QUANTILES : (k + 1) * QUANTILES].mean() for k in range(OBJECTIVES)]
        )
        return gates @ (means @ w["reward_transform_matrix"] if transform else means)

    return reward


def qrm_shapes(linears, norms, transform):
    shapes = {
        "regression_layer.weight": (OBJECTIVES * QUANTILES, WIDTH),
        "gating.logit_scale": (1,),
        f"gating.layers.{linears[-1]}.weight": (OBJECTIVES, HIDDEN),
        f"gating.layers.{linears[-1]}.bias": (OBJECTIVES,),
    }
    for number, linear in enumerate(linears[:-1]):
        shapes[f"gating.layers.{linear}.weight"] = (HIDDEN, HIDDEN if number else WIDTH)
    for norm in norms:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"gating.layers.{norm}.{part}"] = (HIDDEN,)
        shapes[f"gating.layers.{norm}.num_batches_tracked"] = ()
    if transform:
        shapes["reward_transform_matrix"] = (OBJECTIVES, OBJECTIVES)
    return shapes


def urm(hidden, ids, w):
    last = hidden[-1]
    x = selu(w["weights.fc.0.weight"] @ last + w["weights.fc.0.bias"])
    x = selu(w["weights.fc.2.weight"] @ x + w["weights.fc.2.bias"])
    weights = w["weights.fc.4.weight"] @ x + w["weights.fc.4.bias"]
    outputs = w["score.weight"] @ last  # mean, variance, mean, variance, ...
    return sum(weights[k] * outputs[2 * k] for k in range(OBJECTIVES))


def linear(name):
    return lambda hidden, ids, w: w[name] @ hidden[-1]


def mlp(name):
    def reward(hidden, ids, w):
        x = relu(w[f"{name}.0.weight"] @ hidden[-1] + w[f"{name}.0.bias"])
        return w[f"{name}.2.weight"] @ x + w[f"{name}.2.bias"]

    return reward


def mlp_shapes(name, inner):
    return {
        f"{name}.0.weight": (inner, WIDTH),
        f"{name}.0.bias": (inner,),
        f"{name}.2.weight": (1, inner),
        f"{name}.2.bias": (1,),
    }


V1, V1_NORMS = (0, 3, 6, 9), (2, 5, 8)
LATER, LATER_NORMS = (0, 4, 8, 11), (2, 6, 10)
CASES = {
    "ArmoRM": Case(
        "gated_objectives",
        {
            "regression_layer.weight": (OBJECTIVES, WIDTH),
            "reward_transform_matrix": (OBJECTIVES, OBJECTIVES),
            "gating.logit_scale": (1,),
            "gating.layers.0.weight": (HIDDEN, WIDTH),
            "gating.layers.0.bias": (HIDDEN,),
            "gating.layers.1.weight": (HIDDEN, HIDDEN),
            "gating.layers.1.bias": (HIDDEN,),
            "gating.layers.2.weight": (HIDDEN, HIDDEN),
            "gating.layers.2.bias": (HIDDEN,),
            "gating.layers.3.weight": (OBJECTIVES, HIDDEN),
            "gating.layers.3.bias": (OBJECTIVES,),
        },
        armorm,
        gate=LLAMA_GATE,
    ),
    "QRM-Llama": Case(
        "gated_objectives",
        qrm_shapes(V1, V1_NORMS, True),
        qrm(V1, V1_NORMS, LLAMA_GATE, 3.0, True),
        gate=LLAMA_GATE,
        config=(("gating_temperature", 3), ("num_quantiles", QUANTILES)),
    ),
    "QRM-Gemma": Case(
        "gated_objectives",
        qrm_shapes(LATER, LATER_NORMS, False),
        qrm(LATER, LATER_NORMS, GEMMA_GATE, 1.0, False),
        backbone="gemma2",
        gate=GEMMA_GATE,
    ),
    "URM": Case(
        "weighted_means",
        {
            "score.weight": (2 * OBJECTIVES, WIDTH),
            "weights.fc.0.weight": (WIDTH, WIDTH),
            "weights.fc.0.bias": (WIDTH,),
            "weights.fc.2.weight": (WIDTH, WIDTH),
            "weights.fc.2.bias": (WIDTH,),
            "weights.fc.4.weight": (OBJECTIVES, WIDTH),
            "weights.fc.4.bias": (OBJECTIVES,),
        },
        urm,
    ),
    "GRM": Case("grm", mlp_shapes("v_head.summary", HIDDEN), mlp("v_head.summary")),
    "GRM, one layer": Case(
        "grm_linear",
        {"v_head.summary.weight": (1, WIDTH), "v_head.summary.bias": (1,)},
        lambda hidden, ids, w: w["v_head.summary.weight"] @ hidden[-1] + w["v_head.summary.bias"],
    ),
    "Eurus": Case(
        "eurus",
        {"regression_head.weight": (1, WIDTH)},
        linear("regression_head.weight"),
        backbone="mistral",
    ),
    "Starling": Case(
        "starling", {"v_head.weight": (1, WIDTH)}, linear("v_head.weight"), prefix="transformer."
    ),
    "INF-ORM": Case("inf_orm", mlp_shapes("score", WIDTH), mlp("score")),
}


def backbone(kind: str, vocabulary: int = 128) -> torch.nn.Module:
    config, model, more = {
        "llama": (LlamaConfig, LlamaModel, {}),
        "mistral": (MistralConfig, Mistral, {}),
        "gemma2": (Gemma2Config, Gemma2Model, {"head_dim": 8}),
    }[kind]
    made = model(
        config(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            attn_implementation="eager",
            **more,
        )
    )
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def head_weights(shapes: dict[str, tuple[int, ...]]) -> Weights:
    weights: Weights = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(9)
        elif name.endswith("running_var"):
            weights[name] = torch.rand(shape) + 0.5
        else:
            weights[name] = torch.randn(shape)
    return weights


def save(folder: Path, config: dict[str, object], weights: Weights) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    return find_checkpoint(str(folder))


def make(case: Case, folder: Path) -> tuple[Checkpoint, torch.nn.Module, Weights]:
    torch.manual_seed(0)
    model = backbone(case.backbone, max(case.gate or (127,)) + 1)
    head = head_weights(case.shapes)
    weights = {f"{case.prefix}{name}": value for name, value in model.state_dict().items()}
    # The authors' own classes; what they are called plays no part.
    config = model.config.to_dict() | {"architectures": ["TheirOwn"], **dict(case.config)}
    return save(folder, config, weights | head), model, head


def score(checkpoint: Checkpoint, rows, dtype="float32", device_map=None) -> list[float]:
    model = load_scalar(checkpoint, dtype, None, "cpu", device_map)
    forward = scalar_forward(model, None)
    return forward([Encoded(tuple(row), 0, len(row)) for row in rows])


@pytest.mark.parametrize("name", CASES)
def test_reward_is_what_the_source_defines_whatever_the_batch(name, tmp_path):
    case = CASES[name]
    checkpoint, model, head = make(case, tmp_path)
    with torch.inference_mode():
        expected = [
            float(case.reward(model(torch.tensor([row])).last_hidden_state[0], row, head))
            for row in case.rows
        ]
    assert max(expected) - min(expected) > 0.01
    adapter = find_adapter(checkpoint)
    assert adapter is not None
    assert adapter.name == case.adapter
    assert score(checkpoint, case.rows) == pytest.approx(expected, rel=1e-5, abs=1e-4)
    alone = [score(checkpoint, [row])[0] for row in case.rows[:2]]
    assert alone == pytest.approx(expected[:2], rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_packed_row_gives_the_same_rewards(name, tmp_path):
    """Of two conversations that share all but their ends, gates in what they share."""
    case = CASES[name]
    checkpoint, _, _ = make(case, tmp_path)
    forward = scalar_forward(load_scalar(checkpoint, "float32", None, "cpu"), None)
    begin = tuple(case.rows[0])
    rows = [Encoded(ids, 0, len(ids)) for ids in (begin, (*begin, 7, 9), tuple(case.rows[1]))]
    alone = [forward([row])[0] for row in rows]
    if forward.obstacle is not None:
        assert forward.obstacle in ("its attention is eager", "it caps its attention's logits")
    packed = forward(rows, [Fork(len(begin) - 1, (1, 0)), Fork(0, (2,))])
    assert packed == pytest.approx(alone, rel=1e-5, abs=1e-4)
    assert alone[0] != alone[1]


def test_every_adapter_is_covered():
    tested = {case.adapter for case in CASES.values()} | {"internlm2"}
    assert tested == {adapter.name for adapter in ADAPTERS}
    assert len(CASES) == 9


@pytest.mark.parametrize("name", CASES)
def test_a_weight_too_few_or_too_many_is_refused(name, tmp_path):
    case = CASES[name]
    checkpoint, _, _ = make(case, tmp_path)
    path = checkpoint.folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"extra.weight": torch.ones(2)}, path)
    with pytest.raises(ConfigError, match=r"unexpected: extra\.weight"):
        load_scalar(checkpoint, "float32", None, "cpu")
    backbone_name = f"{case.prefix}layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != backbone_name}, path)
    with pytest.raises(ConfigError, match=r"lacks 1 of the weights"):
        load_scalar(checkpoint, "float32", None, "cpu")
    others = set(case.shapes) - find_adapter(checkpoint).marks  # without those it is another model
    for gone in others:
        save_file({k: v for k, v in weights.items() if k != gone}, path)
        with pytest.raises(ConfigError, match=r"missing|has no layer|are not the gate's"):
            load_scalar(checkpoint, "float32", None, "cpu")
    assert bool(others) == (len(case.shapes) > 1)


def test_a_layer_of_the_wrong_shape_is_refused(tmp_path):
    checkpoint, _, _ = make(CASES["URM"], tmp_path)
    path = checkpoint.folder / "model.safetensors"
    save_file(load_file(path) | {"weights.fc.2.weight": torch.ones(WIDTH, WIDTH + 1)}, path)
    with pytest.raises(ConfigError, match="other shapes than a weighted_means head"):
        load_scalar(checkpoint, "float32", None, "cpu")


def test_a_language_models_own_head_beside_it_is_left_unread(tmp_path):
    checkpoint, _, _ = make(CASES["GRM"], tmp_path)
    expected = score(checkpoint, ROWS)
    path = checkpoint.folder / "model.safetensors"
    save_file(load_file(path) | {"lm_head.weight": torch.ones(4, WIDTH)}, path)
    assert score(checkpoint, ROWS) == expected


def test_a_conversation_without_the_gates_tokens_is_an_error(tmp_path):
    checkpoint, _, _ = make(CASES["ArmoRM"], tmp_path)
    with pytest.raises(ScoreError, match=r"2 of 3 conversations lack the end of a user turn"):
        score(checkpoint, [CASES["ArmoRM"].rows[0], ROWS[1], ROWS[2]])
    with pytest.raises(ScoreError, match="on_overlength=drop"):
        score(checkpoint, [(1, 2)])


def test_the_head_stays_in_fp32_on_a_bfloat16_backbone(tmp_path):
    checkpoint, _, head = make(CASES["INF-ORM"], tmp_path)
    model = load_scalar(checkpoint, "bfloat16", None, "cpu")
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}
    assert {p.dtype for p in model.base_model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.head.state_dict()["score.0.weight"], head["score.0.weight"])
    assert len(set(score(checkpoint, ROWS, "bfloat16"))) == len(ROWS)


def internlm2(folder: Path, **config: object) -> tuple[Checkpoint, LlamaModel, Weights]:
    """Save a Llama under InternLM2's names, queries, keys and values fused head by head."""
    torch.manual_seed(0)
    model = backbone("llama")
    theirs = {
        "embed_tokens": "tok_embeddings",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
    }
    weights: Weights = {}
    for name, value in model.state_dict().items():
        for old, new in theirs.items():
            name = name.replace(old, new)
        weights[f"model.{name}"] = value
    size = WIDTH // 4
    for layer in range(2):
        q, k, v = (
            weights.pop(f"model.layers.{layer}.self_attn.{part}_proj.weight") for part in "qkv"
        )
        rows = []
        for group in range(2):  # two query heads share a key-value head
            rows += [q[(2 * group + head) * size :][:size] for head in range(2)]
            rows += [k[group * size :][:size], v[group * size :][:size]]
        weights[f"model.layers.{layer}.attention.wqkv.weight"] = torch.cat(rows)
    head = {"v_head.weight": torch.randn(1, WIDTH)}
    settings = model.config.to_dict() | {
        "model_type": "internlm2",
        "architectures": ["InternLM2ForRewardModel"],
        "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
        "reward_token_id": REWARD_TOKEN,
    }
    return save(folder, settings | config, weights | head), model, head


def test_internlm2_is_llama_read_at_its_reward_token(tmp_path):
    checkpoint, model, head = internlm2(tmp_path)
    rows = (*ROWS, (31, 32, REWARD_TOKEN))
    with torch.inference_mode():
        expected = []
        for row in (*((*row, REWARD_TOKEN) for row in ROWS), rows[-1]):
            hidden = model(torch.tensor([row])).last_hidden_state[0]
            expected.append(float(head["v_head.weight"] @ hidden[-1]))
    assert score(checkpoint, rows) == pytest.approx(expected, abs=1e-4)
    assert score(checkpoint, rows[:1]) == pytest.approx(expected[:1], abs=1e-4)


def test_internlm2_as_published_stretches_its_positions_beyond_its_length_only(tmp_path):
    plain, _, _ = internlm2(tmp_path / "plain")
    scaling = {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 10000.0}
    config = {**plain.config, **scaling}
    config.pop("rope_parameters")
    stretched, _, _ = internlm2(tmp_path / "stretched")
    (stretched.folder / "config.json").write_text(json.dumps(config))
    assert score(stretched, ROWS) == pytest.approx(score(plain, ROWS), abs=1e-5)


def test_internlm2_without_its_reward_token_is_refused(tmp_path):
    checkpoint, _, _ = internlm2(tmp_path, reward_token_id=None)
    with pytest.raises(ConfigError, match="names no reward_token_id"):
        load_scalar(checkpoint, "float32", None, "cpu")


def test_a_plain_classifier_and_remote_code_have_no_adapter(tmp_path):
    plain = find_checkpoint(str(tiny_scalar(tmp_path / "plain")))
    assert find_adapter(plain) is None
    checkpoint, _, _ = make(CASES["GRM"], tmp_path / "grm")
    own = Checkpoint(checkpoint.folder, "grm", trust_remote_code=True)
    assert find_adapter(own) is None


def test_the_store_tells_adapters_apart(tmp_path):
    grm, _, _ = make(CASES["GRM"], tmp_path / "grm")
    plain = find_checkpoint(str(tiny_scalar(tmp_path / "plain")))
    heads = [
        Column(checkpoint, "score", "float32", None, "cpu").identity(tmp_path)["head"]
        for checkpoint in (grm, plain, Checkpoint(grm.folder, "grm", trust_remote_code=True))
    ]
    assert heads == ["grm float32", "float32", "own code"]


def test_open_reward_reads_an_adapted_model_as_scalar(tmp_path):
    checkpoint, _, _ = make(CASES["Eurus"], tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    reward = open_reward(path=str(tmp_path))
    assert reward.description == "scalar head"
    forward = reward.columns[0].load(pad=2)
    assert forward([Encoded(ROWS[0], 0, 3)]) == score(checkpoint, ROWS[:1])


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_a_device_map_gives_the_same_rewards(device_map, tmp_path):
    grm, _, _ = make(CASES["GRM"], tmp_path / "grm")
    fused, _, _ = internlm2(tmp_path / "internlm2")
    rows = [tuple(i % 100 for i in row) for row in ROWS]
    for checkpoint in (grm, fused, find_checkpoint(str(tiny_scalar(tmp_path / "plain")))):
        spread = score(checkpoint, rows, device_map=device_map)
        assert spread == pytest.approx(score(checkpoint, rows), abs=1e-5)
    tiny_policy(tmp_path / "policy")
    batch = [Encoded(row, 1, len(row)) for row in rows]
    logps = [
        open_reward(path=str(tmp_path / "policy"), device_map=place).columns[0].load(2)(batch)
        for place in (None, device_map)
    ]
    assert logps[1] == pytest.approx(logps[0], abs=1e-5)


def test_a_device_beside_a_device_map_is_refused(tmp_path):
    tiny_scalar(tmp_path)
    with pytest.raises(ConfigError, match="give one of the two"):
        open_reward(path=str(tmp_path), device="cpu", device_map="auto")


@pytest.mark.parametrize(("shape", "good"), [((3,), True), ((3, 1), True), ((3, 2), False)])
def test_own_code_must_give_one_number_to_a_response(shape, good):
    class Theirs(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(
                logits=torch.arange(float(torch.Size(shape).numel())).view(shape)
            )

    ids, lengths = torch.ones(3, 4, dtype=torch.long), torch.tensor([4, 3, 2])
    if good:
        assert scalar_rewards(Theirs(), ids, lengths).tolist() == [0.0, 1.0, 2.0]
    else:
        with pytest.raises(ConfigError, match="Theirs gives 2 numbers to a response"):
            scalar_rewards(Theirs(), ids, lengths)
