"""Model folders: what a fingerprint covers, what is refused, and each mistake in one line."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scored_rows import score
from tiny import tiny_adapter, tiny_encoder, tiny_policy, tiny_scalar, tiny_tokenizer
from transformers import RobertaConfig, RobertaForSequenceClassification

from rmexp.errors import ConfigError, RmexpError
from rmexp.models.chat import Encoded
from rmexp.models.checkpoints import find_checkpoint
from rmexp.schema import Example, Message
from rmexp.scoring.rewards import ImplicitReward, open_reward
from rmexp.scoring.score import Settings
from rmexp.training.classifier import load_classifier

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
PAIRS = [Example("a", "s", (Message("user", "one?"),), ("yes",), ("no",))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tiny_scalar(folder / "scalar")
    tiny_policy(folder / "policy")
    return folder


@pytest.fixture
def scalar(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "scalar", tmp_path / "scalar"))


@pytest.fixture
def policy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "policy", tmp_path / "policy"))


def edit(path: Path, **values: Any) -> None:
    """Change a JSON file's values; None takes a key out."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def shard(folder: Path) -> None:
    """Divide the weights into two files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {name: SECOND if at > 5 else FIRST for at, name in enumerate(names)}
    for file in set(places.values()):
        save_file({n: weights[n] for n in names if places[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def rewards(store: Path, **options: Any) -> list[float]:
    (row,) = score(open_reward(**options), PAIRS, Settings(store)).scored
    return [*row.chosen, *row.rejected]


def one_line(path: Path, **options: Any) -> str:
    """Open and load a folder, which must fail in one line."""
    with pytest.raises(RmexpError) as caught:
        open_reward(path=str(path), **options).columns[0].load(2)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Fingerprints


def test_a_plain_folder_keeps_the_fingerprint_that_stores_were_written_with(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    found = find_checkpoint(str(tmp_path)).fingerprint(tmp_path / "cache")
    assert found == "1e193099e8be163c2bedf7b3f7fa4672a00067fc39e7aa69b2a38d147da3c928"


def test_shards_keep_it_too_and_the_index_decides_which(scalar, tmp_path):
    expected = rewards(tmp_path / "store", path=str(scalar))
    shard(scalar)
    assert rewards(tmp_path / "store", path=str(scalar)) == expected  # found in the store
    before = find_checkpoint(str(scalar)).fingerprint(tmp_path)
    index = json.loads((scalar / INDEX).read_text())
    (scalar / INDEX).write_text(json.dumps(index, indent=3))
    assert find_checkpoint(str(scalar)).fingerprint(tmp_path) == before
    weights = load_file(scalar / SECOND)
    save_file({name: weight + 1 for name, weight in weights.items()}, scalar / SECOND)
    assert find_checkpoint(str(scalar)).fingerprint(tmp_path) != before


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", rf"{INDEX} holds no JSON object"),
        ('{"weight_map": 3}', rf"{INDEX} has no weight_map"),
        ('{"weight_map": {"a": 3}}', "no weight_map of names"),
        ('{"weight_map": {"a": "FIRST"}}', rf"{SECOND} is not read by {INDEX}"),
        ('{"weight_map": {"a": "FIRST", "b": "SECOND", "c": "third"}}', "lacks third"),
        ('{"weight_map": {"a": "../FIRST", "b": "SECOND"}}', r"lacks \.\./model-00001"),
        ('{"weight_map": {"a": "/x/FIRST", "b": "SECOND"}}', r"lacks /x/model-00001"),
        (None, r"lacks model\.safetensors"),
    ],
)
def test_an_index_that_is_not_of_the_folders_files(index, words, scalar):
    shard(scalar)
    (scalar / INDEX).unlink()
    if index is not None:
        (scalar / INDEX).write_text(index.replace("FIRST", FIRST).replace("SECOND", SECOND))
    with pytest.raises(RmexpError, match=words):
        find_checkpoint(str(scalar))


def test_weights_that_are_a_link_out_of_the_folder(made, scalar, tmp_path):
    (scalar / "model.safetensors").unlink()
    (scalar / "model.safetensors").symlink_to(made / "scalar" / "model.safetensors")
    with pytest.raises(ConfigError, match=r"is a link to .*out of the model folder"):
        find_checkpoint(str(scalar))
    snapshot, blobs = (
        tmp_path / "models--a--b" / "snapshots" / "0f",
        tmp_path / "models--a--b/blobs",
    )
    shutil.copytree(made / "scalar", snapshot)
    blobs.mkdir()
    (snapshot / "model.safetensors").rename(blobs / "1234")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    there = find_checkpoint(str(snapshot)).fingerprint(tmp_path)
    assert there == find_checkpoint(str(made / "scalar")).fingerprint(tmp_path)


def test_own_code_is_in_the_fingerprint_where_it_is_trusted(scalar, tmp_path):
    def fingerprints() -> list[str]:
        found = (find_checkpoint(str(scalar), trust_remote_code=trust) for trust in (False, True))
        return [each.fingerprint(tmp_path) for each in found]

    (scalar / "modeling_own.py").write_text("SCALE = 1\n")
    plain, trusted = fingerprints()
    (scalar / "modeling_own.py").write_text("SCALE = 2\n")
    assert fingerprints()[0] == plain
    assert fingerprints()[1] != trusted
    edit(scalar / "config.json", auto_map={"AutoModel": "someone/else--modeling_own.Own"})
    find_checkpoint(str(scalar))
    with pytest.raises(ConfigError, match=r"auto_map in .*config\.json names code in another"):
        find_checkpoint(str(scalar), trust_remote_code=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer_config.json", '{"model_max_length": 5}'),
        ("chat_template.jinja", "{{ messages[-1]['content'] }}"),
        ("rmexp.json", '{"reader": "scalar"}'),
    ],
)
def test_what_makes_tokens_and_rewards_is_told_apart_from_the_weights(name, text, scalar, tmp_path):
    """A stored number is found by its token ids, a finished run by all that it read."""
    before = open_reward(path=str(scalar)).fingerprints(tmp_path)
    (scalar / name).write_text(text)
    after = open_reward(path=str(scalar)).fingerprints(tmp_path)
    assert after["rmexp.weights"] == before["rmexp.weights"]
    assert after["rmexp.reading"] != before["rmexp.reading"]


# Weights


def test_weights_that_the_model_does_not_read(scalar, policy):
    edit(scalar / "config.json", num_hidden_layers=1)
    assert "has 9 weights that LlamaForSequenceClassification does not read" in one_line(scalar)
    edit(policy / "config.json", num_hidden_layers=1)
    assert "model.layers.1." in one_line(policy)
    with pytest.raises(ConfigError, match="9 weights that LlamaForSequenceClassification does not"):
        load_classifier(find_checkpoint(str(policy)), tiny_tokenizer(), "float32", None, 0)


def test_a_head_that_is_not_asked_for_is_not_passed_over(scalar):
    edit(scalar / "config.json", tie_word_embeddings=True)
    assert "score.weight" in one_line(scalar, reader="implicit")


def test_weights_that_make_no_difference_are_left_unread(scalar, tmp_path):
    expected = rewards(tmp_path / "one", path=str(scalar))
    weights = load_file(scalar / "model.safetensors")
    idle = {
        "lm_head.weight": torch.ones(3, 32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.attn.masked_bias": torch.ones(1),
        "model.embeddings.position_ids": torch.arange(4),
    }
    save_file(weights | idle, scalar / "model.safetensors")
    assert rewards(tmp_path / "two", path=str(scalar)) == pytest.approx(expected)


def test_training_may_leave_the_head_of_the_language_model(policy):
    model = load_classifier(find_checkpoint(str(policy)), tiny_tokenizer(), "float32", None, 0)
    assert model.score.out_features == 1


@pytest.mark.parametrize("make", [tiny_scalar, tiny_policy, tiny_encoder])
@pytest.mark.parametrize(("value", "kind"), [(torch.nan, "NaN"), (torch.inf, "infinite")])
def test_weights_that_are_no_numbers_are_called_so(make, value, kind, tmp_path):
    folder = make(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = sorted(name for name in weights if "layer" in name and weights[name].dim() == 2)[0]
    weights[name][0, :2] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    message = one_line(folder)
    assert f"holds {kind} weights (2 of {weights[name].numel()} in {name}" in message


def test_weights_of_other_sizes_are_named(scalar):
    edit(scalar / "config.json", intermediate_size=60)
    assert "model.layers.0.mlp.down_proj.weight is [32, 64], it must be [32, 60]" in one_line(
        scalar
    )


# What a folder says of itself


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"length_normalised": "no"},
            "length_normalised: 'no', which is no value for it: give true",
        ),
        ({"length_normalised": 0}, "length_normalised: 0, which is no value for it: give true or"),
        ({"beta": 0}, "beta: 0, which is no value for it: give one above 0"),
        ({"beta": "0.1"}, "beta: '0.1', which is no value for it: give a number or null"),
        ({"beta": True}, "beta: True, which is no value for it: give a number or null"),
        ({"reader": "guess"}, "reader: 'guess', which is no value for it: give scalar or implicit"),
        ({"reader": None}, "reader: None, which is no value for it: give scalar or implicit"),
        ({"reference": "base"}, "reference: 'base', which is no value for it: give an object or"),
        ({"reference": {"path": 3}}, "path: 3, which is no value for it: give a text"),
        (
            {"reference": {"path": "a", "_target_": "os.system"}},
            "the key reference._target_, which",
        ),
        ({"reference": {"path": "a", "home": "b"}}, "the key home, which is not known"),
        ({"reference": {"path": "${oc.env:HOME}"}}, "nothing is interpolated there"),
        ({"betta": 1}, "the key betta, which is not known"),
    ],
)
def test_rmexp_json_is_checked(content, words, policy):
    (policy / "rmexp.json").write_text(json.dumps({"reader": "implicit", **content}))
    message = one_line(policy)
    assert words in message
    assert "rmexp.json" in message


@pytest.mark.parametrize(
    ("option", "words"),
    [({"beta": 0}, "model.beta=0"), ({"length_normalised": "no"}, "model.length_normalised=no")],
)
def test_the_same_settings_are_checked_where_they_are_given(option, words, policy):
    with pytest.raises(ConfigError, match=words):
        open_reward(path=str(policy), **option)


def test_own_code_of_a_reference_runs_only_if_the_reference_was_given(made, policy):
    noted = {"reader": "implicit", "reference": {"path": str(made / "policy")}}
    (policy / "rmexp.json").write_text(json.dumps(noted))
    reward = open_reward(path=str(policy), trust_remote_code=True)
    assert [each.checkpoint.trust_remote_code for each in reward.columns] == [True, False]
    given = {"path": str(made / "policy")}
    reward = open_reward(path=str(policy), trust_remote_code=True, reference=given)
    assert [each.checkpoint.trust_remote_code for each in reward.columns] == [True, True]


def test_one_label_without_a_name_is_one_output(scalar, tmp_path):
    expected = rewards(tmp_path / "one", path=str(scalar))
    edit(scalar / "config.json", id2label=None, label2id=None, num_labels=1)
    assert rewards(tmp_path / "two", path=str(scalar)) == expected
    assert find_checkpoint(str(scalar)).outputs == 1


def test_roberta_counts_its_positions_from_behind_the_pad_token(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 10**9
    tokenizer.save_pretrained(tmp_path)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=40,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    reward = open_reward(path=str(tmp_path))
    assert reward.chat.max_length == 40 - tokenizer.pad_token_id - 1 == 37
    longest = Encoded(tuple(range(10, 47)), 0, 37)
    assert len(reward.columns[0].load(tokenizer.pad_token_id)([longest])) == 1


def test_a_token_beyond_the_embedding_is_named(scalar, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    tokenizer.chat_template += "<|extra|>"
    tokenizer.save_pretrained(scalar)
    with pytest.raises(
        ConfigError, match=r"makes the token '<\|extra\|>' \(number \d+\), and \S+ has"
    ):
        rewards(tmp_path / "store", path=str(scalar))


def test_a_policy_that_gained_a_pad_token_reads_the_same_tokens(made, policy, tmp_path):
    """Another file, a longer vocabulary, and the same ids of every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(policy)
    assert tokenizer.get_vocab() != tiny_tokenizer().get_vocab()
    reference = {"path": str(made / "policy")}
    assert rewards(tmp_path / "store", path=str(policy), reference=reference) == [0, 0]
    # A token that splits the text at hand, though no other.
    tokenizer.add_tokens(["one?"])
    tokenizer.save_pretrained(policy)
    with pytest.raises(
        ConfigError, match="another tokenizer than the policy, which makes other tok"
    ):
        rewards(tmp_path / "store", path=str(policy), reference=reference)


