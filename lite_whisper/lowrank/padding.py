"""What the encoder computes at padded positions, as tables of limited rank; see section 8 of the method."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import tqdm

from ..common.errors import InputError
from ..common.processes import all_gather, all_reduce, global_index
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from ..padding_lite_whisper import HIGHEST_FLOOR, MIN_FILLED, NUM_DIRECTIONS, PaddingStates, end_of_sound

MARGIN = 48  # positions after the end of the sound; chosen on calibration clips, see the page on the method
RANK = 65  # of which one is zero; chosen likewise
CLIPS = 240  # at the least, cut from the calibration windows
QUIETEST_FLOOR = -1.5  # of features: 1e-10 in log-mel
RIDGE = 10.0  # clips' worth of doubt that a state depends on its clip
DAMPING = 0.1  # of the covariance of deviations, as a fraction of its mean eigenvalue


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

    def update(self, states: torch.Tensor, coefficients: torch.Tensor, start: int) -> None:
        """
        Adds a clip.

        Args:
            states (`torch.Tensor` of shape `(positions, d_model)`): what was computed.
            coefficients (`torch.Tensor` of shape `(coefficients,)`): of the clip.
            start (`int`): the position from which on states count.
        """
        self.gram[start:] += torch.outer(coefficients, coefficients)
        self.moment[start:] += coefficients[:, None] * states[start:, None].float()

    def all_reduced(self) -> "PaddingSums":
        """The sums over the clips of all processes."""
        return PaddingSums(all_reduce(self.gram), all_reduce(self.moment))


@dataclass(frozen=True)
class PaddingTables:
    """What `PaddingStates` holds, under the same names and with the same shapes, in float32."""

    mixing: torch.Tensor
    states: torch.Tensor
    directions: torch.Tensor | None = None


def regression(sums: PaddingSums, constant: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The linear functions of a clip's coefficients that predict its states best, at every position by itself.

    With f the coefficients, L L^T their mean f f^T over clips and positions and u = L^-1 f, the state at a position is
    regressed on u, and held to zero by a ridge; where the first of f is 1, so is the first of u, whose table is the
    mean, and is not held.

    Args:
        sums (`PaddingSums`): over the calibration clips.
        constant (`bool`): whether the first coefficient is 1.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the tables for u, of shape `(positions, coefficients, d_model)`, zero at
        positions that were never padded, and L^-1, of shape `(coefficients, coefficients)`; in float64.
    """
    gram, moment = sums.gram.double(), sums.moment.double()
    total = gram.sum(dim=0)
    identity = torch.eye(len(total), dtype=total.dtype, device=total.device)
    ridge, mean = RIDGE * identity, total / total.diagonal().mean().clamp(min=1e-12)
    if constant:
        mean = total / total[0, 0]
        ridge[0, 0] = 1e-6  # only for positions that no clip reached
    else:
        mean += 1e-6 * identity  # there may be fewer clips than coefficients
    whiten = torch.linalg.inv(torch.linalg.cholesky(mean))
    return torch.linalg.solve(whiten @ gram @ whiten.t() + ridge, whiten @ moment), whiten


