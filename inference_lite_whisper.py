# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""Optimised inference of LiteWhisper's encoder layers: the same outputs from fewer operations and faster kernels."""

import math
import operator
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from .kernels_lite_whisper import (
    Int8Product,
    Product,
    attention_by_heads,
    break_even_ranks,
    by_heads_is_faster,
    clamp_to_float16,
    equalize_scales,
    has_int8,
)
from .padding_lite_whisper import followed_by_padding, round_up

INPUT_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
ATTENTION_PROJECTIONS = (*INPUT_PROJECTIONS, "out_proj")
HEAD_WIDTH_MULTIPLE = 8  # required by attention kernels


def projections(layer: Any) -> dict[str, Any]:
    """The projections of a Whisper encoder layer by name, in the order in which data flows."""
    attention = {name: getattr(layer.self_attn, name) for name in ATTENTION_PROJECTIONS}
    return attention | {"fc1": layer.fc1, "fc2": layer.fc2}


def projection_parameters(layer: WhisperEncoderLayer) -> list[nn.Parameter | None]:
    """The weights and biases of the projections; read in every pass, where `Module.parameters()` would be slow."""
    return [parameter for projection in projections(layer).values() for parameter in projection._parameters.values()]


def change_count(parameter: nn.Parameter | None) -> int:
    """How many in-place changes torch has counted; always 0 for tensors made in `torch.inference_mode()`."""
    # The count is not public. Without it, loading, moving and training still rebuild the derived tensors.
    return 0 if parameter is None or parameter.is_inference() else getattr(parameter, "_version", 0)


def is_low_rank(projection: Any) -> bool:
    """Whether a projection is a low-rank pair."""
    return hasattr(projection, "weight2")


def is_plain(projection: Any) -> bool:
    """Whether a projection is an unmodified linear layer or low-rank pair with its weights in memory."""
    names = ("weight1", "weight2") if is_low_rank(projection) else ("weight",)
    weights = [getattr(projection, name, None) for name in names]
    known = len(weights) == 2 or type(projection) is nn.Linear
    return known and all(type(weight) is nn.Parameter and not weight.is_meta for weight in weights)


def product(projection: Any) -> Product:
    """
    The product that a linear layer or a low-rank pair computes.

    Raises:
        ValueError: the projection is neither of them, or its weights are offloaded.
    """
    if not is_plain(projection):
        raise ValueError(
            "optimize_for_inference() requires linear layers and low-rank pairs with their weights in memory, but a "
            f"projection is a {type(projection).__name__}; merge adapters first, load the model without offloading, "
            "and do not quantise it"
        )
    factors = (projection.weight1, projection.weight2) if is_low_rank(projection) else (projection.weight.t(),)
    return Product(factors, projection.bias)


def merge(pair: Product) -> Product:
    """Multiplies the two factors of a low-rank pair."""
    (first, second), bias = pair
    return Product(((first.float() @ second.float()).to(first.dtype),), bias)


class Reduction(NamedTuple):
    """The form of attention: whether keys and values stay in the dimension of their first factors; width of heads."""

    keys: bool
    values: bool
    width: int


def choose_reduction(products: dict[str, Product], heads: int, positions: int) -> Reduction:
    """
    Chooses the form of attention with the fewest multiply-adds.

    Heads wider than the model's never pay off, so ranks above the head dimension are not reduced. If only keys or only
    values are reduced, they are padded to the head dimension.

    Args:
        products (`dict[str, Product]`): by name of projection.
        heads (`int`): the number of heads.
        positions (`int`): the number of positions.
    """
    d_model = products["out_proj"].weights[-1].shape[1]
    head_dim = d_model // heads
    ranks = {name: weights[0].shape[1] if len(weights) > 1 else d_model for name, (weights, _) in products.items()}
    key_rank, value_rank = ranks["k_proj"], ranks["v_proj"]

    def multiply_adds(form: Reduction) -> int:
        """The multiply-adds that depend on the form."""
        per_head = ranks["q_proj"] + ranks["out_proj"] + 2 * positions
        reducible = ((form.keys, key_rank), (form.values, value_rank))
        shared = sum(d_model * (form.width if reduced else 2 * rank) for reduced, rank in reducible)
        return heads * form.width * per_head + shared

    forms = [Reduction(False, False, head_dim)]
    if key_rank <= head_dim:
        forms.append(Reduction(True, False, head_dim))
    if value_rank <= head_dim:
        forms.append(Reduction(False, True, head_dim))
    if max(key_rank, value_rank) <= head_dim:
        forms.append(Reduction(True, True, round_up(max(key_rank, value_rank), HEAD_WIDTH_MULTIPLE)))
    return min(forms, key=multiply_adds)


