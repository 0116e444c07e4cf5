# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""Constant padding: finds where the audio of a window ends and fills in the encoder's states after it from tables."""

import math
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import WhisperConfig

from .kernels_lite_whisper import clamp_to_float16

NUM_LENGTHS = 30  # numbers of positions that are computed: every multiple of a thirtieth of the window
MIN_FILLED = 1 / 32  # of the window; shorter audio is treated as if it had this length
HIGHEST_FLOOR = -0.25  # log-mel features of a signal in [-1, 1] have a minimum below this
ATTENTION_GROUP = 2  # padded positions that attention sees as one
NUM_DIRECTIONS = 16  # in which the computed output corrects the table of the encoder's output

IntOrTensor = TypeVar("IntOrTensor", int, torch.Tensor)


def ceil_div(number: IntOrTensor, divisor: int) -> IntOrTensor:
    """The quotient rounded up, of a Python integer or an integer tensor."""
    return -(-number // divisor)


def round_up(number: IntOrTensor, multiple: int) -> IntOrTensor:
    """The smallest multiple that is not below a number."""
    return ceil_div(number, multiple) * multiple


def end_of_sound(input_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the padding of log-mel features: the trailing frames in which every bin holds the minimum of the clip.

    Args:
        input_features (`torch.Tensor` of shape `(batch, mel_bins, mel_frames)`): log-mel features.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the number of frames before the padding, of shape `(batch,)`, and the
        coefficients that the padded states depend on, of shape `(batch, 3)`: 1, the minimum plus 1, and log2 of the
        fraction of the window that holds audio.
    """
    floor = input_features.amin(dim=(1, 2))
    has_sound = (input_features != floor[:, None, None]).any(dim=1)
    ends = (has_sound * torch.arange(1, has_sound.shape[1] + 1, device=has_sound.device)).amax(dim=1)
    filled = (ends / has_sound.shape[1]).clamp(min=MIN_FILLED).log2()
    return ends, torch.stack([torch.ones_like(filled), floor.float() + 1, filled], dim=1)


def has_constant_padding(ends: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Whether the tables cover every clip: none is silent, and the floor of none is above a signal's. Shape `()`."""
    return (ends.min() > 0) & (coefficients[:, 1].max() - 1 < HIGHEST_FLOOR)


def positions_to_compute(end: IntOrTensor, window: int, margin: int) -> IntOrTensor:
    """
    How many encoder positions hold audio that ends at a mel frame; may exceed the window.

    Args:
        end (`int` or `torch.Tensor`): the last frame that holds audio; a position covers two frames.
        window (`int`): the encoder's positions.
        margin (`int`): positions after the end of the audio that are computed as well.

    Returns:
        `int` or `torch.Tensor`: rounded up so that at most `NUM_LENGTHS` different numbers occur.
    """
    return round_up(ceil_div(end, 2) + margin, ceil_div(window, NUM_LENGTHS))


def find_padding(input_features: torch.Tensor, window: int, margin: int) -> tuple[int, torch.Tensor] | None:
    """The positions to compute and the coefficients of the padding after them; None if all have to be computed."""
    ends, coefficients = end_of_sound(input_features)
    if input_features.shape[-1] != 2 * window or not has_constant_padding(ends, coefficients):
        return None
    positions = positions_to_compute(int(ends.max()), window, margin)
    return (positions, coefficients.to(input_features)) if positions < window else None


class PaddingStates(nn.Module):
    """
    Tables of the encoder's states at padded positions, which hardly depend on the speech before them.

    The state at position t is a combination of `rank` states with the weights `mixing[t]`, which add up to one. Each of
    these states is in turn the sum of `states[k]` times coefficient k of the clip. The first three coefficients come
    from `end_of_sound`. With `directions` there are more: how far the last computed positions deviate from the
    prediction of the first three, projected on `directions`.

    Attention needs no directions. It sees groups of padded positions as one: their mean, with log(group) added to its
    scores.

    Args:
        config (`WhisperConfig`): with `constant_padding` set.
        directions (`int`, *optional*, defaults to 0): the number of directions.
    """

    def __init__(self, config: WhisperConfig, directions: int = 0) -> None:
        super().__init__()
        rank, self.margin = config.constant_padding["rank"], config.constant_padding["margin"]
        can_group = not directions and config.max_source_positions % (NUM_LENGTHS * ATTENTION_GROUP) == 0
        self.group = ATTENTION_GROUP if can_group else 1
        self.mixing = nn.Parameter(torch.zeros(config.max_source_positions, rank), requires_grad=False)
        self.states = nn.Parameter(torch.zeros(3 + directions, rank, config.d_model), requires_grad=False)
        if directions:
            self.directions = nn.Parameter(torch.zeros(config.d_model, directions), requires_grad=False)

    def forward(
        self, computed: torch.Tensor, coefficients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Appends the states that the padding is a combination of.

        Args:
            computed (`torch.Tensor` of shape `(batch, positions, d_model)`): states of the computed positions.
            coefficients (`torch.Tensor` of shape `(batch, 3)`): from `end_of_sound`.

        Returns:
            `tuple`: the computed states and the `rank` table states after them, of shape
            `(batch, positions + rank, d_model)`; the weights of the padded groups, of shape `(groups, rank)`; and the
            bias of attention scores, of shape `(positions, positions + groups)`.
        """
        positions = computed.shape[1]
        states = torch.einsum("bk,krd->brd", coefficients, self.states[:3])
        if len(self.states) > 3:
            predicted = self.mixing[positions - self.margin : positions].mean(dim=0) @ states
            deviation = (computed[:, positions - self.margin :].mean(dim=1) - predicted) @ self.directions
            states = states + torch.einsum("bk,krd->brd", deviation, self.states[3:])
        mixing = self.mixing[positions:].unflatten(0, (-1, self.group)).mean(dim=1)
        bias = F.pad(mixing.new_full(mixing.shape[:1], math.log(self.group)), (positions, 0)).expand(positions, -1)
        return torch.cat([computed, states], dim=1), mixing, bias


def followed_by_padding(rows: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """
    Replaces the table states by the padded positions.

    Args:
        rows (`torch.Tensor` of shape `(batch, positions + rank, width)`): computed rows, then rows of the table states.
        mixing (`torch.Tensor` of shape `(padded, rank)`): weights of the table states at each padded position.

    Returns:
        `torch.Tensor` of shape `(batch, positions + padded, width)`.
    """
    rank = mixing.shape[1]
    return torch.cat([rows[:, :-rank], mixing @ rows[:, -rank:]], dim=1)


def layer_with_padding(layer: Any, hidden_states: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Runs an encoder layer, without dropout, on the computed positions; attention also sees the padded ones."""
    attention, x = layer.self_attn, layer.self_attn_layer_norm(hidden_states)
    inputs, mixing, bias = layer.padding_states(x, coefficients)
    key, value = (followed_by_padding(project(inputs), mixing) for project in (attention.k_proj, attention.v_proj))
    heads = (y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for y in (attention.q_proj(x), key, value))
    mixed = F.scaled_dot_product_attention(*heads, bias)  # type: ignore[call-arg]
    hidden_states = hidden_states + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    hidden = layer.fc1(layer.final_layer_norm(hidden_states))
    return clamp_to_float16(hidden_states + layer.fc2(layer.activation_fn(hidden)))
