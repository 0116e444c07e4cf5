"""The two recipes: from a calibration to a compressed model, and what there is to say of it."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration

from ..common.errors import InputError
from ..configuration_lite_whisper import PROJECTIONS
from ..lowrank.allocation import (
    EncoderSpectra,
    Ranks,
    budget_ranks,
    discarded,
    smallest_cost,
    threshold_ranks,
    total_cost,
)
from ..lowrank.compression import compress, encoder_spectra
from ..lowrank.spectrum import Spectrum
from ..lowrank.time_cost import load_time_table
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from ..models.folders import encoder_parameters
from ..models.layers import projection_module
from .calibration import Calibration
from .settings import ConversionSettings

logger = logging.getLogger(__name__)

RecipeReport = dict[str, Any]
"""What there is to say of a compression, for `compression.json`."""


def compress_liteasr(
    settings: ConversionSettings, model: WhisperForConditionalGeneration, calibration: Calibration
) -> tuple[LiteWhisperForConditionalGeneration, RecipeReport]:
    """The published recipe: in every projection the directions that hold a share of the variance."""
    assert settings.thresholds is not None
    spectra = encoder_spectra(model, calibration.moments)
    ranks = threshold_ranks(spectra, settings.thresholds, settings.rank_multiple)
    return compress(model, calibration.moments, ranks), {
        "recipe": {"name": "liteasr", "thresholds": settings.thresholds, "rank_multiple": settings.rank_multiple},
        "calibration": calibration.origin,
        "variance_kept": [
            {
                projection: spectrum.explained_variance(of_layer[projection]) if projection in of_layer else 1.0
                for projection, spectrum in spectra_of_layer.items()
            }
            for spectra_of_layer, of_layer in zip(spectra, ranks, strict=True)
        ],
    }


def compress_loss_aware(
    settings: ConversionSettings, model: WhisperForConditionalGeneration, calibration: Calibration
) -> tuple[LiteWhisperForConditionalGeneration, RecipeReport]:
    """The default recipe: errors in units of the loss, one budget, the mean output as it was."""
    sensitivities, origin = calibration.sensitivities, calibration.origin
    assert sensitivities is not None
    spectra = encoder_spectra(model, calibration.moments, sensitivities)
    parameters = encoder_parameters(model)
    budget = settings.encoder_budget(parameters, model.get_encoder().embed_positions.weight.numel())
    if budget >= parameters and not settings.target_speedup:
        logger.warning("the encoder has %d parameters and may keep %d: nothing is compressed", parameters, budget)
    recipe = {"name": "loss-aware", "encoder_parameters": budget, "rank_multiple": settings.rank_multiple}
    if settings.cost == "time":
        ranks, of_time = _ranks_by_time(settings, model, spectra, budget)
        recipe |= of_time
    else:
        ranks = budget_ranks(spectra, projections_budget(model, spectra, budget), settings.rank_multiple)
    frames = model.config.max_source_positions
    return compress(model, calibration.moments, ranks, sensitivities), {
        "recipe": recipe,
        "calibration": {**origin, "languages": dict(sensitivities.languages.most_common())},
        # in nats per window of audio
        "predicted_loss": [
            {projection: frames / 2 * loss for projection, loss in of_layer.items()}
            for of_layer in discarded(spectra, ranks)
        ],
    }


def check_feasible(
    settings: ConversionSettings, model: WhisperForConditionalGeneration, ratios: Sequence[float] = ()
) -> None:
    """
    Makes sure, before the calibration, that the encoder can become as small as is wanted.

    Args:
        settings (`ConversionSettings`): with the size, and the multiple of ranks.
        model (`WhisperForConditionalGeneration`): the base model.
        ratios (`Sequence[float]`, *optional*): sizes that are wanted instead of the one in the settings.

    Raises:
        InputError: it cannot; the message names the smallest ratio that can be reached.
    """
    if settings.recipe == "liteasr":
        return
    multiple = settings.rank_multiple
    shapes = [
        {name: _spectrum_without_values(projection_module(layer, name)) for name in PROJECTIONS}
        for layer in model.get_encoder().layers
    ]
    if settings.target_speedup and settings.profile:
        table = load_time_table(settings.profile)
        fastest = smallest_cost(shapes, multiple, table.cost)
        if table.budget(settings.target_speedup) < fastest:
            raise InputError(
                f"a speed-up of {settings.target_speedup:g} cannot be reached with ranks of {multiple}; ask for less "
                f"than {table.stock / (table.rest + fastest):.2f}",
                setting="target_speedup",
            )
        return
    parameters, positions = encoder_parameters(model), model.get_encoder().embed_positions.weight.numel()
    budget = min([int(ratio * parameters) for ratio in ratios] or [settings.encoder_budget(parameters, positions)])
    smallest = parameters - projections_budget(model, shapes, parameters) + int(smallest_cost(shapes, multiple))
    if budget < smallest:
        ratio = math.ceil(1000 * smallest / parameters) / 1000
        raise InputError(
            f"an encoder of {budget:,} parameters is smaller than ranks of {multiple} allow: the smallest has "
            f"{smallest:,}, a ratio of {ratio:g}; ask for that, or take a smaller multiple of ranks",
            setting="rank_multiple",
        )


def _spectrum_without_values(linear: nn.Linear) -> Spectrum:
    """What ranks of a projection cost is known before its eigenvalues are."""
    full = min(linear.weight.shape)
    return Spectrum(torch.zeros(full), linear.in_features, linear.out_features, linear.bias is not None, full + 1)


def projections_budget(model: WhisperForConditionalGeneration, spectra: EncoderSpectra, budget: int) -> int:
    """What the projections may cost where the whole encoder may have `budget` parameters."""
    return budget - encoder_parameters(model) + int(total_cost(spectra, [{} for _ in spectra]))


def _ranks_by_time(
    settings: ConversionSettings, model: WhisperForConditionalGeneration, spectra: EncoderSpectra, parameters: int
) -> tuple[Ranks, RecipeReport]:
    """
    Ranks that lose least within a time: that of the speed-up, or what so many parameters of the encoder take.

    Returns:
        The ranks, and what there is to say of them.
    """
    assert settings.profile is not None
    table, multiple = load_time_table(settings.profile), settings.rank_multiple
    if settings.target_speedup:
        budget = table.budget(settings.target_speedup)
    else:
        by_parameters = budget_ranks(spectra, projections_budget(model, spectra, parameters), multiple)
        budget = total_cost(spectra, by_parameters, table.cost)
    ranks = budget_ranks(spectra, budget, multiple, table.cost)
    speedup = table.stock / table.encoder(spectra, ranks)
    recipe_report = {"cost": "time", "predicted_speedup": round(speedup, 3), "profiled_on": table.machine}
    if settings.target_speedup:
        change = total_cost(spectra, ranks) - total_cost(spectra, [{} for _ in spectra])
        recipe_report["target_speedup"] = settings.target_speedup
        recipe_report["encoder_parameters"] = encoder_parameters(model) + int(change)
    return ranks, recipe_report