def absorb_keys(query: Product, key: Product, heads: int, width: int) -> tuple[Product, Product]:
    """
    Moves the second factor of the keys into the queries.

    Returns:
        `tuple[Product, Product]`: the queries, with outputs of shape `(..., heads * width)`, and the key that all heads
        share, `(..., width)`.
    """
    assert query.bias is not None  # only k_proj may have none
    (first, second), _ = key
    matrices = F.pad(second, (0, 0, 0, width - second.shape[0])).float().unflatten(1, (heads, -1))
    folded = torch.einsum("qhd,khd->qhk", query.weights[-1].float().unflatten(1, (heads, -1)), matrices).flatten(1)
    bias = torch.einsum("hd,khd->hk", query.bias.float().unflatten(0, (heads, -1)), matrices).flatten()
    queries = Product((*query.weights[:-1], folded.to(first.dtype)), bias.to(first.dtype))
    return queries, Product((F.pad(first, (0, width - first.shape[1])),))


def absorb_values(value: Product, out: Product, heads: int, width: int) -> tuple[Product, Product]:
    """
    Moves the second factor of the values into the output projection.

    Returns:
        `tuple[Product, Product]`: the value that all heads share, with outputs of shape `(..., width)`, and the output
        projection, `(..., d_model)`.
    """
    assert value.bias is not None and out.bias is not None
    first, second = value.weights
    mixing, *rest = out.weights
    matrices = F.pad(second, (0, 0, 0, width - second.shape[0])).float().unflatten(1, (heads, -1))
    folded = torch.einsum("vhd,hdo->hvo", matrices, mixing.float().unflatten(0, (heads, -1))).flatten(0, 1)
    bias = value.bias.float() @ mixing.float()
    for weight in rest:
        bias = bias @ weight.float()
    outputs = Product((folded.to(first.dtype), *rest), (out.bias.float() + bias).to(first.dtype))
    return Product((F.pad(first, (0, width - first.shape[1])),)), outputs