# LoRA adapters


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_an_adapter_with_a_score_head_lies_on_its_base(settings, made, tmp_path):
    folder = tmp_path / "adapter"
    expected = tiny_adapter(made / "policy", folder, "SEQ_CLS", **settings)
    checkpoint = find_checkpoint(str(folder))
    assert (checkpoint.folder, checkpoint.adapter) == (made / "policy", folder)
    reward = open_reward(path=str(folder))
    assert reward.description == "scalar head"
    ids = torch.arange(5, 25).unsqueeze(0)
    found = reward.columns[0].load(2)([Encoded(tuple(ids[0].tolist()), 0, 20)])
    with torch.inference_mode():
        assert found == pytest.approx([expected(ids).logits.item()], rel=1e-4)


def test_an_adapter_of_a_policy_has_its_base_as_reference(made, tmp_path):
    folder = tmp_path / "adapter"
    expected = tiny_adapter(made / "policy", folder, "CAUSAL_LM")
    reference = {"path": str(made / "policy")}
    reward = open_reward(path=str(folder), reference=reference, beta=1.0)
    assert isinstance(reward, ImplicitReward)
    (ids,) = reward.chat.encode([(PAIRS[0].prompt, "yes")])
    assert ids is not None
    logps, ref_logps = (column.load(2)([ids])[0] for column in reward.columns)
    with torch.inference_mode():
        rows = expected(torch.tensor([ids.ids])).logits[0].log_softmax(-1)
    by_hand = sum(float(rows[at - 1, ids.ids[at]]) for at in range(ids.start, ids.end))
    assert logps == pytest.approx(by_hand, rel=1e-4)
    assert abs(logps - ref_logps) > 0.1


