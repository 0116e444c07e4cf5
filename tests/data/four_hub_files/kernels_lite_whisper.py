# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""What the inference mode multiplies and attends with, in fp32, 8 bits or bfloat16, and what that takes here."""

import itertools
import math
import warnings
from bisect import bisect_left
from collections.abc import Collection
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.benchmark import Timer

SMALLEST = 1e-30  # of what is divided by


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gelu: bool = False) -> torch.Tensor:
    """
    x, of shape `(..., in_features)`, times a weight, `(in_features, out_features)`, plus a bias, then GELU where asked.

    In fp32 on x86 it is oneDNN that multiplies: it applies GELU to what is still in the cache, and is faster than the
    library behind `F.linear` where the processor is not one of Intel's. Its operation has no gradient.
    """
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype == torch.float32 and _has_onednn():
        try:
            return _onednn_linear(x, weight, bias, gelu)
        except (RuntimeError, TypeError):
            pass  # what it refuses, F.linear may take; if not, its error is the one that torch documents
    y = F.linear(x, weight.t(), bias)
    return F.gelu(y) if gelu else y


def _onednn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight.t(), bias, "gelu" if gelu else "none", [], "none")


@cache
def _has_onednn() -> bool:
    """Whether oneDNN is worth while here, and its operation, private to torch and so free to change, still computes."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return False
    x, bias = (torch.tensor(values, dtype=torch.float32, device="cpu") for values in ([[1, -2, 3]], [0.5, -0.25]))
    weight = torch.tensor([[1, 2], [-1, 1], [0.5, -1]], dtype=torch.float32, device="cpu")
    try:
        y = _onednn_linear(x, weight, bias, gelu=True)
        return torch.allclose(y, F.gelu((x[:, :, None] * weight).sum(dim=1) + bias), atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        return False


class Product(NamedTuple):
    """A chain of linear maps, by weights of shape `(inputs, outputs)`, then a bias; without any, the identity."""

    weights: tuple[torch.Tensor, ...]
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        """Takes x of shape `(..., inputs of the first)`, gives y of shape `(..., outputs of the last)`."""
        for weight in self.weights[:-1]:
            x = linear(x, weight)
        return linear(x, self.weights[-1], self.bias, gelu) if self.weights else x


class Int8Product:
    """
    A `Product` from and to fp32 on the CPU whose weights have 8 bits and, for each output, a scale. What is multiplied
    has 8 bits too, with one scale for all of it.
    """

    def __init__(self, product: Product) -> None:
        biases = [*[None] * len(product.weights), product.bias][1:]  # the last weight has it
        self.packed = [_packed(*of_one) for of_one in zip(product.weights, biases, strict=True)]

    def __call__(self, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        """As `Product`."""
        for weight in self.packed:
            x = torch.ops.quantized.linear_dynamic(x, weight, _int8_saturates())
        return F.gelu(x) if gelu else x


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    scales = weight.abs().amax(dim=0).clamp(min=SMALLEST) / 127
    codes, zeros = (weight / scales).round().to(torch.int8).t().contiguous(), torch.zeros_like(scales, dtype=torch.long)
    with warnings.catch_warnings():  # that torch means to replace tensors of this kind, which has no other here yet
        warnings.simplefilter("ignore", UserWarning)
        quantized = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(quantized, bias)


@cache
def _int8_saturates() -> bool | None:
    """Whether sums of two products overflow, as on older x86, so that x may have 7 bits; None without such products."""
    x = torch.tensor([[0.0] + 4 * [255.0]], device="cpu")
    try:
        y = torch.ops.quantized.linear_dynamic(x, _packed(torch.ones(5, 1, device="cpu"), None), False)
        return not torch.allclose(y, x.sum(), rtol=1e-2)
    except (AttributeError, RuntimeError, TypeError):  # they are private to torch
        return None


def has_int8(weight: torch.Tensor) -> bool:
    """Whether products with this weight can be computed in 8 bits here."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _int8_saturates() is not None


def balanced(product: Product) -> Product:
    """The same map, by factors between which all directions have one size, so that 8 bits are enough for each."""
    weights, bias = list(product.weights), product.bias
    for place in range(len(weights) - 1):
        sizes = weights[place].norm(dim=0).clamp(min=SMALLEST)
        weights[place], weights[place + 1] = weights[place] / sizes, weights[place + 1] * sizes[:, None]
    return Product(tuple(weights), bias)


def attention_by_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None, scale: float = 1
) -> torch.Tensor:
    """Attention over `(batch, heads, positions, width)` in bfloat16, by heads: the scores of one stay in the cache."""
    mixed = []
    for q, k, v in zip(*(rows.bfloat16().flatten(0, 1) for rows in (query * scale, key, value)), strict=True):
        scores = q @ k.t() if bias is None else torch.addmm(bias.bfloat16(), q, k.t())
        mixed.append(torch.softmax(scores, dim=-1) @ v)
    return torch.stack(mixed).unflatten(0, query.shape[:2]).to(query.dtype)


@torch.no_grad()
def median_seconds(function: Any, *arguments: torch.Tensor) -> float:
    """What a call takes."""
    names = {"function": function, "arguments": arguments}
    timer = Timer("function(*arguments)", globals=names, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=0.1).median


def product_seconds(x: torch.Tensor, *widths: int, int8: bool = False) -> float:
    """The median seconds of products of widths `(inputs, outputs)`, or with a rank between; x as in the next."""
    product = Product(tuple(x.new_empty(shape).normal_(std=0.01) for shape in itertools.pairwise(widths)))
    return median_seconds(Int8Product(product) if int8 else product, x.new_empty(*x.shape, widths[0]).normal_())


def break_even_ranks(
    shapes: Collection[tuple[int, int, int]], x: torch.Tensor, int8: bool = False
) -> dict[tuple[int, int], float]:
    """
    Measures from which rank on a low-rank pair takes longer than the dense product.

    Takes in_features, rank and out_features of the pairs there are, and x of the dtype and device that count, of shape
    `(batch_size, positions)`. Gives, by the outer two, the lowest such rank of these, or infinity.
    """
    result = {}
    for inputs, outputs in {(pair[0], pair[2]) for pair in shapes}:
        ranks = sorted({pair[1] for pair in shapes if (pair[0], pair[2]) == (inputs, outputs)})
        dense = product_seconds(x, inputs, outputs, int8=int8)
        first = bisect_left(ranks, dense, key=lambda rank: product_seconds(x, inputs, rank, outputs, int8=int8))
        result[inputs, outputs] = ranks[first] if first < len(ranks) else math.inf
    return result


def by_heads_pays(x: torch.Tensor, heads: int, width: int) -> bool:
    """Whether `attention_by_heads` takes less than torch's attention; x as in `break_even_ranks`."""
    rows = x.new_empty(x.shape[0], heads, x.shape[1], width).normal_()
    usual = median_seconds(F.scaled_dot_product_attention, rows, rows, rows)
    return median_seconds(attention_by_heads, rows, rows, rows) < usual
