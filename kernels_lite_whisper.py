# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""Kernels of optimised inference: products in float32 and int8, attention in bfloat16, and how long they take here."""

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

EPSILON = 1e-30  # lower bound of divisors
MAX_INT8 = 127


def clamp_to_float16(hidden_states: torch.Tensor) -> torch.Tensor:
    """Keeps float16 hidden states finite, as Whisper's encoder layer does; other dtypes pass unchanged."""
    limit = torch.finfo(torch.float16).max - 1000
    return hidden_states.clamp(-limit, limit) if hidden_states.dtype == torch.float16 else hidden_states


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gelu: bool = False) -> torch.Tensor:
    """
    A linear layer, optionally followed by GELU; has no gradient.

    In float32 on x86, oneDNN computes it. It applies GELU while the product is still in the cache, and is faster than
    the library behind `F.linear` on processors not made by Intel.

    Args:
        x (`torch.Tensor` of shape `(..., in_features)`): the input.
        weight (`torch.Tensor` of shape `(in_features, out_features)`): the weight.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): the bias.
        gelu (`bool`, *optional*, defaults to `False`): whether GELU follows.

    Returns:
        `torch.Tensor` of shape `(..., out_features)`.
    """
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype == torch.float32 and _has_onednn():
        try:
            return _onednn_linear(x, weight, bias, gelu)
        except (RuntimeError, TypeError):
            pass  # F.linear may accept what oneDNN rejects; otherwise it raises the error that torch documents
    y = F.linear(x, weight.t(), bias)
    return F.gelu(y) if gelu else y


def _onednn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight.t(), bias, "gelu" if gelu else "none", [], "none")


@cache
def _has_onednn() -> bool:
    """Whether oneDNN is fast here and its operation, which is private to torch and may change, still works."""
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
    """
    A chain of matrix products, then a bias; the identity if there are no weights.

    Args:
        weights (`tuple[torch.Tensor, ...]`): each of shape `(inputs, outputs)`.
        bias (`torch.Tensor`, *optional*): of the outputs of the last weight.
    """

    weights: tuple[torch.Tensor, ...]
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        """Applies the chain to x of shape `(..., inputs)`; GELU follows on request."""
        for weight in self.weights[:-1]:
            x = linear(x, weight)
        return linear(x, self.weights[-1], self.bias, gelu) if self.weights else x


