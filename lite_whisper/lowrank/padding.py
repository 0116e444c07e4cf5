"""Estimation of low-rank tables of the encoder's states at padded positions; see section 8 of docs/method.md."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import tqdm

from ..common.errors import InputError
from ..common.processes import all_gather, all_reduce, global_index
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from ..padding_lite_whisper import HIGHEST_FLOOR, MIN_FILLED, NUM_DIRECTIONS, PaddingStates, end_of_sound

MARGIN = 48  # positions computed after the end of the sound; chosen on calibration clips, see docs/method.md
RANK = 65  # including the zero state; chosen on calibration clips
MIN_CLIPS = 240  # minimum number of clips cut from the calibration windows
QUIETEST_FLOOR = -1.5  # feature value of 1e-10, the floor of the log-mel transform
RIDGE = 10.0  # strength of the ridge, in clips
DIRECTION_DAMPING = 0.1  # damping of the covariance of deviations, relative to its mean eigenvalue


@dataclass
class PaddingSums:
    """
    Sums for the normal equations of one regression per position, of states y on coefficients f.

    Args:
        gram (`torch.Tensor` of shape `(positions, coefficients, coefficients)`): the sums of f f^T over clips.
        moment (`torch.Tensor` of shape `(positions, coefficients, d_model)`): the sums of f y^T over clips.
    """

    gram: torch.Tensor
    moment: torch.Tensor

    @classmethod
    def zeros(cls, positions: int, coefficients: int, d_model: int, device: torch.device) -> "PaddingSums":
        """Creates empty sums, in float32, which is accurate enough for a few hundred clips."""
        shape = (positions, coefficients)
        return cls(torch.zeros(*shape, coefficients, device=device), torch.zeros(*shape, d_model, device=device))

    def update(self, states: torch.Tensor, coefficients: torch.Tensor, start: int) -> None:
        """
        Adds a clip.

        Args:
            states (`torch.Tensor` of shape `(positions, d_model)`): the computed states.
            coefficients (`torch.Tensor` of shape `(coefficients,)`): the clip's coefficients.
            start (`int`): the first padded position; earlier states are ignored.
        """
        self.gram[start:] += torch.outer(coefficients, coefficients)
        self.moment[start:] += coefficients[:, None] * states[start:, None].float()

    def all_reduced(self) -> "PaddingSums":
        """Returns the sums over the clips of all processes."""
        return PaddingSums(all_reduce(self.gram), all_reduce(self.moment))


@dataclass(frozen=True)
class PaddingTables:
    """The tensors of a `PaddingStates` module, with the same names and shapes, in float32."""

    mixing: torch.Tensor
    states: torch.Tensor
    directions: torch.Tensor | None = None


def regression(sums: PaddingSums, constant: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Fits the linear functions of a clip's coefficients that best predict its states, independently at each position.

    Let f be the coefficients, L L^T the mean of f f^T over clips and positions, and u = L^-1 f the whitened
    coefficients. The state at each position is regressed on u with a ridge penalty. If the first element of f is the
    constant 1, so is the first element of u: its table is the mean state and is not penalised.

    Args:
        sums (`PaddingSums`): the sums over the calibration clips.
        constant (`bool`): whether the first coefficient is the constant 1.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the tables for u, of shape `(positions, coefficients, d_model)`, which are
        zero at positions that were never padded, and L^-1, of shape `(coefficients, coefficients)`; in float64.
    """
    gram, moment = sums.gram.double(), sums.moment.double()
    total = gram.sum(dim=0)
    identity = torch.eye(len(total), dtype=total.dtype, device=total.device)
    ridge, mean = RIDGE * identity, total / total.diagonal().mean().clamp(min=1e-12)
    if constant:
        mean = total / total[0, 0]
        ridge[0, 0] = 1e-6  # keeps positions solvable that are padded in no clip
    else:
        mean += 1e-6 * identity  # for fewer clips than coefficients
    whiten = torch.linalg.inv(torch.linalg.cholesky(mean))
    return torch.linalg.solve(whiten @ gram @ whiten.t() + ridge, whiten @ moment), whiten


