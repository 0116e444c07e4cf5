"""What the encoder computes at padded positions, as tables of limited rank; see section 8 of the method."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import tqdm
from torch import nn

from ..common.errors import InputError
from ..common.processes import all_reduce, global_index
from ..inference_lite_whisper import LEAST_FILLED, LOUDEST_FLOOR, PaddingStates, end_of_sound
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration

MARGIN = 48  # positions after the end of the sound; chosen on calibration clips, see the page on the method
RANK = 65  # of which one is zero; chosen likewise
CLIPS = 240  # at the least, cut from the calibration windows
QUIETEST_FLOOR = -1.5  # of features: 1e-10 in log-mel
RIDGE = 1.0  # clips' worth of doubt that a state depends on its clip


@dataclass
class PaddingSums:
    """
    The normal equations of a regression at every position; additive.

    Args:
        gram (`torch.Tensor` of shape `(positions, coefficients, coefficients)`): sums of f f^T over clips.
        moment (`torch.Tensor` of shape `(positions, coefficients, d_model)`): sums of f y^T.
    """

    gram: torch.Tensor
    moment: torch.Tensor

    @classmethod
    def zeros(cls, positions: int, coefficients: int, d_model: int, device: torch.device) -> "PaddingSums":
        """Those of no clips, in float32: a sum has a few hundred terms."""
        shape = (positions, coefficients)
        return cls(torch.zeros(*shape, coefficients, device=device), torch.zeros(*shape, d_model, device=device))

    def update(self, states: torch.Tensor, coefficients: torch.Tensor, starts: torch.Tensor) -> None:
        """
        Adds clips.

        Args:
            states (`torch.Tensor` of shape `(clips, positions, d_model)`): what was computed.
            coefficients (`torch.Tensor` of shape `(clips, coefficients)`): of the clips; the first is 1.
            starts (`torch.Tensor` of shape `(clips,)`): the position from which on they are padding.
        """
        padded = torch.arange(states.shape[1], device=states.device) >= starts[:, None]
        weighted = coefficients[:, None] * padded[..., None]
        self.gram += torch.einsum("cta,cb->tab", weighted, coefficients)
        self.moment += torch.einsum("cta,ctd->tad", weighted, states.float())

    def of_all_processes(self) -> "PaddingSums":
        """The sums over the clips of all processes."""
        return PaddingSums(all_reduce(self.gram), all_reduce(self.moment))


def tables_of_limited_rank(sums: PaddingSums, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The affine functions of a clip's coefficients that predict its states best, as combinations of a few states.

    With f the coefficients, L L^T their mean f f^T over all positions and u = L^-1 f, of which the first is 1 and the
    others have no mean, unit variance and no correlation, the state at a position is regressed on u, and held to its
    mean by a ridge. The tables of all coefficients, side by side, are then cut to their leading singular vectors: what
    this adds to the error is least in the mean over clips, as E[u u^T] = 1. A last state of zero makes the weights of
    every position add up to one, so that what is affine in the states is the same combination of that of the few.

    Args:
        sums (`PaddingSums`): over the calibration clips.
        rank (`int`): how many states, that of zero included.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the weights, of shape `(positions, rank)`, and the states by coefficient,
        of shape `(coefficients, rank, d_model)`; in float32. Positions that were never padded have the state zero.
    """
    gram, moment = sums.gram.double(), sums.moment.double()
    total = gram.sum(dim=0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(total / total[0, 0]))
    ridge = RIDGE * torch.eye(len(total), dtype=gram.dtype, device=gram.device)
    ridge[0, 0] = 1e-6  # only for positions that no clip reached
    tables = torch.linalg.solve(whiten @ gram @ whiten.t() + ridge, whiten @ moment)
    side_by_side = tables.flatten(start_dim=1)
    left, values, right = torch.linalg.svd(side_by_side, full_matrices=False)
    kept = rank - 1
    scale = len(left) ** 0.5  # weights and states of about the size of the latter, for the sake of fp16
    mixing, states = left[:, :kept] * scale, values[:kept, None] * right[:kept] / scale
    mixing = torch.cat([mixing, 1 - mixing.sum(dim=1, keepdim=True)], dim=1)
    states = torch.cat([states, torch.zeros_like(states[:1])]).unflatten(1, tables.shape[1:])
    return mixing.float(), torch.einsum("ab,rad->brd", whiten, states).float()


