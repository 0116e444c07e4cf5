"""Low-rank layers as pairs of ordinary linear layers and back, for libraries that look for `nn.Linear`."""

from typing import TypeGuard

import torch
from torch import nn

from ..modeling_lite_whisper import LowRankLinear


class LinearPair(nn.Module):
    """
    What a `LowRankLinear` computes, as two `nn.Linear`: y = second(first(x)).

    `first` goes from in_features to rank, without a bias, `second` from rank to out_features.

    Args:
        layer (`LowRankLinear`): with which it shares the bias.
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
        """Takes x of shape `(..., in_features)`, gives y of shape `(..., out_features)`."""
        return self.second(self.first(x))


def is_low_rank(module: nn.Module) -> TypeGuard[LowRankLinear]:
    """Whether a module is a `LowRankLinear`, of this package or of the copy that a model brought as remote code."""
    return type(module).__name__ == LowRankLinear.__name__


def to_linear_pairs(model: nn.Module) -> None:
    """
    Turns every `LowRankLinear` of a model into a `LinearPair`, in place.

    The tensors then have other names (`fc1.first.weight` for `fc1.weight1`), so call `from_linear_pairs` before
    `save_pretrained`.
    """
    for name, module in list(model.named_modules()):
        if is_low_rank(module):
            model.set_submodule(name, LinearPair(module))


def from_linear_pairs(model: nn.Module) -> None:
    """
    Turns every `LinearPair` of a model back into a `LowRankLinear`, in place and exactly.

    Raises:
        ValueError: a factor is no plain linear layer any more, because it was quantised or still has an adapter.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LinearPair):
            model.set_submodule(name, _joined(name, module))


def _joined(name: str, pair: LinearPair) -> LowRankLinear:
    for linear in (pair.first, pair.second):
        if type(linear) is not nn.Linear or type(linear.weight) not in (nn.Parameter, torch.Tensor):
            raise ValueError(
                f"{name} holds a {type(linear).__name__} with a {type(linear.weight).__name__}, not a plain linear "
                "layer; merge adapters first (merge_and_unload), and convert before quantising, not after"
            )
    with torch.device("meta"):
        layer = LowRankLinear(pair.first.in_features, pair.second.out_features, pair.first.out_features)
    for factor, linear in (("weight1", pair.first), ("weight2", pair.second)):
        weight = linear.weight
        setattr(layer, factor, nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad))
    layer.bias = pair.second.bias
    return layer
