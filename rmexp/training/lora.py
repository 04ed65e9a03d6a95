"""LoRA layers (Hu et al. 2022): put into a model to be trained, and added to its weights after."""

from torch import nn

from rmexp.models.backbone import Model


def add_lora(model: Model, rank: int, alpha: int, dropout: float) -> None:
    """Put LoRA layers (Hu et al. 2022) into all linear layers, in place; the rest is frozen.

    A score head stays as it is, and is trained. The layers are in fp32, whatever is below them: a
    small step would be rounded away.
    """
    from peft import LoraConfig, LoraModel

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
