"""Spectra of a model's projections, and the compressed model with given ranks."""

import copy

import torch
from accelerate.utils import tqdm
from torch import nn
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from ..common.processes import all_gather, shard
from ..configuration_lite_whisper import PROJECTIONS, LiteWhisperConfig
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from ..models.layers import projection_module
from .allocation import EncoderSpectra, Ranks
from .bias_correction import correct_bias
from .moments import OBSERVED_SIDE, EncoderMoments, Moments, blend_moments
from .sensitivity import Sensitivities
from .spectrum import Factors, Side, Spectrum, factorize, loss_metric, output_eigenvalues

# Both values were tuned on whisper-base with audio in other languages, see docs/method.md.
METRIC_DAMPING = 0.5
UNIFORM_WEIGHT = 0.2  # fraction of a frame's weight that does not depend on its gradient


def _layer_moments(
    layer: WhisperEncoderLayer, index: int, uniform: dict[str, Moments], sensitivities: Sensitivities | None
) -> dict[str, Moments]:
    """The moments of a layer on its device, blended with the gradient-weighted ones if there are sensitivities."""

    def on_device(moments: dict[str, Moments]) -> dict[str, Moments]:
        return {name: m.to(layer.fc1.weight.device) for name, m in moments.items()}

    uniform = on_device(uniform)
    if not sensitivities:
        return uniform
    return blend_moments(uniform, on_device(sensitivities.moments[index]), UNIFORM_WEIGHT)


def _observed_moments(moments: dict[str, Moments], projection: str) -> tuple[Moments, Side]:
    """The moments that belong to a projection, and the side (input or output) on which they were collected."""
    name = "q_proj" if projection in ("k_proj", "v_proj") else projection
    return moments[name], OBSERVED_SIDE[name]


def encoder_spectra(
    model: WhisperForConditionalGeneration,
    moments: EncoderMoments,
    sensitivities: Sensitivities | None = None,
    damping: float = METRIC_DAMPING,
) -> EncoderSpectra:
    """
    Computes the spectrum of every encoder projection.

    Time: one d x d eigenvalue problem per projection in float64 (large-v3: 192 of 1280 x 1280). In a distributed run
    the processes share the layers.

    Args:
        model (`WhisperForConditionalGeneration`): the base model.
        moments (`EncoderMoments`): the moments of its encoder, from `collect_moments`.
        sensitivities (`Sensitivities`, *optional*):
            The result of `collect_sensitivities`. If given, the eigenvalues are in units of the loss and comparable
            across layers and projection types; otherwise they are variances.
        damping (`float`, *optional*, defaults to 0.5): the damping of the loss metric, see `loss_metric`.

    Returns:
        `EncoderSpectra`: one dict per encoder layer that maps each projection to its spectrum, on the CPU.
    """
    layers = model.get_encoder().layers
    spectra: dict[int, dict[str, Spectrum]] = {}
    sensitivity_matrices = sensitivities.layers if sensitivities else [{} for _ in layers]
    own_layers = list(shard(enumerate(zip(layers, moments, sensitivity_matrices, strict=True))))
    for index, (layer, uniform, matrices) in tqdm(own_layers, "spectra", unit="layer"):
        spectra[index] = {}
        layer_moments = _layer_moments(layer, index, uniform, sensitivities)
        for projection in PROJECTIONS:
            linear = projection_module(layer, projection)
            observed, side = _observed_moments(layer_moments, projection)
            weight = linear.weight.detach()
            sensitivity = matrices[projection].to(weight.device) if sensitivities else None
            metric = None if sensitivity is None else loss_metric(weight, sensitivity, damping)
            eigenvalues = output_eigenvalues(weight, observed.covariance, side, metric)
            spectra[index][projection] = Spectrum(
                eigenvalues.cpu(), linear.in_features, linear.out_features, linear.bias is not None, int(observed.count)
            )
    return [layer_spectra for _, layer_spectra in sorted(all_gather(list(spectra.items())), key=lambda item: item[0])]