def padded_clips(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    Cuts each window to a clip of another length and loudness, as if it had been recorded so.

    Lengths are distributed evenly on a logarithmic scale, from that of `LEAST_FILLED` to the end of the sound or a few
    frames before that of the window; loudness evenly over what a signal in [-1, 1] can have. A gain adds to all of a
    log-mel; its floor is 2 (8 in log10) below its highest value, but not below -1.5.

    Args:
        features (`torch.Tensor` of shape `(windows, mel_bins, mel_frames)`): log-mel features.
        generator (`torch.Generator`): of the choices.

    Returns:
        `torch.Tensor` of the same shape.
    """
    clips = features.clone()
    least, whole = round(LEAST_FILLED * features.shape[-1]), features.shape[-1]
    ends, _ = end_of_sound(clips)
    for clip, end in zip(clips, ends.tolist(), strict=True):
        longest = max(min(end, round(0.95 * whole)), least + 1)
        share, loudness = torch.rand(2, generator=generator).tolist()
        length = round(least * (longest / least) ** share)
        floor = QUIETEST_FLOOR + (LOUDEST_FLOOR - QUIETEST_FLOOR) * loudness
        clip += floor - (clip[:, :length].amax() - 2)
        clip.clamp_(min=floor)
        clip[:, length:] = floor
    return clips


@torch.no_grad()
def learn_padding(
    model: LiteWhisperForConditionalGeneration, batches: Sequence[torch.Tensor], seed: int = 0
) -> list[PaddingSums]:
    """
    Runs clips of all lengths through the encoder and sums what it computes at their padded positions.

    Time: a forward pass of the encoder for each of at least `CLIPS` clips. Memory: a table of three coefficients by
    d_model at each position, for each layer and the output, in float32 (0.8 GB for large-v3). Several processes share
    the batches, and all get the sums over all clips.

    Args:
        model (`LiteWhisperForConditionalGeneration`): whose padding is to be known, as it will be used.
        batches (`Sequence[torch.Tensor]` of shape `(batch, mel_bins, mel_frames)`): log-mel features.
        seed (`int`, *optional*, defaults to 0): of lengths and loudness.

    Returns:
        `list[PaddingSums]`: of what enters k and v of each encoder layer, and of the encoder's output.

    Raises:
        InputError: there is no audio.
    """
    encoder, config = model.get_encoder(), model.config
    windows = int(all_reduce(torch.tensor(sum(map(len, batches)), device=model.device)))
    if not windows:
        raise InputError("there is no calibration audio; name a dataset with audio", setting="dataset")
    positions, modules = config.max_source_positions, [layer.self_attn_layer_norm for layer in encoder.layers]
    sums = [PaddingSums.zeros(positions, 3, config.d_model, model.device) for _ in (*modules, encoder)]
    clip: dict[str, torch.Tensor] = {}

    def observe(module: nn.Module, total: PaddingSums) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_hook(
            lambda _, inputs, output: total.update(output[0] if module is encoder else output, **clip)
        )

    rounds = -(-CLIPS // windows)
    used, training = encoder.uses_constant_padding, model.training
    hooks = [observe(module, total) for module, total in zip((*modules, encoder), sums, strict=True)]
    try:
        model.eval()
        encoder.use_constant_padding(False)
        with tqdm(desc="padding", unit="clip", total=rounds * sum(map(len, batches))) as progress:
            for index, batch in enumerate(list(batches) * rounds):
                generator = torch.Generator().manual_seed(seed + global_index(index))
                features = padded_clips(batch, generator)
                frames, coefficients = end_of_sound(features)
                starts = -(-frames // 2) + MARGIN
                clip.update(coefficients=coefficients.to(model.device), starts=starts.to(model.device))
                encoder(features.to(device=model.device, dtype=model.dtype))
                progress.update(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
        if used:
            encoder.use_constant_padding()
    return [total.of_all_processes() for total in sums]


@torch.no_grad()
def add_padding(model: LiteWhisperForConditionalGeneration, sums: Sequence[PaddingSums], rank: int = RANK) -> None:
    """
    Lets a model know its padding, in place, and use it from then on.

    Args:
        model (`LiteWhisperForConditionalGeneration`): which may know it already; that is replaced.
        sums (`Sequence[PaddingSums]`): from `learn_padding`.
        rank (`int`, *optional*, defaults to `RANK`): of the tables, at the most, see `tables_of_limited_rank`.
    """
    encoder, config = model.get_encoder(), model.config
    rank = min(rank, config.max_source_positions)
    config.constant_padding = {"rank": rank, "margin": MARGIN, "enabled": True}
    for module, of_module in zip((*encoder.layers, encoder), sums, strict=True):
        module.padding_states = PaddingStates(config).to(device=model.device, dtype=model.dtype)
        mixing, states = tables_of_limited_rank(of_module, rank)
        module.padding_states.mixing.copy_(mixing)
        module.padding_states.states.copy_(states)
