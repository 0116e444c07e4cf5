"""The two compression recipes, loss-aware and liteasr."""

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
    discarded_eigenvalues,
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
"""Entries of `compression.json` that describe a compression."""


def compress_liteasr(
    settings: ConversionSettings, model: WhisperForConditionalGeneration, calibration: Calibration
) -> tuple[LiteWhisperForConditionalGeneration, RecipeReport]:
    """Published recipe: keeps the directions that hold a given fraction of the variance of every projection."""
    assert settings.thresholds is not None
    spectra = encoder_spectra(model, calibration.moments)
    ranks = threshold_ranks(spectra, settings.thresholds, settings.rank_multiple)
    return compress(model, calibration.moments, ranks), {
        "recipe": {"name": "liteasr", "thresholds": settings.thresholds, "rank_multiple": settings.rank_multiple},
        "calibration": calibration.origin,
        "variance_kept": [
            {
                projection: spectrum.explained_variance(layer_ranks[projection]) if projection in layer_ranks else 1.0
                for projection, spectrum in layer_spectra.items()
            }
            for layer_spectra, layer_ranks in zip(spectra, ranks, strict=True)
        ],
    }


def compress_loss_aware(
    settings: ConversionSettings, model: WhisperForConditionalGeneration, calibration: Calibration
) -> tuple[LiteWhisperForConditionalGeneration, RecipeReport]:
    """Default recipe: minimises the estimated increase in loss under one budget and preserves the mean output."""
    sensitivities, origin = calibration.sensitivities, calibration.origin
    assert sensitivities is not None
    spectra = encoder_spectra(model, calibration.moments, sensitivities)
    parameters = encoder_parameters(model)
    budget = settings.encoder_budget(parameters, model.get_encoder().embed_positions.weight.numel())
    if budget >= parameters and not settings.target_speedup:
        logger.warning(
            "the budget of %d parameters covers the whole encoder of %d: nothing is compressed", budget, parameters
        )
    recipe = {"name": "loss-aware", "encoder_parameters": budget, "rank_multiple": settings.rank_multiple}
    if settings.cost == "time":
        ranks, time_report = _ranks_by_time(settings, model, spectra, budget)
        recipe |= time_report
    else:
        ranks = budget_ranks(spectra, projections_budget(model, spectra, budget), settings.rank_multiple)
    frames = model.config.max_source_positions
    return compress(model, calibration.moments, ranks, sensitivities), {
        "recipe": recipe,
        "calibration": {**origin, "languages": dict(sensitivities.languages.most_common())},
        # nats per window
        "predicted_loss": [
            {projection: frames / 2 * loss for projection, loss in layer_losses.items()}
            for layer_losses in discarded_eigenvalues(spectra, ranks)
        ],
    }


def check_feasible(
    settings: ConversionSettings, model: WhisperForConditionalGeneration, ratios: Sequence[float] = ()
) -> None:
    """
    Checks before calibration that the requested size can be reached.

    Args:
        settings (`ConversionSettings`): the size, and the multiple of ranks.
        model (`WhisperForConditionalGeneration`): the base model.
        ratios (`Sequence[float]`, *optional*): sizes to check instead of the size in the settings.

    Raises:
        InputError: the size cannot be reached; the message names the smallest possible ratio.
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
                f"a speed-up of {settings.target_speedup:g} cannot be reached with ranks in multiples of {multiple}; "
                f"the maximum is {table.stock / (table.rest + fastest):.2f}",
                setting="target_speedup",
            )
        return
    parameters, positions = encoder_parameters(model), model.get_encoder().embed_positions.weight.numel()
    budget = min([int(ratio * parameters) for ratio in ratios] or [settings.encoder_budget(parameters, positions)])
    smallest = parameters - projections_budget(model, shapes, parameters) + int(smallest_cost(shapes, multiple))
    if budget < smallest:
        ratio = math.ceil(1000 * smallest / parameters) / 1000
        raise InputError(
            f"an encoder of {budget:,} parameters is below the minimum of {smallest:,} (ratio {ratio:g}) for ranks in "
            f"multiples of {multiple}; choose a larger encoder or a smaller multiple",
            setting="rank_multiple",
        )


def _spectrum_without_values(linear: nn.Linear) -> Spectrum:
    """A spectrum for computing the cost of ranks before calibration; its eigenvalues are zero."""
    full = min(linear.weight.shape)
    return Spectrum(torch.zeros(full), linear.in_features, linear.out_features, linear.bias is not None, full + 1)


def projections_budget(model: WhisperForConditionalGeneration, spectra: EncoderSpectra, budget: int) -> int:
    """The part of an encoder's parameter budget that is left for its projections."""
    return budget - encoder_parameters(model) + int(total_cost(spectra, [{} for _ in spectra]))


def _ranks_by_time(
    settings: ConversionSettings, model: WhisperForConditionalGeneration, spectra: EncoderSpectra, parameters: int
) -> tuple[Ranks, RecipeReport]:
    """
    Chooses ranks under a time budget: the target speed-up's, or the time that the parameter budget would need.

    Returns:
        The ranks, and their entries of the recipe report.
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
