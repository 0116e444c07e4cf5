"""LoRA with PEFT on low-rank pairs."""

from typing import cast

import torch
from peft import LoraConfig
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from ..modeling_lite_whisper import LowRankLinear
from .linear_pairs import is_low_rank


class LoraLowRankLinear(lora.Linear):
    """
    A LoRA adapter on a `LowRankLinear`.

    Merging is exact: it appends the adapter's factors to those of the layer, whose rank increases by the adapter's.
    """

    @property
    def lora_variants(self) -> dict[tuple[str, ...], None]:
        """Plain LoRA only: variants such as DoRA need a dense weight."""
        return {(): None}

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return module.in_features, module.out_features  # type: ignore[return-value]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Appends the factors of adapters, by default of all active ones, to those of the layer."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.lora_A:
                continue
            layer, (first, second, bias) = self._layer(), self._adapter(name)
            if safe_merge and not (first.isfinite().all() and second.isfinite().all()):
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            _replace_factors(
                layer,
                torch.cat([layer.weight1.detach(), first.to(layer.weight1)], dim=1),
                torch.cat([layer.weight2.detach(), second.to(layer.weight2)], dim=0),
            )
            if bias is not None:
                layer.bias.data += bias
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Removes the factors of all merged adapters."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            layer, (_, _, bias) = self._layer(), self._adapter(name)
            rank = layer.rank - self.r[name]
            _replace_factors(layer, layer.weight1.detach()[:, :rank], layer.weight2.detach()[:rank])
            if bias is not None:
                layer.bias.data -= bias

    def _layer(self) -> LowRankLinear:
        return cast(LowRankLinear, self.get_base_layer())

    def _adapter(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Returns an adapter's factors, of shapes `(in_features, r)` and `(r, out_features)`, and its bias, if any."""
        first, second = (cast(nn.Linear, layers[name]) for layers in (self.lora_A, self.lora_B))
        bias = None if second.bias is None else second.bias.detach() * self.scaling[name]
        return first.weight.detach().t(), second.weight.detach().t() * self.scaling[name], bias


def _replace_factors(layer: LowRankLinear, weight1: torch.Tensor, weight2: torch.Tensor) -> None:
    max_rank = min(layer.in_features, layer.out_features)
    if weight1.shape[1] > max_rank:
        raise ValueError(
            f"merging would raise the rank to {weight1.shape[1]}, but a layer with {layer.in_features} inputs and "
            f"{layer.out_features} outputs allows {max_rank}; train an adapter of lower rank or keep it unmerged"
        )
    layer.weight1 = nn.Parameter(weight1.contiguous(), requires_grad=layer.weight1.requires_grad)
    layer.weight2 = nn.Parameter(weight2.contiguous(), requires_grad=layer.weight2.requires_grad)
    layer.rank = weight1.shape[1]


def low_rank_lora(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """
    Extends a LoRA configuration so that PEFT also adapts the low-rank pairs of a model.

    Args:
        config (`LoraConfig`): configuration with the usual `target_modules`, such as `["q_proj", "v_proj"]`; changed
            in place.
        model (`nn.Module`): the compressed model.

    Returns:
        `LoraConfig`: the same object. Use it as `get_peft_model(model, low_rank_lora(config, model))`, or to load an
        adapter: `PeftModel.from_pretrained(model, folder,
        config=low_rank_lora(LoraConfig.from_pretrained(folder), model))`.
    """
    for layer_class in {type(module) for module in model.modules() if is_low_rank(module)}:
        config._register_custom_module({layer_class: LoraLowRankLinear})
    return config