class InferenceLayer:
    """
    The optimised form of an encoder layer: the layer's weights, and tensors derived from them.

    q, k and v share their input, so their first factors are concatenated into one matrix.

    Attention runs in the reduced dimension where that takes fewer multiply-adds. With k_h = W_kh k1 + b_kh the score of
    a query and a key of head h is q_h . k_h = (W_kh^T q_h) . k1 + q_h . b_kh, and the last term, the same for all keys,
    cancels in the softmax. So k1, the output of the first factor, is the key of all heads (multi-query attention), and
    W_kh^T moves into the second factor of q. In the same way v1 is the value of all heads, W_vh moves into the first
    factor of out_proj, and b_v into its bias, as attention weights add up to one. Kernels require keys and values of
    equal width, so the narrower ones are padded with zero columns in their factors.

    Args:
        layer (`WhisperEncoderLayer`): the layer.
        merged (`Collection[str]`): names of the low-rank projections to merge.
        positions (`int`): positions of a full window.
        int8 (`bool`, *optional*, defaults to `False`): whether products are in int8 where that is supported.
        by_heads (`bool`, *optional*, defaults to `False`): whether attention is in bfloat16, head by head.

    Raises:
        ValueError: a projection is neither a linear layer nor a low-rank pair, or its weights are offloaded.
    """

    @torch.no_grad()
    def __init__(
        self,
        layer: WhisperEncoderLayer,
        merged: Collection[str],
        positions: int,
        int8: bool = False,
        by_heads: bool = False,
    ) -> None:
        self.merged, self.positions, self.int8, self.by_heads = merged, positions, int8, by_heads
        self.sources = projection_parameters(layer)
        self.change_counts = list(map(change_count, self.sources))
        products = {name: product(projection) for name, projection in projections(layer).items()}
        products |= {name: merge(products[name]) for name in merged}
        low_rank_inputs = [name for name in INPUT_PROJECTIONS if len(products[name].weights) > 1]
        self.reduction = choose_reduction(products, layer.self_attn.num_heads, positions)
        products |= self._reduced_attention(products, layer.self_attn.num_heads)
        int8 = int8 and all(map(has_int8, products["out_proj"].weights))
        if int8:
            products = {name: equalize_scales(each) for name, each in products.items()}
        self.shared = low_rank_inputs if len(low_rank_inputs) > 1 else []
        if self.shared:
            first_factors = [products[name].weights[0] for name in self.shared]
            self.shared_widths = [factor.shape[1] for factor in first_factors]
            concatenated = Product((torch.cat(first_factors, dim=1),))
            self.shared_product = Int8Product(concatenated) if int8 else concatenated
            for name in self.shared:
                (_, *rest), bias = products[name]
                products[name] = Product(tuple(rest), bias)
        self.products = {name: Int8Product(each) if int8 else each for name, each in products.items()}

    def _reduced_attention(self, products: dict[str, Product], heads: int) -> dict[str, Product]:
        """The products of attention in the chosen form."""
        query, key, value, out = (products[name] for name in ATTENTION_PROJECTIONS)
        if self.reduction.keys:
            query, key = absorb_keys(query, key, heads, self.reduction.width)
        if self.reduction.values:
            value, out = absorb_values(value, out, heads, self.reduction.width)
        return {"q_proj": query, "k_proj": key, "v_proj": value, "out_proj": out}

    def rebuilt(self, layer: WhisperEncoderLayer) -> "InferenceLayer | None":
        """Derives the tensors from the current weights; None if the layer's projections have been replaced."""
        if not all(map(is_plain, projections(layer).values())):
            return None
        return InferenceLayer(layer, self.merged, self.positions, self.int8, self.by_heads)

    def up_to_date(self, layer: WhisperEncoderLayer) -> "InferenceLayer | None":
        """Returns itself, rebuilt if weights have changed in place; None if the layer's weights were replaced."""
        now = projection_parameters(layer)
        if len(now) != len(self.sources) or not all(map(operator.is_, now, self.sources)):
            return None
        # Under torch.compile the counts would be those at the time of tracing.
        if torch.compiler.is_compiling() or self.change_counts == list(map(change_count, now)):
            return self
        return self.rebuilt(layer)

    def forward(self, layer: Any, hidden_states: torch.Tensor, coefficients: torch.Tensor | None) -> torch.Tensor:
        """
        Runs the layer.

        Args:
            layer (`LiteWhisperEncoderLayer`): the layer that this was made from.
            hidden_states (`torch.Tensor` of shape `(batch, positions, d_model)`): the computed positions.
            coefficients (`torch.Tensor` of shape `(batch, 3)`, *optional*): of the padding that follows them.

        Returns:
            `torch.Tensor` of the shape of `hidden_states`.
        """
        hidden_states = hidden_states.contiguous()  # convolutions put channels first, and every layer would copy that
        hidden_states = hidden_states + self.attention(layer, layer.self_attn_layer_norm(hidden_states), coefficients)
        hidden = self.products["fc1"](layer.final_layer_norm(hidden_states), gelu=True)
        return clamp_to_float16(hidden_states + self.products["fc2"](hidden))

    def attention(self, layer: Any, x: torch.Tensor, coefficients: torch.Tensor | None) -> torch.Tensor:
        """Self-attention of normalised hidden states, of shape `(batch, positions, d_model)`."""
        extended, mixing, bias = (x, None, None) if coefficients is None else layer.padding_states(x, coefficients)
        inputs = dict.fromkeys(INPUT_PROJECTIONS, extended)
        if self.shared:
            shared_rows = self.shared_product(extended).split(self.shared_widths, dim=-1)
            inputs.update(zip(self.shared, shared_rows, strict=True))
        inputs["q_proj"] = inputs["q_proj"][:, : x.shape[1]]
        rows = {name: self.products[name](projection_input) for name, projection_input in inputs.items()}
        if mixing is not None:
            rows |= {name: followed_by_padding(rows[name], mixing) for name in ("k_proj", "v_proj")}
        heads, scale = layer.self_attn.num_heads, layer.self_attn.scaling
        query, key, value = (
            rows[name].unflatten(-1, (-1, self.reduction.width)).transpose(1, 2).expand(-1, heads, -1, -1)
            for name in INPUT_PROJECTIONS
        )
        enough_rows = x.shape[1] > self.positions // 4  # below that, attention by heads is slower
        if self.by_heads and x.dtype == torch.float32 and enough_rows:
            mixed = attention_by_heads(query, key, value, bias, scale)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, bias, scale=scale)
        return self.products["out_proj"](mixed.transpose(1, 2).flatten(2))


