"""From a model and its moments to spectra, and with ranks to a LiteWhisper."""

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
from .moments import OBSERVED_SIDE, EncoderMoments, Moments, blended
from .sensitivity import Sensitivities
from .spectrum import Factors, Side, Spectrum, factorize, loss_metric, output_eigenvalues

DAMPING = 0.5  # this and the next were chosen on whisper-base and audio of other languages, see the method
UNIFORM = 0.2  # the share of a frame's weight that does not depend on how much the loss feels it


def _layer_moments(
    layer: WhisperEncoderLayer, index: int, uniform: dict[str, Moments], sensitivities: Sensitivities | None
) -> dict[str, Moments]:
    """The moments of a layer's frames as its projections are to see them, on the layer's device."""

    def on_device(of_layer: dict[str, Moments]) -> dict[str, Moments]:
        return {name: m.to(layer.fc1.weight.device) for name, m in of_layer.items()}

    uniform = on_device(uniform)
    return blended(uniform, on_device(sensitivities.moments[index]), UNIFORM) if sensitivities else uniform


def _observed(moments: dict[str, Moments], projection: str) -> tuple[Moments, Side]:
    """The moments that describe a projection, and of which side they are."""
    name = "q_proj" if projection in ("k_proj", "v_proj") else projection
    return moments[name], OBSERVED_SIDE[name]


def encoder_spectra(
    model: WhisperForConditionalGeneration,
    moments: EncoderMoments,
    sensitivities: Sensitivities | None = None,
    damping: float = DAMPING,
) -> EncoderSpectra:
    """
    The spectrum of every encoder projection.

    Time: one eigenvalue problem of size d x d per projection, in float64 (large-v3: 192 of 1280 x 1280); several
    processes share the layers.

    Args:
        model (`WhisperForConditionalGeneration`): the base model.
        moments (`EncoderMoments`): of its encoder, from `collect_moments`.
        sensitivities (`Sensitivities`, *optional*):
            From `collect_sensitivities`; with them the eigenvalues are in units of the loss, comparable across layers
            and kinds of layer, without them variances.
        damping (`float`, *optional*, defaults to 0.5): of the metric that is made of the sensitivities, see
            `loss_metric`.

    Returns:
        `EncoderSpectra`: one dict per encoder layer, from projection to spectrum, on the CPU.
    """
    layers = model.get_encoder().layers
    spectra: dict[int, dict[str, Spectrum]] = {}
    metrics = sensitivities.layers if sensitivities else [{} for _ in layers]
    layerwise = list(shard(enumerate(zip(layers, moments, metrics, strict=True))))
    for index, (layer, uniform, of_metric) in tqdm(layerwise, "spectra", unit="layer"):
        spectra[index] = {}
        of_layer = _layer_moments(layer, index, uniform, sensitivities)
        for projection in PROJECTIONS:
            linear = projection_module(layer, projection)
            observed, side = _observed(of_layer, projection)
            weight = linear.weight.detach()
            metric = loss_metric(weight, of_metric[projection].to(weight.device), damping) if sensitivities else None
            eigenvalues = output_eigenvalues(weight, observed.covariance, side, metric)
            spectra[index][projection] = Spectrum(
                eigenvalues.cpu(), linear.in_features, linear.out_features, linear.bias is not None, int(observed.count)
            )
    return [of_layer for _, of_layer in sorted(all_gather(list(spectra.items())), key=lambda item: item[0])]


@torch.no_grad()
def compress(
    model: WhisperForConditionalGeneration,
    moments: EncoderMoments,
    ranks: Ranks,
    sensitivities: Sensitivities | None = None,
    damping: float = DAMPING,
) -> LiteWhisperForConditionalGeneration:
    """
    Builds the LiteWhisper in which every projection named in `ranks` is a low-rank pair.

    Args:
        model (`WhisperForConditionalGeneration`): the base model; not changed, and no memory is shared with the result.
        moments (`EncoderMoments`): of its encoder, from `collect_moments`.
        ranks (`Ranks`): one dict per encoder layer, for example from `threshold_ranks`.
        sensitivities (`Sensitivities`, *optional*): with them each projection keeps what the loss feels most, and the
            bias of the output is corrected; without them it keeps what varies most.
        damping (`float`, *optional*, defaults to 0.5): of the metric that is made of the sensitivities, see
            `loss_metric`.

    Returns:
        `LiteWhisperForConditionalGeneration`: the compressed model, in evaluation mode, in the base model's dtype and
        on its device, with its generation settings. Several processes share the layers, and each gets the whole model.

    Raises:
        ValueError: a layer, projection or rank does not fit the model.
    """
    lite = empty_lite_model(model, ranks)
    metrics = sensitivities.layers if sensitivities else [{} for _ in ranks]
    twins = lite.get_encoder().layers
    layers = list(shard(enumerate(zip(model.get_encoder().layers, twins, ranks, moments, metrics, strict=True))))
    for index, (layer, twin, of_layer, uniform, of_metric) in tqdm(layers, "factorisation", unit="layer"):
        observed_layer = _layer_moments(layer, index, uniform, sensitivities)
        for projection, rank in of_layer.items():
            linear = projection_module(layer, projection)
            observed, side = _observed(observed_layer, projection)
            weight = linear.weight
            metric = loss_metric(weight, of_metric[projection].to(weight.device), damping) if sensitivities else None
            factors = factorize(weight, linear.bias, observed.mean, observed.covariance, side, rank, metric)
            set_factors(projection_module(twin, projection), factors)
    done = [(i, {name: value.cpu() for name, value in twins[i].state_dict().items()}) for i in shard(range(len(twins)))]
    for index, weights in all_gather(done):
        twins[index].load_state_dict(weights)
    if sensitivities and any(ranks):
        correct_bias(lite, model, sensitivities.windows)
    return lite


def empty_lite_model(model: WhisperForConditionalGeneration, ranks: Ranks) -> LiteWhisperForConditionalGeneration:
    """
    The LiteWhisper with these ranks, a copy of the base model except that all its factors are zero.

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
    """Writes factors into a `LowRankLinear`, in its dtype and on its device."""
    for name, value in factors._asdict().items():
        getattr(pair, name).copy_(value)
