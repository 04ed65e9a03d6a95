"""LoRA adapters in PEFT's layout: read as data, and added to the weights of their base.

adapter_config.json is from elsewhere. Only what is known here is taken from it, as plain values:
the library itself would import what some of its keys name.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file

from rmexp.errors import ConfigError
from rmexp.models.backbone import Model
from rmexp.models.checkpoints import ADAPTER_CONFIG
from rmexp.models.model_files import ADAPTER_WEIGHTS, tensor_shapes
from rmexp.outside import known, read_json

# What says where an adapter is from and how it was trained, not what it adds.
_NO_PART = frozenset(
    "auto_mapping base_model_name_or_path ensure_weight_tying inference_mode lora_dropout "
    "megatron_core peft_version qalora_group_size revision task_type".split()
)


_Names = Sequence[str] | None
# What is taken of it: the values that each key may have.
_KNOWN: Mapping[str, Any] = {
    "peft_type": Literal["LORA"],
    "r": int,
    "lora_alpha": float,
    "target_modules": Sequence[str] | str,
    "exclude_modules": _Names,
    "modules_to_save": _Names,
    "fan_in_fan_out": bool,
    "bias": Literal["none", "all", "lora_only"],
    "use_rslora": bool,
    "use_dora": bool,
    "lora_bias": bool,
    "layers_to_transform": Sequence[int] | None,
    "layers_pattern": _Names,
    "rank_pattern": Mapping[str, int],
    "alpha_pattern": Mapping[str, float],
    # Other ways to begin change the base's weights too.
    "init_lora_weights": bool | Literal["gaussian"],
}


def read_adapter(folder: Path) -> dict[str, Any]:
    """Return the settings of `adapter_config.json` that decide what the adapter adds.

    Raises ConfigError for another kind of adapter, for a wrong value, and for a setting that is in
    use and not known here.
    """
    path = folder / ADAPTER_CONFIG
    found = read_json(path, "get the adapter again")
    for key, value in found.items():
        if key not in _KNOWN and key not in _NO_PART and value not in (None, False, {}, []):
            raise ConfigError(
                f"{path}: {key} is in use, which is not known here: merge the adapter into its base"
            )
    needed = dict.fromkeys(("peft_type", "r", "lora_alpha", "target_modules"))
    taken = needed | {key: value for key, value in found.items() if key in _KNOWN}
    return known(taken, _KNOWN, str(path))


def add_adapter(model: Model, folder: Path) -> set[str]:
    """Merge the adapter of a folder into the model, in place; return what it has replaced whole.

    Those are names of weights, such as a score head's. Raises ConfigError where adapter and model
    do not fit each other exactly.
    """
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    settings = read_adapter(folder)
    settings.pop("peft_type")
    weights = folder / ADAPTER_WEIGHTS
    heads = {name for name, _ in model.named_children() if name != model.base_model_prefix}
    whole = {
        name.removeprefix("base_model.model.").replace(".modules_to_save", "")
        for name in tensor_shapes(weights)
        if ".lora_" not in name
    }
    saved = {
        *(settings.get("modules_to_save") or ()),
        *(heads & {name.split(".")[0] for name in whole}),
    }
    settings["modules_to_save"] = sorted(saved) or None
    try:
        with warnings.catch_warnings():  # of settings without effect
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("ignore", FutureWarning)  # of what one library asks the other
            wrapped = PeftModel(model, LoraConfig(**settings))
        found: Any = set_peft_model_state_dict(wrapped, load_file(weights))
        missing = [name for name in found.missing_keys if "lora_" in name or ".default." in name]
        if missing or found.unexpected_keys:
            names = [*missing, *found.unexpected_keys]
            raise ConfigError(
                f"the adapter in {folder} does not fit its base ({len(missing)} weights missing, "
                f"{len(found.unexpected_keys)} without a place, {names[0]} for one): give the base "
                "that it was trained on, model.base=FOLDER"
            )
        wrapped.merge_and_unload()
        model.requires_grad_(True)  # the library has frozen it
    except (
        AttributeError,
        LookupError,
        RuntimeError,
        RuntimeWarning,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(
            f"the adapter in {folder} does not fit its base ({reason}): give the base that it was "
            "trained on, model.base=FOLDER"
        ) from error
    return whole