def build_inference_layers(
    encoder: Any, batch_size: int, int8: bool
) -> tuple[list[InferenceLayer], dict[tuple[int, int], float]]:
    """
    Builds the optimised form of every layer, with choices measured on the encoder's device.

    Args:
        encoder (`LiteWhisperEncoder`): the encoder.
        batch_size (`int`): the number of windows in a batch.
        int8 (`bool`): whether products are in int8.

    Returns:
        `tuple`: the layers, and the result of `break_even_ranks`.

    Raises:
        ValueError: as in `InferenceLayer`.
    """
    positions, heads = encoder.config.max_source_positions, encoder.config.encoder_attention_heads
    x = encoder.conv1.weight.new_empty(batch_size, positions)
    pairs = [pair for layer in encoder.layers for pair in projections(layer).values() if is_low_rank(pair)]
    break_even = break_even_ranks({(pair.in_features, pair.rank, pair.out_features) for pair in pairs}, x, int8)
    slower = {pair for pair in pairs if pair.rank >= break_even[pair.in_features, pair.out_features]}
    by_heads = int8 and by_heads_is_faster(x, heads, encoder.config.d_model // heads)
    layers = []
    for layer in encoder.layers:
        merged = [name for name, projection in projections(layer).items() if projection in slower]
        layers.append(InferenceLayer(layer, merged, positions, int8, by_heads))
    return layers, break_even


def describe_layers(
    layers: Sequence[InferenceLayer | None], break_even: dict[tuple[int, int], float], dtype: torch.dtype
) -> list[str]:
    """The lines of `LiteWhisperEncoder.inference_report`."""
    lines = []
    for (inputs, outputs), rank in break_even.items() if any(layers) else ():
        slower = "no rank in use is" if math.isinf(rank) else f"low-rank pairs of rank {rank} or more are"
        lines.append(f"{inputs} -> {outputs}: {slower} slower than the dense product")
    for index, layer in enumerate(layers):
        lines.append(f"layer {index}: {'plain' if layer is None else describe_layer(layer, dtype)}")
    return lines


def describe_layer(layer: InferenceLayer, dtype: torch.dtype) -> str:
    """The data type, the form of attention and the merged projections of a layer."""
    keys, values, width = layer.reduction
    reduced = " and ".join(["keys"] * keys + ["values"] * values)
    choices = ["int8" if isinstance(layer.products["fc1"], Int8Product) else str(dtype)]
    choices += ["attention in bfloat16, head by head"] if layer.by_heads else []
    choices += [f"{reduced} in {width} dimensions"] if reduced else []
    choices += [f"{name} merged" for name in layer.merged]
    return "; ".join(choices)
