"""The two recipes: from a calibration to a compressed model, and what there is to say of it."""

import logging
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration

from ..lowrank.allocation import EncoderSpectra, Ranks, budget_ranks, discarded, threshold_ranks, total_cost
from ..lowrank.compression import compress, encoder_spectra
from ..lowrank.sequential import refit
from ..lowrank.time_cost import load_time_table
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from ..models.folders import encoder_parameters
from .calibration import Calibration
from .settings import ConversionSettings

logger = logging.getLogger(__name__)

Account = dict[str, Any]
"""What there is to say of a compression, for `compression.json`."""


def compress_liteasr(
    settings: ConversionSettings, model: WhisperForConditionalGeneration, calibration: Calibration
) -> tuple[LiteWhisperForConditionalGeneration, Account]:
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
    settings: ConversionSettings, model: WhisperForConditionalGeneration, calibration: Calibration, work: Path
) -> tuple[LiteWhisperForConditionalGeneration, Account]:
    """
    The default recipe: errors in units of the loss, one budget, sequential refit.

    Finished layers are kept in the folder `work`, from which an interrupted refit goes on.
    """
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
    lite = refit(model, calibration.batches, ranks, sensitivities, folder=work / "layers", origin=origin)
    return lite, {
        "recipe": recipe,
        "calibration": {**origin, "languages": dict(sensitivities.languages.most_common())},
        # in nats per window of audio
        "predicted_loss": [
            {projection: frames / 2 * loss for projection, loss in of_layer.items()}
            for of_layer in discarded(spectra, ranks)
        ],
    }


def projections_budget(model: WhisperForConditionalGeneration, spectra: EncoderSpectra, budget: int) -> int:
    """What the projections may cost where the whole encoder may have `budget` parameters."""
    return budget - encoder_parameters(model) + int(total_cost(spectra, [{} for _ in spectra]))


def _ranks_by_time(
    settings: ConversionSettings, model: WhisperForConditionalGeneration, spectra: EncoderSpectra, parameters: int
) -> tuple[Ranks, Account]:
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
    account = {"cost": "time", "predicted_speedup": round(speedup, 3), "profiled_on": table.machine}
    if settings.target_speedup:
        change = total_cost(spectra, ranks) - total_cost(spectra, [{} for _ in spectra])
        account["target_speedup"] = settings.target_speedup
        account["encoder_parameters"] = encoder_parameters(model) + int(change)
    return ranks, account
