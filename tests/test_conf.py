"""Every file of the groups of eval_rm and correlate composes and fits its `_target_`."""

import fnmatch
import inspect
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_method
from omegaconf import OmegaConf

from rmexp.benchmarks import ppe, rewardbench, rewardbench2, rmbench, toy
from rmexp.cli import configs  # noqa: F401  registers the resolvers
from rmexp.models.catalogue import NOT_MODELS

CONF = Path(__file__).resolve().parent.parent / "conf"
# The groups, each with a command that has it.
GROUPS = {
    "model": "eval_rm",
    "bench": "eval_rm",
    "tracking": "eval_rm",
    "scores": "correlate",
    "policy": "correlate",
}
CASES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
MODELS = [name for group, name in CASES if group == "model" and name not in NOT_MODELS]
# What only the user knows.
MANDATORY = {
    ("model", "ensemble"): {"members"},
    ("model", "judge"): {"path"},
    ("model", "local"): {"path"},
    ("model", "pairwise"): {"path", "chat_template"},
    ("model", "mlflow"): {"uri"},
    ("model", "recorded"): {"path"},
    ("model", "served"): {"path", "url"},
    ("bench", "preference"): {"path"},
    ("bench", "teacher"): {"path"},
    ("scores", "table"): {"path"},
    ("scores", "mlflow"): {"metrics"},
    ("policy", "table"): {"path"},
}


def composed(*overrides: str, command: str = "eval_rm"):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(command, overrides=list(overrides))


def test_every_file_is_a_case():
    assert len(CASES) == sum(len(list((CONF / group).glob("*.yaml"))) for group in GROUPS)
    assert len([group for group, _ in CASES if group == "model"]) == 59
    assert len([group for group, _ in CASES if group == "bench"]) >= 5
    assert len([group for group, _ in CASES if group == "scores"]) == 9
    assert len([group for group, _ in CASES if group == "policy"]) == 8
    assert set(MANDATORY) <= set(CASES)


@pytest.mark.parametrize(("group", "name"), CASES)
def test_it_composes_and_fits_its_target(group, name):
    given = MANDATORY.get((group, name), set())
    command = GROUPS[group]
    if (group, name) == ("policy", "none"):
        assert not composed("policy=none", command=command).get("policy")
        return
    raw = OmegaConf.to_container(composed(f"{group}={name}", command=command)[group], resolve=False)
    assert {key for key, value in raw.items() if value == "???"} == given
    config = composed(f"{group}={name}", *(f"{group}.{key}=X" for key in given), command=command)
    assert OmegaConf.missing_keys(config) == set()
    values = OmegaConf.to_container(config, resolve=True)[group]
    if group in ("model", "tracking"):
        values.pop("uri", None)  # eval_rm turns a model's into its path; a server's is its own
    if target := values.pop("_target_", None):
        parameters = inspect.signature(get_method(target)).parameters
        inspect.signature(get_method(target)).bind(**values)
        assert set(values) <= set(parameters)
    else:
        assert group == "tracking"


# What the subsets are called, of which a file's comment selects some.
SUBSETS = {
    "bon100": rewardbench.COUNTS,
    "judgebench": ["gpt-4o-2024-05-13/livecodebench", "claude-3-5-sonnet-20240620/livebench-math"],
    "ppe_correctness": ppe.SETS,
    "ppe_preference": ["English/", "English/code+math_prompt"],
    "rewardbench": rewardbench.COUNTS,
    "rewardbench2": rewardbench2.COUNTS,
    "rewardmath": ["Algebra", "Intermediate Algebra"],
    "rmb": ["pairwise/Helpfulness/Chat/Discussion"],
    "rmbench": rmbench.COUNTS,
    "toy": [subset for subsets in toy.DOMAINS.values() for subset in subsets],
}


