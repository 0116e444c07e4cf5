# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""The inference mode of LiteWhisper's encoder: the same outputs, from fewer operations and faster kernels."""

import math
import operator
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from .kernels_lite_whisper import Int8Product, Product, attention_by_heads, balanced, has_int8

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
PADDING = 8  # attention kernels take heads of a multiple of this width
LENGTHS = 30  # how many different numbers of positions are computed
LOUDEST_FLOOR = -0.25  # of features: no signal in [-1, 1] has its lowest value above
GROUP = 2  # so many positions of padding are one to attention
DIRECTIONS = 16  # in which the encoder's output at padding that is known follows what was computed of it


class PaddingStates(nn.Module):
    """
    What the encoder computes at the positions of padding, which hardly depends on the speech before it.

    At position t that is a combination, of the weights `mixing[t]`, which add up to one, of `rank` states, and each of
    these is the sum of `states[k]` times coefficient k of the clip. The first three of these are of `end_of_sound`; any
    others tell, in `directions`, how far the last positions computed are from what the first three foretell. To
    attention, which needs no `directions`, groups of positions are one: their mean, log(group) added to its scores.
    """

    def __init__(self, config: WhisperConfig, directions: int = 0) -> None:
        super().__init__()
        rank, self.margin = config.constant_padding["rank"], config.constant_padding["margin"]
        self.group = 1 if directions or config.max_source_positions % (LENGTHS * GROUP) else GROUP
        self.mixing = nn.Parameter(torch.zeros(config.max_source_positions, rank), requires_grad=False)
        self.states = nn.Parameter(torch.zeros(3 + directions, rank, config.d_model), requires_grad=False)
        if directions:
            self.directions = nn.Parameter(torch.zeros(config.d_model, directions), requires_grad=False)

    def forward(self, computed: torch.Tensor, coefficients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What is computed and the states, `(batch, .., d_model)`, weights of groups, and what is added to scores."""
        positions = computed.shape[1]
        states = torch.einsum("bk,krd->brd", coefficients, self.states[:3])
        if len(self.states) > 3:
            foretold = self.mixing[positions - self.margin : positions].mean(dim=0) @ states
            deviation = (computed[:, positions - self.margin :].mean(dim=1) - foretold) @ self.directions
            states = states + torch.einsum("bk,krd->brd", deviation, self.states[3:])
        mixing = self.mixing[positions:].unflatten(0, (-1, self.group)).mean(dim=1)
        bias = F.pad(mixing.new_full(mixing.shape[:1], math.log(self.group)), (positions, 0)).expand(positions, -1)
        return torch.cat([computed, states], dim=1), mixing, bias


def followed_by_padding(rows: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """Rows of shape `(batch, positions, width)`, the last `rank` combined by weights of `(padded positions, rank)`."""
    rank = mixing.shape[1]
    return torch.cat([rows[:, :-rank], mixing @ rows[:, -rank:]], dim=1)


def within_range(hidden_states: torch.Tensor) -> torch.Tensor:
    """What fp16 can hold, as in Whisper."""
    largest = torch.finfo(torch.float16).max - 1000
    return hidden_states.clamp(-largest, largest) if hidden_states.dtype == torch.float16 else hidden_states


def projections(layer: Any) -> dict[str, Any]:
    """The projections of an encoder layer of Whisper by name, in the order in which data flows."""
    return {name: getattr(layer.self_attn, name) for name in ATTENTION} | {"fc1": layer.fc1, "fc2": layer.fc2}


def parameters(layer: WhisperEncoderLayer) -> list[nn.Parameter | None]:
    """The projections' own weights and biases; asked for in every pass, where `Module.parameters()` would be slow."""
    return [parameter for projection in projections(layer).values() for parameter in projection._parameters.values()]


def version(parameter: nn.Parameter | None) -> int:
    """How many changes in place torch has counted; in tensors made in `torch.inference_mode()` it counts none."""
    # The count is not public. Without it what was derived is still renewed by loading, moving and training.
    return 0 if parameter is None or parameter.is_inference() else getattr(parameter, "_version", 0)


def is_plain(projection: Any) -> bool:
    """Whether a projection is a linear layer or a low-rank pair as it was loaded, with its weights in memory."""
    names = ("weight1", "weight2") if hasattr(projection, "weight2") else ("weight",)
    weights = [getattr(projection, name, None) for name in names]
    known = len(weights) == 2 or type(projection) is nn.Linear
    return known and all(type(weight) is nn.Parameter and not weight.is_meta for weight in weights)


def product(projection: Any) -> Product:
    """What a linear layer or a low-rank pair applies; `ValueError` if it is neither, or its weights are offloaded."""
    if not is_plain(projection):
        raise ValueError(
            "optimize_for_inference() needs plain linear layers and low-rank pairs, with their weights in memory, and "
            f"found another {type(projection).__name__}; merge adapters first, load the model without offloading, and "
            "do without it where layers are quantised"
        )
    pair = hasattr(projection, "weight2")
    return Product((projection.weight1, projection.weight2) if pair else (projection.weight.t(),), projection.bias)


class Reduction(NamedTuple):
    """The form of attention: whether keys and values stay in the dimension of their first factors; width of heads."""

    keys: bool
    values: bool
    width: int


def choose_reduction(products: dict[str, Product], heads: int, positions: int) -> Reduction:
    """
    The form of attention, over so many positions, with the fewest multiply-adds.

    Heads that are wider than those of the model never pay, so ranks above their dimension are left alone; and where
    only the keys or only the values are reduced they are padded to it.
    """
    d_model = products["out_proj"].weights[-1].shape[1]
    head_dim = d_model // heads
    ranks = {name: weights[0].shape[1] if len(weights) > 1 else d_model for name, (weights, _) in products.items()}
    key_rank, value_rank = ranks["k_proj"], ranks["v_proj"]

    def multiply_adds(form: Reduction) -> int:
        """Those that depend on the form."""
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
        forms.append(Reduction(True, True, -(-max(key_rank, value_rank) // PADDING) * PADDING))
    return min(forms, key=multiply_adds)


def absorb_keys(query: Product, key: Product, heads: int, width: int) -> tuple[Product, Product]:
    """The products that give queries, of shape `(..., heads * width)`, and the key of all heads, `(..., width)`."""
    assert query.bias is not None  # of Whisper's projections, k_proj alone may have none
    (first, second), _ = key
    matrices = F.pad(second, (0, 0, 0, width - second.shape[0])).float().unflatten(1, (heads, -1))
    folded = torch.einsum("qhd,khd->qhk", query.weights[-1].float().unflatten(1, (heads, -1)), matrices).flatten(1)
    bias = torch.einsum("hd,khd->hk", query.bias.float().unflatten(0, (heads, -1)), matrices).flatten()
    queries = Product((*query.weights[:-1], folded.to(first.dtype)), bias.to(first.dtype))
    return queries, Product((F.pad(first, (0, width - first.shape[1])),))


def absorb_values(value: Product, out: Product, heads: int, width: int) -> tuple[Product, Product]:
    """The products that give the value of all heads, of shape `(..., width)`, and the output, of `(..., d_model)`."""
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
    How an encoder layer computes in inference: the weights of the layer, and tensors derived from them.

    q, k and v share their input, so their first factors stand side by side in one matrix.

    Attention runs in the reduced dimension where that takes fewer multiply-adds. With k_h = W_kh k1 + b_kh the score of
    a query and a key of head h is q_h . k_h = (W_kh^T q_h) . k1 + q_h . b_kh, and the last term, the same for all keys,
    cancels in the softmax. So k1, the output of the first factor, is the key of all heads (multi-query attention), and
    W_kh^T goes into the second factor of q. In the same way v1 is the value of all heads, W_vh goes into the first
    factor of out_proj, and b_v into its bias, as the weights of attention add up to one. The kernels want keys and
    values equally wide, so the narrower are padded, by zero columns in their factors.

    The pairs named in `multiplied_out` are, and products are in 8 bits where that is asked for and possible. Raises
    `ValueError` where a projection is neither linear nor such a pair.
    """

    @torch.no_grad()
    def __init__(
        self,
        layer: WhisperEncoderLayer,
        multiplied_out: Collection[str],
        positions: int,
        int8: bool = False,
        by_heads: bool = False,
    ) -> None:
        self.multiplied_out, self.positions, self.int8, self.by_heads = multiplied_out, positions, int8, by_heads
        self.sources = parameters(layer)
        self.versions = list(map(version, self.sources))
        products = {name: product(projection) for name, projection in projections(layer).items()}
        for name in multiplied_out:
            (first, second), bias = products[name]
            products[name] = Product(((first.float() @ second.float()).to(first.dtype),), bias)
        heads = layer.self_attn.num_heads
        shared = [name for name in ("q_proj", "k_proj", "v_proj") if len(products[name].weights) > 1]
        self.reduction = choose_reduction(products, heads, positions)
        query, key, value, out = (products[name] for name in ATTENTION)
        if self.reduction.keys:
            query, key = absorb_keys(query, key, heads, self.reduction.width)
        if self.reduction.values:
            value, out = absorb_values(value, out, heads, self.reduction.width)
        products.update(q_proj=query, k_proj=key, v_proj=value, out_proj=out)
        int8 = int8 and all(map(has_int8, out.weights))
        if int8:
            products = {name: balanced(each) for name, each in products.items()}
        self.shared = shared if len(shared) > 1 else []
        if self.shared:
            side_by_side = Product((torch.cat([products[name].weights[0] for name in shared], dim=1),))
            self.first = Int8Product(side_by_side) if int8 else side_by_side
            self.widths = [products[name].weights[0].shape[1] for name in shared]
            for name in shared:
                (_, *rest), bias = products[name]
                products[name] = Product(tuple(rest), bias)
        self.products = {name: Int8Product(each) if int8 else each for name, each in products.items()}

    def renewed(self, layer: WhisperEncoderLayer) -> "InferenceLayer | None":
        """The same from the weights as they are now; nothing where the layer has other parts meanwhile."""
        if not all(map(is_plain, projections(layer).values())):
            return None
        return InferenceLayer(layer, self.multiplied_out, self.positions, self.int8, self.by_heads)

    def current(self, layer: WhisperEncoderLayer) -> "InferenceLayer | None":
        """This, or renewed where weights were changed in place; nothing where the layer now has others."""
        now = parameters(layer)
        if len(now) != len(self.sources) or not all(map(operator.is_, now, self.sources)):
            return None
        # Under torch.compile the counts would be those of the time of tracing.
        if torch.compiler.is_compiling() or self.versions == list(map(version, now)):
            return self
        return self.renewed(layer)

    def forward(self, layer: Any, hidden_states: torch.Tensor, coefficients: torch.Tensor | None) -> torch.Tensor:
        """Takes and gives hidden states of shape `(batch_size, positions, d_model)`, followed by what is known."""
        hidden_states = hidden_states.contiguous()  # the convolutions leave channels first, which all layers would copy
        hidden_states = hidden_states + self.attention(layer, layer.self_attn_layer_norm(hidden_states), coefficients)
        hidden = self.products["fc1"](layer.final_layer_norm(hidden_states), gelu=True)
        return within_range(hidden_states + self.products["fc2"](hidden))

    def attention(self, layer: Any, x: torch.Tensor, coefficients: torch.Tensor | None) -> torch.Tensor:
        """Takes x of shape `(batch_size, positions, d_model)`, and gives the same shape."""
        known, mixing, bias = (x, None, None) if coefficients is None else layer.padding_states(x, coefficients)
        inputs = dict.fromkeys(("q_proj", "k_proj", "v_proj"), known)
        if self.shared:
            inputs.update(zip(self.shared, self.first(inputs["q_proj"]).split(self.widths, dim=-1), strict=True))
        inputs["q_proj"] = inputs["q_proj"][:, : x.shape[1]]
        rows = {name: self.products[name](of_projection) for name, of_projection in inputs.items()}
        if mixing is not None:
            rows |= {name: followed_by_padding(rows[name], mixing) for name in ("k_proj", "v_proj")}
        heads, scale = layer.self_attn.num_heads, layer.self_attn.scaling
        query, key, value = (
            rows[name].unflatten(-1, (-1, self.reduction.width)).transpose(1, 2).expand(-1, heads, -1, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if self.by_heads and x.dtype == torch.float32 and x.shape[1] > self.positions // 4:  # fewer rows do not pay
            mixed = attention_by_heads(query, key, value, bias, scale)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, bias, scale=scale)
        return self.products["out_proj"](mixed.transpose(1, 2).flatten(2))