def test_base_and_adapter_in_one_folder_are_both_read(made, policy, tmp_path):
    tiny_adapter(made / "policy", tmp_path / "adapter", "CAUSAL_LM")
    apart = rewards(tmp_path / "store", path=str(tmp_path / "adapter"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "adapter" / name, policy)
    assert rewards(tmp_path / "store", path=str(policy)) == pytest.approx(apart)
    checkpoint = find_checkpoint(str(policy))
    before = checkpoint.fingerprint(tmp_path)
    assert before != find_checkpoint(str(made / "policy")).fingerprint(tmp_path)
    edit(policy / "adapter_config.json", lora_alpha=16)
    assert checkpoint.fingerprint(tmp_path) != before
    assert rewards(tmp_path / "store", path=str(policy)) != pytest.approx(apart)


def test_the_base_may_be_given(made, tmp_path):
    folder = tmp_path / "adapter"
    tiny_adapter(made / "policy", folder, "CAUSAL_LM")
    edit(folder / "adapter_config.json", base_model_name_or_path="/gone/base")
    with pytest.raises(ConfigError, match=r"base of the adapter .*/gone/base.*model\.base=FOLDER"):
        open_reward(path=str(folder))
    assert open_reward(path=str(folder), base=str(made / "policy")).columns[0].load(2) is not None
    with pytest.raises(ConfigError, match=r"holds no adapter_config\.json, so it has no base"):
        open_reward(path=str(made / "policy"), base=str(made / "policy"))
    other = tiny_policy(tmp_path / "other")
    edit(other / "config.json", num_hidden_layers=1)
    weights = load_file(other / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1." not in name}
    save_file(kept, other / "model.safetensors", {"format": "pt"})
    message = one_line(folder, base=str(other))
    assert "does not fit its base" in message
    edit(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ConfigError, match="names no base"):
        open_reward(path=str(folder))


def test_of_several_adapters_one_has_to_be_given(made, tmp_path):
    both = tmp_path / "both"
    for name in ("helpful", "harmless"):
        tiny_adapter(made / "policy", both / name, "SEQ_CLS")
    assert "holds the adapters harmless, helpful: give one of them" in one_line(both)
    assert open_reward(path=str(both / "helpful")).description == "scalar head"


def test_the_code_of_a_base_runs_only_if_the_base_was_given(made, tmp_path):
    folder = tmp_path / "adapter"
    tiny_adapter(made / "policy", folder, "CAUSAL_LM")
    with pytest.raises(ConfigError, match="name it yourself"):
        find_checkpoint(str(folder), trust_remote_code=True)
    found = find_checkpoint(str(folder), trust_remote_code=True, base=str(made / "policy"))
    assert found.trust_remote_code


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type: 'IA3', which is no value for it: give LORA"),
        ({"r": "4"}, "r: '4', which is no value for it: give a whole number"),
        ({"r": 0}, "does not fit its base"),
        ({"target_modules": 3}, "target_modules: 3, which is no value for it: give a list or a"),
        ({"megatron_config": {"a": 1}}, "megatron_config is in use, which is not known here"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is in use"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa', which is no value for it"),
        ({"alpha_pattern": {"nowhere": 1}}, "does not fit its base"),
        ({"target_modules": ["k_proj"]}, "does not fit its base"),
        ({"r": 8}, "does not fit its base"),
    ],
)
def test_an_adapter_is_read_as_data(values, words, made, tmp_path):
    folder = tmp_path / "adapter"
    tiny_adapter(made / "policy", folder, "CAUSAL_LM")
    edit(folder / "adapter_config.json", **values)
    assert words in one_line(folder)
    if "does not fit" not in words:  # which only the weights tell
        with pytest.raises(RmexpError, match=re.escape(words)):
            open_reward(path=str(folder))