def test_the_patterns_in_a_benchmarks_file_select_something():
    found = set()
    for path in sorted((CONF / "bench").glob("*.yaml")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if shown := re.fullmatch(r"# Only .* match one of these patterns: (\[.*\])\.", line):
                for pattern in yaml.safe_load(shown[1]):
                    assert fnmatch.filter(SUBSETS[path.stem], pattern), (path.stem, pattern)
                found.add(path.stem)
    assert found == set(SUBSETS)
    assert toy.Toy(include=["math*"]).load().examples


def test_the_settings_that_comments_name_are_there():
    """Every KEY=VALUE in a comment: a choice of a group, or a key of some command's config."""
    files = sorted(CONF.rglob("*.yaml"))
    keys = {}
    for path in files:
        group = path.parent.name if path.parent != CONF else None
        content = OmegaConf.load(path)
        names = {".".join(filter(None, (group, str(key)))) for key in content}
        keys.setdefault(group, set()).update(names)
    top = keys.pop(None)
    known = {name for names in keys.values() for name in names} | top | set(keys)
    seen = 0
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = " ".join(line for line in lines if line.lstrip().startswith("#"))
        for key, value in re.findall(r"(?<![\w.<+])([a-z_]+(?:\.[a-z_]+)*)=([\w./-]*)", comment):
            own = OmegaConf.select(OmegaConf.load(path), key.rpartition(".")[0] or key)
            assert key in known or own is not None, f"{path}: {key}"
            value = value.rstrip(".")
            if key in keys and re.fullmatch(r"[a-z][a-z0-9_]*", value) and value != "glob":
                assert (CONF / key / f"{value}.yaml").exists(), f"{path}: {key}={value}"
            seen += 1
    assert seen > 30


@pytest.mark.parametrize("name", MODELS)
def test_a_models_file_says_what_it_is_and_what_is_not_known(name):
    text = (CONF / "model" / f"{name}.yaml").read_text()
    comment = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    values = yaml.safe_load(text)
    pairwise = "labels" in values
    assert values["defaults"] == ["pairwise" if pairwise else "local", "_self_"]
    assert values["name"] == values["path"].rpartition("/")[2] or values["path"] == "embedded"
    assert pairwise or values["reader"] in ("scalar", "implicit")
    revision = values.get("revision")
    if values["path"] == "embedded":
        return  # fetched as a package of a fixed version
    assert values["dtype"] in ("float32", "bfloat16", "float16")
    if revision is None:
        assert "could be confirmed: pin one" in comment
    else:
        assert re.fullmatch(r"[0-9a-f]{40}", revision)
    assert ("reference" in values) == (values.get("reader") == "implicit")
    if "Gemma 2" in comment:
        assert values["attention"] == "eager"
    if re.search(r"\b70B\b", comment.partition(".")[0]):
        assert values["device_map"] == "auto"


def test_how_many_models_there_are():
    assert len(MODELS) == 52


@pytest.mark.parametrize("name", ["eurus", "starling_34b", "deberta"])
def test_a_template_in_a_file_renders_a_conversation(name):
    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    turns = [("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Four.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    template = composed(f"model={name}").model.chat_template

    def render(upto: int) -> str:
        return tokenizer.apply_chat_template(
            messages[:upto], chat_template=template, tokenize=False
        )

    expected = {
        "eurus": (
            "<s>[INST] One? [/INST] Two.",
            "<s>[INST] One? [/INST] Two.</s>[INST] Three? [/INST] Four.",
        ),
        "starling_34b": (
            "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>",
            "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
            "<|im_start|>user\nThree?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>",
        ),
        "deberta": ("[CLS]One?[SEP]Two.[SEP]", "[CLS]One?\nTwo.\nThree?[SEP]Four.[SEP]"),
    }
    assert (render(2), render(4)) == expected[name]


def test_a_pairs_template_is_the_model_cards():
    from tiny import tiny_tokenizer

    turns = [("user", "One?"), ("assistant", "Two."), ("user", "Three?")]
    pair = [("response_a", "Four."), ("response_b", "Five.\n"), ("assistant", "A")]
    text = tiny_tokenizer().apply_chat_template(
        [{"role": role, "content": content} for role, content in [*turns, *pair]],
        chat_template=composed("model=rlhflow_pair").model.chat_template,
        tokenize=False,
    )
    # The card's context as transformers renders it, in the card's sentence, in Llama 3's format.
    context = "\n\n<turn> user\n One?\n<turn> assistant\n Two.\n<turn> user\n Three?\n"
    question = f"[CONTEXT] {context} [RESPONSE A] Four. [RESPONSE B] Five."
    assert text == (
        f"<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA"
    )