@torch.no_grad()
def compress(
    model: WhisperForConditionalGeneration,
    moments: EncoderMoments,
    ranks: Ranks,
    sensitivities: Sensitivities | None = None,
    damping: float = METRIC_DAMPING,
) -> LiteWhisperForConditionalGeneration:
    """
    Builds the compressed model, in which every projection listed in `ranks` is a low-rank pair.

    In a distributed run the processes share the layers, and each returns the whole model.

    Args:
        model (`WhisperForConditionalGeneration`): the base model. It is not modified and shares no memory with the
            result.
        moments (`EncoderMoments`): the moments of its encoder, from `collect_moments`.
        ranks (`Ranks`): one dict per encoder layer, for example from `threshold_ranks`.
        sensitivities (`Sensitivities`, *optional*):
            The result of `collect_sensitivities`. If given, each projection keeps the directions that matter most to
            the loss, and the output bias is corrected; otherwise it keeps the directions with the largest variance.
        damping (`float`, *optional*, defaults to 0.5): the damping of the loss metric, see `loss_metric`.

    Returns:
        `LiteWhisperForConditionalGeneration`: the compressed model in evaluation mode, with the dtype, device and
        generation settings of the base model.

    Raises:
        ValueError: a layer, projection or rank does not fit the model.
    """
    lite = empty_lite_model(model, ranks)
    sensitivity_matrices = sensitivities.layers if sensitivities else [{} for _ in ranks]
    layers, lite_layers = model.get_encoder().layers, lite.get_encoder().layers
    own_layers = list(shard(enumerate(zip(layers, lite_layers, ranks, moments, sensitivity_matrices, strict=True))))
    for index, (layer, lite_layer, layer_ranks, uniform, matrices) in tqdm(own_layers, "factorisation", unit="layer"):
        layer_moments = _layer_moments(layer, index, uniform, sensitivities)
        for projection, rank in layer_ranks.items():
            linear = projection_module(layer, projection)
            observed, side = _observed_moments(layer_moments, projection)
            weight = linear.weight
            sensitivity = matrices[projection].to(weight.device) if sensitivities else None
            metric = None if sensitivity is None else loss_metric(weight, sensitivity, damping)
            factors = factorize(weight, linear.bias, observed.mean, observed.covariance, side, rank, metric)
            set_factors(projection_module(lite_layer, projection), factors)
    state_dicts = [
        (index, {name: value.cpu() for name, value in lite_layers[index].state_dict().items()})
        for index in shard(range(len(lite_layers)))
    ]
    for index, state_dict in all_gather(state_dicts):
        lite_layers[index].load_state_dict(state_dict)
    if sensitivities and any(ranks):
        correct_bias(lite, model, sensitivities.windows)
    return lite


def empty_lite_model(model: WhisperForConditionalGeneration, ranks: Ranks) -> LiteWhisperForConditionalGeneration:
    """
    Builds a copy of the base model with low-rank pairs of the given ranks, whose factors are all zero.

    Raises:
        ValueError: a layer, projection or rank does not fit the model.
    """
    config = LiteWhisperConfig(**{**model.config.to_dict(), "low_rank_config": ranks})
    with torch.device("meta"):
        lite = LiteWhisperForConditionalGeneration(config)
    state = model.state_dict()
    values = {
        name: state[name].clone()
        if name in state and state[name].shape == empty.shape
        else torch.zeros(empty.shape, dtype=model.dtype, device=model.device)
        for name, empty in lite.state_dict().items()
    }
    lite.load_state_dict(values, assign=True)
    lite.tie_weights()
    lite.generation_config = copy.deepcopy(model.generation_config)
    return lite.eval()


@torch.no_grad()
def set_factors(pair: nn.Module, factors: Factors) -> None:
    """Copies factors into a `LowRankLinear`, converting them to its dtype and device."""
    for name, value in factors._asdict().items():
        getattr(pair, name).copy_(value)
