"""Compares both recipes at several encoder sizes, from one calibration."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration

from ..audio import Clip
from ..common.errors import InputError
from ..common.files import check_output, check_unchanged, read_json, temporary_name, working_folder, write_json
from ..common.plots import saved_figure
from ..common.processes import broadcast, is_main_process, join
from ..lowrank.allocation import budget_ranks, threshold_ranks_within
from ..lowrank.compression import compress, encoder_spectra
from ..models.folders import encoder_parameters
from .convert import CalibratedModel, load_and_calibrate
from .measurement import clips_to_transcribe, measure
from .recipes import projections_budget
from .settings import ConversionSettings

Row = dict[str, Any]
"""Recipe, ratio and figures of one model."""
TABLE = "sweep.csv"


@dataclass(frozen=True)
class Sweep:
    """
    Result of a sweep.

    Args:
        folder (`Path`): folder that contains `sweep.csv` and `pareto.png`.
        rows (`list[Row]`): the uncompressed model, followed by both recipes at every size.
    """

    folder: Path
    rows: list[Row]


def sweep(settings: ConversionSettings, ratios: Sequence[float]) -> Sweep:
    """
    Measures both recipes at several sizes and writes a table and a plot. An interrupted sweep can be resumed.

    Args:
        settings (`ConversionSettings`): settings of the conversions; their size is ignored. See `check_sweep`.
        ratios (`Sequence[float]`): fractions of the encoder's parameters to keep.

    Raises:
        InputError: as in `convert` and `check_sweep`.
    """
    check_sweep(settings)
    check_output(settings.output, settings.base_model, settings.overwrite, TABLE)
    device = join(settings.device)
    clips = clips_to_transcribe(settings)
    with working_folder(settings.output, is_main_process()) as work:
        base = load_and_calibrate(settings, device, work, ratios)
        rows = _measure_all(settings, ratios, base, clips, work)
        rows = [row for row in rows if row["ratio"] in (1.0, *ratios)]
        if is_main_process():
            with temporary_name(settings.output) as temporary:
                temporary.mkdir()
                _write_table(rows, temporary / TABLE)
                _plot_pareto(rows, temporary / "pareto.png")
    return Sweep(settings.output, rows)


def check_sweep(settings: ConversionSettings) -> None:
    """
    Checks that settings are suitable for a sweep.

    Raises:
        InputError: there is no evaluation audio, or a setting applies to a single model only.
    """
    if not settings.evaluate:
        raise InputError("a sweep measures word error rates; give audio with transcripts", setting="evaluate")
    if settings.recipe != "loss-aware":
        raise InputError("a sweep compares both recipes; leave the recipe unset", setting="recipe")
    if settings.cost != "parameters":
        raise InputError("a sweep compares models by parameters; leave the cost unset", setting="cost")
    if settings.recover is not None:
        raise InputError("a sweep does not recover its models; leave recovery out", setting="recover")
    if settings.constant_padding:
        raise InputError("a sweep does not precompute padding; leave it out", setting="constant_padding")


def _measure_all(
    settings: ConversionSettings, ratios: Sequence[float], base: CalibratedModel, clips: Sequence[Clip], work: Path
) -> list[Row]:
    """The rows of all models; each row is saved as soon as it is measured, so that a sweep can be resumed."""
    model, calibration = base.model, base.calibration
    moments, sensitivities, origin = calibration.moments, calibration.sensitivities, calibration.origin
    assert sensitivities is not None
    variances, losses = encoder_spectra(model, moments), encoder_spectra(model, moments, sensitivities)
    decisive = {
        **origin,
        "evaluate": list(settings.evaluate),
        "normalizer": settings.normalizer,
        "rank_multiple": settings.rank_multiple,
    }
    saved = work / "sweep.json"
    beginning: dict[str, Any] = {"settings": decisive, "rows": []}
    table = broadcast(read_json(saved) if is_main_process() and saved.exists() else beginning)
    check_unchanged(table["settings"], decisive, saved)
    rows = table["rows"]

    def add(recipe: str, ratio: float, build: Callable[[], WhisperForConditionalGeneration]) -> None:
        if not any((row["recipe"], row["ratio"]) == (recipe, ratio) for row in rows):
            figures = measure(build(), base.processor, clips, settings, base.dtype)
            rows.append({"recipe": recipe, "ratio": ratio, **figures})
            if is_main_process():
                write_json(saved, table)

    add("uncompressed", 1.0, lambda: model)
    for ratio in ratios:
        budget = projections_budget(model, losses, int(ratio * encoder_parameters(model)))
        published = threshold_ranks_within(variances, budget, settings.rank_multiple)
        add("liteasr", ratio, partial(compress, model, moments, published))
        ranks = budget_ranks(losses, budget, settings.rank_multiple)
        add("loss-aware", ratio, partial(compress, model, moments, ranks, sensitivities))
    return rows


def _write_table(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _plot_pareto(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """
    Plots word error rate against encoder size, with a line per recipe and a dotted line for the uncompressed model.

    Args:
        rows (`Sequence[dict]`): each with recipe, encoder_parameters and word_error_rate (per cent).
        path (`Path`): image file to write.
    """
    with saved_figure(path) as (_, axes):
        for recipe in dict.fromkeys(row["recipe"] for row in rows):
            points = [row for row in rows if row["recipe"] == recipe]
            sizes = [row["encoder_parameters"] / 1e6 for row in points]
            rates = [row["word_error_rate"] for row in points]
            if recipe == "uncompressed":
                axes.axhline(rates[0], color="black", linestyle=":", label=f"uncompressed ({sizes[0]:.1f} M)")
            else:
                axes.plot(sizes, rates, marker="o", label=recipe)
        axes.set(xlabel="encoder parameters (millions)", ylabel="word error rate (%)", ylim=(0, None))
        axes.legend()