class Int8Product:
    """
    A `Product` computed in int8, from and to float32 on the CPU.

    Weights have one scale per output; inputs are quantised on the fly with one scale per tensor.
    """

    def __init__(self, product: Product) -> None:
        last = len(product.weights) - 1
        self.packed = [_pack(weight, product.bias if i == last else None) for i, weight in enumerate(product.weights)]

    def __call__(self, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        """Applies the chain to x of shape `(..., inputs)`; GELU follows on request."""
        for weight in self.packed:
            x = torch.ops.quantized.linear_dynamic(x, weight, _int8_saturates())
        return F.gelu(x) if gelu else x


def _pack(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """Quantises a weight of shape `(inputs, outputs)` and packs it with its bias for torch's int8 kernel."""
    scales = weight.abs().amax(dim=0).clamp(min=EPSILON) / MAX_INT8
    codes, zeros = (weight / scales).round().to(torch.int8).t().contiguous(), torch.zeros_like(scales, dtype=torch.long)
    with warnings.catch_warnings():  # torch announces the end of quantized tensors but has no replacement for these yet
        warnings.simplefilter("ignore", UserWarning)
        quantized = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(quantized, bias)


@cache
def _int8_saturates() -> bool | None:
    """Whether sums of two products overflow (older x86), so that x gets 7 bits only; None if there is no int8."""
    x = torch.tensor([[0.0] + 4 * [255.0]], device="cpu")
    try:
        y = torch.ops.quantized.linear_dynamic(x, _pack(torch.ones(5, 1, device="cpu"), None), False)
        return not torch.allclose(y, x.sum(), rtol=1e-2)
    except (AttributeError, RuntimeError, TypeError):  # these operations are private to torch
        return None


def has_int8(weight: torch.Tensor) -> bool:
    """Whether int8 products with this weight are supported: on the CPU, from float32."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _int8_saturates() is not None


def equalize_scales(product: Product) -> Product:
    """Rescales the factors so that all directions between them have unit norm; the product stays the same."""
    weights, bias = list(product.weights), product.bias
    for index in range(len(weights) - 1):
        norms = weights[index].norm(dim=0).clamp(min=EPSILON)
        weights[index], weights[index + 1] = weights[index] / norms, weights[index + 1] * norms[:, None]
    return Product(tuple(weights), bias)


def attention_by_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None, scale: float = 1
) -> torch.Tensor:
    """
    Attention in bfloat16, one head at a time, so that the scores stay in the cache.

    Args:
        query (`torch.Tensor` of shape `(batch, heads, query positions, width)`): queries in any dtype.
        key (`torch.Tensor` of shape `(batch, heads, key positions, width)`): keys.
        value (`torch.Tensor` of shape `(batch, heads, key positions, width)`): values.
        bias (`torch.Tensor`, *optional*): added to the scores, of shape `(query positions, key positions)`.
        scale (`float`, *optional*, defaults to 1): multiplies the query.

    Returns:
        `torch.Tensor` of the shape and dtype of the query.
    """
    heads = []
    for q, k, v in zip(*(rows.bfloat16().flatten(0, 1) for rows in (query * scale, key, value)), strict=True):
        scores = q @ k.t() if bias is None else torch.addmm(bias.bfloat16(), q, k.t())
        heads.append(torch.softmax(scores, dim=-1) @ v)
    return torch.stack(heads).unflatten(0, query.shape[:2]).to(query.dtype)


@torch.no_grad()
def median_seconds(function: Any, *arguments: torch.Tensor) -> float:
    """The median time of a call."""
    names = {"function": function, "arguments": arguments}
    timer = Timer("function(*arguments)", globals=names, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=0.1).median


def product_seconds(x: torch.Tensor, *widths: int, int8: bool = False) -> float:
    """
    The median time of a product with random weights.

    Args:
        x (`torch.Tensor` of shape `(batch, positions)`): its dtype and device are used.
        widths (`int`): inputs and outputs, with the ranks of low-rank factors between them.
        int8 (`bool`, *optional*, defaults to `False`): whether to compute in int8.
    """
    product = Product(tuple(x.new_empty(shape).normal_(std=0.01) for shape in itertools.pairwise(widths)))
    return median_seconds(Int8Product(product) if int8 else product, x.new_empty(*x.shape, widths[0]).normal_())


def break_even_ranks(
    shapes: Collection[tuple[int, int, int]], x: torch.Tensor, int8: bool = False
) -> dict[tuple[int, int], float]:
    """
    Measures from which rank on a low-rank pair is slower than the dense product.

    Args:
        shapes (`Collection[tuple[int, int, int]]`): in_features, rank and out_features of the pairs in use.
        x (`torch.Tensor` of shape `(batch, positions)`): its dtype and device are used.
        int8 (`bool`, *optional*, defaults to `False`): whether products are in int8.

    Returns:
        `dict[tuple[int, int], float]`: by in_features and out_features, the lowest of the ranks in use that is slower,
        or infinity.
    """
    result = {}
    for inputs, outputs in {(pair[0], pair[2]) for pair in shapes}:
        ranks = sorted({pair[1] for pair in shapes if (pair[0], pair[2]) == (inputs, outputs)})
        dense = product_seconds(x, inputs, outputs, int8=int8)
        first = bisect_left(ranks, dense, key=lambda rank: product_seconds(x, inputs, rank, outputs, int8=int8))
        result[inputs, outputs] = ranks[first] if first < len(ranks) else math.inf
    return result


def by_heads_is_faster(x: torch.Tensor, heads: int, width: int) -> bool:
    """Whether `attention_by_heads` is faster here than torch's attention; x as in `break_even_ranks`."""
    rows = x.new_empty(x.shape[0], heads, x.shape[1], width).normal_()
    usual = median_seconds(F.scaled_dot_product_attention, rows, rows, rows)
    return median_seconds(attention_by_heads, rows, rows, rows) < usual