def low_rank_tables(tables: torch.Tensor, whiten: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Approximates the tables at all positions by combinations of a few states, with the least mean squared error.

    The tables of all coefficients u, side by side, are projected onto their leading left singular vectors, which is
    optimal because E[u u^T] = I. An additional zero state makes the weights of each position sum to one, so that an
    affine function of the states can be applied to the few states instead.

    Args:
        tables (`torch.Tensor` of shape `(positions, coefficients, d_model)`): the tables from `regression`.
        whiten (`torch.Tensor` of shape `(coefficients, coefficients)`): the matrix L^-1 from `regression`.
        rank (`int`): the number of states, including the zero state.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the weights, of shape `(positions, rank)`, and the states for each
        coefficient of f, of shape `(coefficients, rank, d_model)`; in float32.
    """
    side_by_side = tables.flatten(start_dim=1)
    left = torch.linalg.eigh(side_by_side @ side_by_side.t()).eigenvectors.flip(1)[:, : rank - 1]
    scale = len(left) ** 0.5  # keeps weights and states in a range that suits float16
    mixing, states = left * scale, left.t() @ side_by_side / scale
    mixing = torch.cat([mixing, 1 - mixing.sum(dim=1, keepdim=True)], dim=1)
    states = torch.cat([states, torch.zeros_like(states[:1])]).unflatten(1, tables.shape[1:])
    return mixing.float(), torch.einsum("ab,rad->brd", whiten, states).float()


def predictive_directions(near: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
    """
    Finds the directions of `near` that best predict `far`, by reduced-rank ridge regression.

    Args:
        near (`torch.Tensor` of shape `(clips, d_model)`): the predictors.
        far (`torch.Tensor` of shape `(clips, d_model)`): the values to predict.

    Returns:
        `torch.Tensor` of shape `(d_model, NUM_DIRECTIONS)`: the directions, scaled so that the projections of `near`
        have unit variance; unused directions are zero.
    """
    near, far = near.double(), far.double()
    covariance = near.t() @ near
    damping = (DIRECTION_DAMPING * covariance.diagonal().mean()).clamp(min=1e-12)
    coefficients = torch.linalg.solve(covariance + damping * torch.eye(len(covariance)).to(covariance), near.t() @ far)
    right = torch.linalg.svd(near @ coefficients, full_matrices=False).Vh[:NUM_DIRECTIONS]
    directions = coefficients @ right.t()
    spread = (near @ directions).square().mean(dim=0).sqrt()
    directions = torch.where(spread > 1e-6 * spread.max(), directions / spread, 0)
    return torch.nn.functional.pad(directions, (0, NUM_DIRECTIONS - directions.shape[1])).float()


def padded_clips(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    Cuts each window to a clip of random length and loudness, with the features that such a recording would have.

    Lengths are log-uniform between the fraction `MIN_FILLED` of the window and the end of the sound, but at most 95 %
    of the window. Loudness is uniform over the range of signals in [-1, 1]. A gain shifts log-mel features by a
    constant; their floor is 2 below the maximum (8 in log10), but not below -1.5.

    Args:
        features (`torch.Tensor` of shape `(windows, mel_bins, mel_frames)`): log-mel features.
        generator (`torch.Generator`): the random generator for lengths and loudness.

    Returns:
        `torch.Tensor`: the features of the clips, of the same shape.
    """
    clips = features.clone()
    shortest, window_frames = round(MIN_FILLED * features.shape[-1]), features.shape[-1]
    ends, _ = end_of_sound(clips)
    for clip, end in zip(clips, ends.tolist(), strict=True):
        longest = max(min(end, round(0.95 * window_frames)), shortest + 1)
        share, loudness = torch.rand(2, generator=generator).tolist()
        length = round(shortest * (longest / shortest) ** share)
        floor = QUIETEST_FLOOR + (HIGHEST_FLOOR - QUIETEST_FLOOR) * loudness
        clip += floor - (clip[:, :length].amax() - 2)
        clip.clamp_(min=floor)
        clip[:, length:] = floor
    return clips


@dataclass(frozen=True)
class _Clip:
    """The coefficients of a clip, of shape `(3,)`, and the number of positions computed for it at inference."""

    coefficients: torch.Tensor
    positions: int


@torch.no_grad()
def fit_padding(
    model: LiteWhisperForConditionalGeneration, batches: Sequence[torch.Tensor], seed: int = 0, rank: int = RANK
) -> list[PaddingTables]:
    """
    Fits tables that predict the encoder's states at padded positions, from clips of many lengths.

    The first pass over the clips regresses the states on the coefficients of `end_of_sound`. The second pass regresses
    the remaining error of the output on the deviation of the last computed positions from their own prediction.

    Time: two forward passes of the encoder for each of at least `MIN_CLIPS` clips.

    Memory: three float32 vectors of size d_model per position and layer (0.8 GB for large-v3), and `NUM_DIRECTIONS`
    vectors per position for the output. In a distributed run the processes share the batches, and all return the same
    tables.

    Args:
        model (`LiteWhisperForConditionalGeneration`): the model, with the weights that it will be used with.
        batches (`Sequence[torch.Tensor]` of shape `(batch, mel_bins, mel_frames)`): log-mel features.
        seed (`int`, *optional*, defaults to 0): the seed for the lengths and loudness of the clips.
        rank (`int`, *optional*, defaults to `RANK`): the maximum rank of the tables.

    Returns:
        `list[PaddingTables]`: one for the input of k and v in each encoder layer, and one for the encoder's output.

    Raises:
        InputError: there is no audio.
    """
    config, device = model.config, model.device
    windows = int(all_reduce(torch.tensor(sum(map(len, batches)), device=device)))
    if not windows:
        raise InputError("no calibration audio found; pass a dataset that contains audio", setting="dataset")
    positions, rank = config.max_source_positions, min(rank, config.max_source_positions)
    clips = list(batches) * math.ceil(MIN_CLIPS / windows)
    sums = [PaddingSums.zeros(positions, 3, config.d_model, device) for _ in range(config.encoder_layers + 1)]
    means: list[tuple[_Clip, torch.Tensor, torch.Tensor]] = []
    for clip, states in _clip_states(model, clips, seed):
        for module_sums, module_states in zip(sums, states, strict=True):
            module_sums.update(module_states, clip.coefficients, clip.positions)
        last, following = states[-1][clip.positions - MARGIN : clip.positions], states[-1][clip.positions :]
        means.append((clip, last.float().mean(dim=0), following.float().mean(dim=0)))
    *layers, (tables, whiten) = [regression(module_sums.all_reduced(), constant=True) for module_sums in sums]

    predicted = torch.einsum("tad,ab->tbd", tables, whiten).float()
    deviations = [_deviations(predicted, *clip_means) for clip_means in means]
    near, far = zip(*all_gather([(last.cpu(), following.cpu()) for last, following in deviations]), strict=True)
    directions = predictive_directions(torch.stack(near), torch.stack(far)).to(device)
    residual_sums = PaddingSums.zeros(positions, NUM_DIRECTIONS, config.d_model, device)
    for (clip, states), (deviation, _) in zip(_clip_states(model, clips, seed), deviations, strict=True):
        residual = states[-1].float() - torch.einsum("k,tkd->td", clip.coefficients, predicted)
        residual_sums.update(residual, deviation @ directions, clip.positions)
    residual_tables, residual_whiten = regression(residual_sums.all_reduced(), constant=False)
    output = torch.cat([tables, residual_tables], dim=1), torch.block_diag(whiten, residual_whiten)
    return [
        *(PaddingTables(*low_rank_tables(*layer_tables, rank)) for layer_tables in layers),
        PaddingTables(*low_rank_tables(*output, rank), directions),
    ]


def _clip_states(
    model: LiteWhisperForConditionalGeneration, batches: Sequence[torch.Tensor], seed: int
) -> Iterator[tuple[_Clip, list[torch.Tensor]]]:
    """
    Yields clips cut from the batches, each with the input of k and v in each layer and the output of the encoder, with
    all positions computed.

    In every other batch, all clips get the number of positions of the longest clip, as in batched inference; in the
    others, each clip gets its own.
    """
    encoder, config = model.get_encoder(), model.config
    states: list[torch.Tensor] = []
    norms = [layer.self_attn_layer_norm for layer in encoder.layers]
    hooks = [norm.register_forward_hook(lambda module, inputs, output: states.append(output)) for norm in norms]
    constant_padding, training = config.constant_padding, model.training
    config.constant_padding = {"rank": 1, "margin": MARGIN, "enabled": False}
    try:
        model.eval()
        with tqdm(desc="padding", unit="clip", total=sum(map(len, batches))) as progress:
            for index, batch in enumerate(batches):
                batch_index = global_index(index)
                features = padded_clips(batch, torch.Generator().manual_seed(seed + batch_index))
                states.clear()
                output = encoder(features.to(device=model.device, dtype=model.dtype))[0]
                shared = encoder.known_padding(features) if batch_index % 2 else None
                for row in range(len(features)):
                    own = encoder.known_padding(features[row : row + 1])
                    if own is not None:
                        clip = _Clip(own[1][0].to(model.device), (shared or own)[0])
                        yield clip, [module_states[row] for module_states in (*states, output)]
                progress.update(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
        config.constant_padding = constant_padding
        model.train(training)


def _deviations(
    predicted: torch.Tensor, clip: _Clip, last: torch.Tensor, following: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The deviations of the mean outputs from the prediction, at the last computed and at the following positions."""
    parts = predicted[clip.positions - MARGIN : clip.positions], predicted[clip.positions :]
    near, far = (clip.coefficients @ part.mean(dim=0) for part in parts)
    return last - near, following - far


@torch.no_grad()
def set_padding_tables(model: LiteWhisperForConditionalGeneration, tables: Sequence[PaddingTables]) -> None:
    """
    Stores padding tables in a model, in place, and enables constant padding.

    Args:
        model (`LiteWhisperForConditionalGeneration`): the model; existing tables are replaced.
        tables (`Sequence[PaddingTables]`): the tables from `fit_padding`.
    """
    encoder, config = model.get_encoder(), model.config
    config.constant_padding = {"rank": tables[0].mixing.shape[1], "margin": MARGIN, "enabled": True}
    for module, module_tables in zip((*encoder.layers, encoder), tables, strict=True):
        directions = 0 if module_tables.directions is None else module_tables.directions.shape[1]
        module.padding_states = PaddingStates(config, directions).to(device=model.device, dtype=model.dtype)
        module.padding_states.load_state_dict({name: x for name, x in vars(module_tables).items() if x is not None})
