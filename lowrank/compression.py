"""From a model and its moments to spectra, and with ranks to a LiteWhisper."""

import copy

import torch
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from ..configuration_lite_whisper import PROJECTIONS, LiteWhisperConfig
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from .allocation import EncoderSpectra, Ranks
from .calibration import OBSERVED_SIDE, EncoderMoments, Moments, projection_module
from .spectrum import Side, Spectrum, factorize, output_eigenvalues


def _observed(moments: dict[str, Moments], projection: str) -> tuple[Moments, Side]:
    """The moments that describe a projection, and of which side they are."""
    name = "q_proj" if projection in ("k_proj", "v_proj") else projection
    return moments[name], OBSERVED_SIDE[name]


def encoder_spectra(model: WhisperForConditionalGeneration, moments: EncoderMoments) -> EncoderSpectra:
    """
    The spectrum of every encoder projection, from the moments that `collect_moments` gathered.

    Time: one eigenvalue problem of size d x d per projection, in float64 (large-v3: 192 of 1280 x 1280).
    """
    layers = model.get_encoder().layers
    spectra: EncoderSpectra = []
    for layer, of_layer in tqdm(zip(layers, moments, strict=True), "spectra", len(layers), unit="layer"):
        spectra.append({})
        for projection in PROJECTIONS:
            linear = projection_module(layer, projection)
            observed, side = _observed(of_layer, projection)
            eigenvalues = output_eigenvalues(linear.weight.detach().to(observed.mean.device), observed.covariance, side)
            spectra[-1][projection] = Spectrum(
                eigenvalues, linear.in_features, linear.out_features, linear.bias is not None, observed.count
            )
    return spectra


@torch.no_grad()
def compress(
    model: WhisperForConditionalGeneration, moments: EncoderMoments, ranks: Ranks
) -> LiteWhisperForConditionalGeneration:
    """
    Builds the LiteWhisper in which every projection named in `ranks` is a low-rank pair.

    Args:
        model (`WhisperForConditionalGeneration`): the base model; not changed, and no memory is shared with the result.
        moments (`EncoderMoments`): of its encoder, from `collect_moments`.
        ranks (`Ranks`): one dict per encoder layer, for example from `threshold_ranks`.

    Returns:
        The compressed model, in evaluation mode, in the base model's dtype and on its device, with its generation
        settings.

    Raises:
        ValueError: a layer, projection or rank does not fit the model.
    """
    config = LiteWhisperConfig(**{**model.config.to_dict(), "low_rank_config": ranks})
    state = model.state_dict()
    layers = model.get_encoder().layers
    for index in tqdm(range(len(layers)), "factorisation", unit="layer"):
        for projection, rank in ranks[index].items():
            linear = projection_module(layers[index], projection)
            observed, side = _observed(moments[index], projection)
            device = observed.mean.device
            weight = linear.weight.to(device)
            bias = None if linear.bias is None else linear.bias.to(device)
            factors = factorize(weight, bias, observed.mean, observed.covariance, side, rank)
            parent = "" if projection in ("fc1", "fc2") else "self_attn."
            prefix = f"model.encoder.layers.{index}.{parent}{projection}"
            del state[f"{prefix}.weight"]
            for name, factor in factors._asdict().items():
                state[f"{prefix}.{name}"] = factor.to(linear.weight)
    with torch.device("meta"):
        lite = LiteWhisperForConditionalGeneration(config)
    lite.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    lite.tie_weights()
    lite.generation_config = copy.deepcopy(model.generation_config)
    return lite.eval()
