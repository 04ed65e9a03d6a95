"""LoRA layers (Hu et al. 2022): put into a model, and after training added to it or kept apart."""

from pathlib import Path

from torch import nn

from rmexp.models.backbone import Model
from rmexp.models.model_files import ADAPTER_WEIGHTS
from rmexp.training.recipe import Recipe


def add_lora(model: Model, rank: int, alpha: int, dropout: float) -> None:
    """Put LoRA layers (Hu et al. 2022) into all linear layers, in place; the rest is frozen.

    A score head stays as it is, and is trained. The layers are in fp32, whatever is below them: a
    small step would be rounded away.
    """
    from peft import LoraConfig, LoraModel

    from rmexp.training.lora_linear import LoraLinear

    head = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    head = [name for name in head if name != "lm_head"]
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not model.get_output_embeddings()
        and name.split(".")[0] not in head
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    config._register_custom_module({nn.Linear: LoraLinear})
    LoraModel(model, {"default": config}, "default")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for name in head:
        getattr(model, name).requires_grad_(True)


def merge_lora(model: Model) -> None:
    """Add the LoRA layers to the weights below them, in place."""
    from peft.tuners.lora import LoraLayer

    layers = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
    ]
    for name, layer in layers:
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())


def save_lora(
    model: Model, folder: Path, base: tuple[str, str | None], recipe: Recipe, reader: str
) -> None:
    """Save the LoRA layers, and a score head beside them, in PEFT's layout.

    `base` is the model below them, a folder or a hub name, and its revision; `reader` is that of
    `rmexp.json`.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import save_file

    assert recipe.lora_rank is not None
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    heads = sorted({name.split(".")[0] for name in trained if ".lora_" not in name})
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=[n for n, part in model.named_modules() if isinstance(part, LoraLayer)],
        modules_to_save=heads or None,
        base_model_name_or_path=base[0],
        revision=base[1],
        task_type="SEQ_CLS" if reader == "scalar" else "CAUSAL_LM",
        inference_mode=True,
    )
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    weights = {
        f"base_model.model.{name.replace('.default.', '.')}": p.detach().cpu().contiguous()
        for name, p in trained.items()
    }
    save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})