def test_a_template_of_another_name_is_refused_with_those_there_are(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = dict.fromkeys(("default", "rag"), tokenizer.chat_template)
    tokenizer.save_pretrained(tiny_scalar(tmp_path / "model"))
    assert open_reward(path=str(tmp_path / "model"), chat_template="rag").chat is not None
    with pytest.raises(ConfigError, match=r"=tool: cannot read it .*own are default, rag$"):
        open_reward(path=str(tmp_path / "model"), chat_template="tool")


def test_training_goes_on_from_an_adapter(made, tmp_path):
    tiny_adapter(made / "policy", tmp_path / "adapter", "SEQ_CLS")
    checkpoint = find_checkpoint(str(tmp_path / "adapter"))
    model = load_classifier(checkpoint, tiny_tokenizer(), "float32", None, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    expected = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(model.score.weight, expected["base_model.model.score.weight"])


# Damaged files


def damaged(content: dict[str, Any]) -> Iterator[str]:
    """Yield texts that are no such file."""
    text = json.dumps(content)
    yield from ("", text[: len(text) // 2], "[]", "3", "null", "[" * 5000, "\ufeff" + text)
    for key in (key for key, value in content.items() if value is not None):
        for value in ("x", -1, [{"a": 1}]):
            if value != content[key]:
                yield json.dumps({**content, key: value})


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "tokenizer.json", "rmexp.json", "adapter_config.json"],
)
def test_a_damaged_file_is_one_line_with_its_name(name, made, tmp_path):
    folder = tmp_path / "model"
    if name == "adapter_config.json":
        tiny_adapter(made / "policy", folder, "SEQ_CLS")
    else:
        shutil.copytree(made / "scalar", folder)
        (folder / "rmexp.json").write_text('{"reader": "scalar", "beta": null}')
    good = (folder / name).read_text(encoding="utf-8")
    messages, tried = [], 0
    for text in damaged(json.loads(good)):
        (folder / name).write_text(text, encoding="utf-8")
        tried += 1
        try:
            open_reward(path=str(folder)).columns[0].load(2)
        except RmexpError as error:
            messages.append(str(error))
    assert len(messages) > tried / 3
    assert not [message for message in messages if "\n" in message or str(folder) not in message]
    assert sum(name in message for message in messages) > 0.9 * len(messages)


def test_weights_with_a_header_that_lies(scalar):
    path = scalar / "model.safetensors"
    data = path.read_bytes()
    for broken in (b"", data[:7], b"\xff" * 8 + data[8:], data[:-5], data[:8] + b"[]" + data[10:]):
        path.write_bytes(broken)
        assert f"{path} is damaged" in one_line(scalar)


def test_a_config_may_not_name_other_weights(scalar):
    edit(scalar / "config.json", transformers_weights="other.safetensors")
    assert "transformers_weights" in one_line(scalar)