def of_limited_rank(tables: torch.Tensor, whiten: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Linear functions of a clip's coefficients as combinations of a few states, with the least error in the mean.

    The tables of all coefficients u, side by side, are cut to their leading left singular vectors: what this adds to
    the error is least, as E[u u^T] = 1. A last state of zero makes the weights of every position add up to one, so that
    what is affine in the states is the same combination of that of the few.

    Args:
        tables (`torch.Tensor` of shape `(positions, coefficients, d_model)`): from `regression`.
        whiten (`torch.Tensor` of shape `(coefficients, coefficients)`): likewise.
        rank (`int`): how many states, that of zero included.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the weights, of shape `(positions, rank)`, and the states by coefficient f,
        of shape `(coefficients, rank, d_model)`; in float32.
    """
    side_by_side = tables.flatten(start_dim=1)
    left = torch.linalg.eigh(side_by_side @ side_by_side.t()).eigenvectors.flip(1)[:, : rank - 1]
    scale = len(left) ** 0.5  # weights and states of about the size of the latter, for the sake of fp16
    mixing, states = left * scale, left.t() @ side_by_side / scale
    mixing = torch.cat([mixing, 1 - mixing.sum(dim=1, keepdim=True)], dim=1)
    states = torch.cat([states, torch.zeros_like(states[:1])]).unflatten(1, tables.shape[1:])
    return mixing.float(), torch.einsum("ab,rad->brd", whiten, states).float()


def predictive_directions(near: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
    """
    The directions in which deviations of some states tell most of those of others: a reduced-rank ridge regression.

    Args:
        near (`torch.Tensor` of shape `(clips, d_model)`): what they are told by.
        far (`torch.Tensor` of shape `(clips, d_model)`): what they tell.

    Returns:
        `torch.Tensor` of shape `(d_model, NUM_DIRECTIONS)`; what they give for `near` has unit variance, or is zero.
    """
    near, far = near.double(), far.double()
    covariance = near.t() @ near
    damping = (DAMPING * covariance.diagonal().mean()).clamp(min=1e-12)
    coefficients = torch.linalg.solve(covariance + damping * torch.eye(len(covariance)).to(covariance), near.t() @ far)
    right = torch.linalg.svd(near @ coefficients, full_matrices=False).Vh[:NUM_DIRECTIONS]
    directions = coefficients @ right.t()
    spread = (near @ directions).square().mean(dim=0).sqrt()
    directions = torch.where(spread > 1e-6 * spread.max(), directions / spread, 0)
    return torch.nn.functional.pad(directions, (0, NUM_DIRECTIONS - directions.shape[1])).float()


def padded_clips(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    Cuts each window to a clip of another length and loudness, as if it had been recorded so.

    Lengths are distributed evenly on a logarithmic scale, from that of `MIN_FILLED` to the end of the sound or a few
    frames before that of the window; loudness evenly over what a signal in [-1, 1] can have. A gain adds to all of a
    log-mel; its floor is 2 (8 in log10) below its highest value, but not below -1.5.

    Args:
        features (`torch.Tensor` of shape `(windows, mel_bins, mel_frames)`): log-mel features.
        generator (`torch.Generator`): of the choices.

    Returns:
        `torch.Tensor` of the same shape.
    """
    clips = features.clone()
    least, whole = round(MIN_FILLED * features.shape[-1]), features.shape[-1]
    ends, _ = end_of_sound(clips)
    for clip, end in zip(clips, ends.tolist(), strict=True):
        longest = max(min(end, round(0.95 * whole)), least + 1)
        share, loudness = torch.rand(2, generator=generator).tolist()
        length = round(least * (longest / least) ** share)
        floor = QUIETEST_FLOOR + (HIGHEST_FLOOR - QUIETEST_FLOOR) * loudness
        clip += floor - (clip[:, :length].amax() - 2)
        clip.clamp_(min=floor)
        clip[:, length:] = floor
    return clips


@dataclass(frozen=True)
class _Clip:
    """The coefficients of a clip, of shape `(3,)`, and how many positions are computed where it is used."""

    coefficients: torch.Tensor
    positions: int


@torch.no_grad()
def fit_padding(
    model: LiteWhisperForConditionalGeneration, batches: Sequence[torch.Tensor], seed: int = 0, rank: int = RANK
) -> list[PaddingTables]:
    """
    Runs clips of all lengths through the encoder, twice, and finds what foretells the states at their padded positions.

    In the first pass these are the coefficients of `end_of_sound`. What is left of the output is then foretold
    by how far the last positions that are computed are from what was foretold of them.

    Time: two forward passes of the encoder for each of at least `CLIPS` clips. Memory: for each layer three numbers of
    d_model at each position, in float32 (0.8 GB for large-v3), and `NUM_DIRECTIONS` of them for the output. Several
    processes share the batches, and all get the same.

    Args:
        model (`LiteWhisperForConditionalGeneration`): whose padding is to be known, as it will be used.
        batches (`Sequence[torch.Tensor]` of shape `(batch, mel_bins, mel_frames)`): log-mel features.
        seed (`int`, *optional*, defaults to 0): of lengths and loudness.
        rank (`int`, *optional*, defaults to `RANK`): of the tables, at the most.

    Returns:
        `list[PaddingTables]`: of what enters k and v of each encoder layer, and of the encoder's output.

    Raises:
        InputError: there is no audio.
    """
    config, device = model.config, model.device
    windows = int(all_reduce(torch.tensor(sum(map(len, batches)), device=device)))
    if not windows:
        raise InputError("there is no calibration audio; name a dataset with audio", setting="dataset")
    positions, rank = config.max_source_positions, min(rank, config.max_source_positions)
    clips = list(batches) * -(-CLIPS // windows)
    sums = [PaddingSums.zeros(positions, 3, config.d_model, device) for _ in range(config.encoder_layers + 1)]
    means: list[tuple[_Clip, torch.Tensor, torch.Tensor]] = []
    for clip, states in _states_of_clips(model, clips, seed):
        for total, of_module in zip(sums, states, strict=True):
            total.update(of_module, clip.coefficients, clip.positions)
        last, following = states[-1][clip.positions - MARGIN : clip.positions], states[-1][clip.positions :]
        means.append((clip, last.float().mean(dim=0), following.float().mean(dim=0)))
    *layers, (tables, whiten) = [regression(total.all_reduced(), constant=True) for total in sums]

    predicted = torch.einsum("tad,ab->tbd", tables, whiten).float()
    deviations = [_deviations(predicted, *of_clip) for of_clip in means]
    near, far = zip(*all_gather([(last.cpu(), following.cpu()) for last, following in deviations]), strict=True)
    directions = predictive_directions(torch.stack(near), torch.stack(far)).to(device)
    rest = PaddingSums.zeros(positions, NUM_DIRECTIONS, config.d_model, device)
    for (clip, states), (deviation, _) in zip(_states_of_clips(model, clips, seed), deviations, strict=True):
        unexplained = states[-1].float() - torch.einsum("k,tkd->td", clip.coefficients, predicted)
        rest.update(unexplained, deviation @ directions, clip.positions)
    more, whiten_more = regression(rest.all_reduced(), constant=False)
    output = torch.cat([tables, more], dim=1), torch.block_diag(whiten, whiten_more)
    return [
        *(PaddingTables(*of_limited_rank(*of_layer, rank)) for of_layer in layers),
        PaddingTables(*of_limited_rank(*output, rank), directions),
    ]


def _states_of_clips(
    model: LiteWhisperForConditionalGeneration, batches: Sequence[torch.Tensor], seed: int
) -> Iterator[tuple[_Clip, list[torch.Tensor]]]:
    """
    Clips cut from the batches, and what enters k and v of each layer and leaves the encoder, all positions computed.

    In every other batch a clip's positions are those that the longest clip needs, as in use, else its own.
    """
    encoder, config = model.get_encoder(), model.config
    found: list[torch.Tensor] = []
    norms = [layer.self_attn_layer_norm for layer in encoder.layers]
    hooks = [norm.register_forward_hook(lambda module, inputs, output: found.append(output)) for norm in norms]
    before, training = config.constant_padding, model.training
    config.constant_padding = {"rank": 1, "margin": MARGIN, "enabled": False}
    try:
        model.eval()
        with tqdm(desc="padding", unit="clip", total=sum(map(len, batches))) as progress:
            for index, batch in enumerate(batches):
                place = global_index(index)
                features = padded_clips(batch, torch.Generator().manual_seed(seed + place))
                found.clear()
                output = encoder(features.to(device=model.device, dtype=model.dtype))[0]
                together = encoder.known_padding(features) if place % 2 else None
                for row in range(len(features)):
                    own = encoder.known_padding(features[row : row + 1])
                    if own is not None:
                        clip = _Clip(own[1][0].to(model.device), (together or own)[0])
                        yield clip, [states[row] for states in (*found, output)]
                progress.update(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
        config.constant_padding = before
        model.train(training)


def _deviations(
    predicted: torch.Tensor, clip: _Clip, last: torch.Tensor, following: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the mean outputs at the last positions computed, and at those that follow, are from the table."""
    parts = predicted[clip.positions - MARGIN : clip.positions], predicted[clip.positions :]
    near, far = (clip.coefficients @ part.mean(dim=0) for part in parts)
    return last - near, following - far


@torch.no_grad()
def set_padding_tables(model: LiteWhisperForConditionalGeneration, learnt: Sequence[PaddingTables]) -> None:
    """
    Lets a model know its padding, in place, and use it from then on.

    Args:
        model (`LiteWhisperForConditionalGeneration`): which may know it already; that is replaced.
        learnt (`Sequence[PaddingTables]`): from `fit_padding`.
    """
    encoder, config = model.get_encoder(), model.config
    config.constant_padding = {"rank": learnt[0].mixing.shape[1], "margin": MARGIN, "enabled": True}
    for module, tables in zip((*encoder.layers, encoder), learnt, strict=True):
        directions = 0 if tables.directions is None else tables.directions.shape[1]
        module.padding_states = PaddingStates(config, directions).to(device=model.device, dtype=model.dtype)
        module.padding_states.load_state_dict({name: x for name, x in vars(tables).items() if x is not None})
