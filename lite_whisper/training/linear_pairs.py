"""Conversion of low-rank layers to pairs of `nn.Linear` and back, for libraries that look for `nn.Linear`."""

from typing import TypeGuard

import torch
from torch import nn

from ..modeling_lite_whisper import LowRankLinear


class LinearPair(nn.Module):
    """
    A `LowRankLinear` as two `nn.Linear` layers: y = second(first(x)).

    `first` maps in_features to rank without a bias, `second` maps rank to out_features.

    Args:
        layer (`LowRankLinear`): the layer to convert; its factors are copied and its bias is shared.
    """

    def __init__(self, layer: LowRankLinear) -> None:
        super().__init__()
        with torch.device("meta"):
            self.first = nn.Linear(layer.in_features, layer.rank, bias=False)
            self.second = nn.Linear(layer.rank, layer.out_features)
        for linear, factor in ((self.first, layer.weight1), (self.second, layer.weight2)):
            linear.weight = nn.Parameter(factor.detach().t().contiguous(), requires_grad=factor.requires_grad)
        self.second.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `x` of shape `(..., in_features)` to shape `(..., out_features)`."""
        return self.second(self.first(x))


def is_low_rank(module: nn.Module) -> TypeGuard[LowRankLinear]:
    """Whether a module is a `LowRankLinear`, from this package or from a model's remote code."""
    return type(module).__name__ == LowRankLinear.__name__


def to_linear_pairs(model: nn.Module) -> None:
    """
    Replaces every `LowRankLinear` of a model with a `LinearPair`, in place.

    This changes tensor names (`fc1.weight1` becomes `fc1.first.weight`), so call `from_linear_pairs` before
    `save_pretrained`.

    Args:
        model (`nn.Module`): a compressed model.
    """
    for name, module in list(model.named_modules()):
        if is_low_rank(module):
            model.set_submodule(name, LinearPair(module))


def from_linear_pairs(model: nn.Module) -> None:
    """
    Replaces every `LinearPair` of a model with an equal `LowRankLinear`, in place.

    Args:
        model (`nn.Module`): a model converted by `to_linear_pairs`.

    Raises:
        ValueError: a factor is not a plain linear layer because it was quantised or still has an adapter.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LinearPair):
            model.set_submodule(name, _to_low_rank(name, module))


def _to_low_rank(name: str, pair: LinearPair) -> LowRankLinear:
    for linear in (pair.first, pair.second):
        if type(linear) is not nn.Linear or type(linear.weight) not in (nn.Parameter, torch.Tensor):
            raise ValueError(
                f"{name} holds a {type(linear).__name__} with a {type(linear.weight).__name__}, not a plain linear "
                "layer; merge adapters first (merge_and_unload) and call from_linear_pairs before quantising"
            )
    with torch.device("meta"):
        layer = LowRankLinear(pair.first.in_features, pair.second.out_features, pair.first.out_features)
    for factor, linear in (("weight1", pair.first), ("weight2", pair.second)):
        weight = linear.weight
        setattr(layer, factor, nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad))
    layer.bias = pair.second.bias
    return layer
