"""Both recipes at several sizes, from one calibration, as a table and a plot."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration

from ..audio import Clip
from ..common.errors import InputError
from ..common.files import check_output, check_same, read_kept, temporary_name, unfinished, write_kept
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
"""recipe, ratio, and the figures of a model."""
TABLE = "sweep.csv"


@dataclass(frozen=True)
class Sweep:
    """
    What a sweep has found.

    Args:
        folder (`Path`): with `sweep.csv` and `pareto.png`.
        rows (`list[Row]`): the uncompressed model, then both recipes at every size.
    """

    folder: Path
    rows: list[Row]


def sweep(settings: ConversionSettings, ratios: Sequence[float]) -> Sweep:
    """
    Measures both recipes at several sizes and writes a table and a plot; an interrupted sweep goes on.

    Args:
        settings (`ConversionSettings`): of the loss-aware recipe, with audio to evaluate on; its size does not count.
        ratios (`Sequence[float]`): shares of the encoder's parameters.

    Raises:
        InputError: as in `convert`, or the settings belong to one recipe or size alone.
    """
    check_sweep(settings)
    check_output(settings.output, settings.base_model, settings.overwrite, TABLE)
    device = join(settings.device)
    clips = clips_to_transcribe(settings)
    with unfinished(settings.output, is_main_process()) as work:
        base = load_and_calibrate(settings, device, work, ratios)
        rows = _measured(settings, ratios, base, clips, work)
        rows = [row for row in rows if row["ratio"] in (1.0, *ratios)]
        if is_main_process():
            with temporary_name(settings.output) as temporary:
                temporary.mkdir()
                _write_table(rows, temporary / TABLE)
                _plot_pareto(rows, temporary / "pareto.png")
    return Sweep(settings.output, rows)


def check_sweep(settings: ConversionSettings) -> None:
    """Raises `InputError` where a sweep cannot be made of these settings."""
    if not settings.evaluate:
        raise InputError("a sweep measures several sizes; name audio with transcripts to do so", setting="evaluate")
    if settings.recipe != "loss-aware" or settings.cost != "parameters":
        raise InputError("a sweep compares both recipes at equal size; name neither recipe nor cost", setting="recipe")


def _measured(
    settings: ConversionSettings, ratios: Sequence[float], base: CalibratedModel, clips: Sequence[Clip], work: Path
) -> list[Row]:
    """The rows of all models; each is kept as soon as it is measured."""
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
    kept = work / "sweep.json"
    beginning: dict[str, Any] = {"settings": decisive, "rows": []}
    table = broadcast(read_kept(kept) if is_main_process() and kept.exists() else beginning)
    check_same(table["settings"], decisive, kept)
    rows = table["rows"]

    def add(recipe: str, ratio: float, build: Callable[[], WhisperForConditionalGeneration]) -> None:
        if not any((row["recipe"], row["ratio"]) == (recipe, ratio) for row in rows):
            figures = measure(build(), base.processor, clips, settings, base.dtype)
            rows.append({"recipe": recipe, "ratio": ratio, **figures})
            if is_main_process():
                write_kept(kept, table)

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
    Draws word error rate against encoder size, a line for each recipe and a level for the uncompressed model.

    Args:
        rows (`Sequence[dict]`): each with recipe, encoder_parameters and word_error_rate (per cent).
        path (`Path`): of the image.
    """
    with saved_figure(path) as (_, axes):
        for recipe in dict.fromkeys(row["recipe"] for row in rows):
            of_recipe = [row for row in rows if row["recipe"] == recipe]
            sizes = [row["encoder_parameters"] / 1e6 for row in of_recipe]
            rates = [row["word_error_rate"] for row in of_recipe]
            if recipe == "uncompressed":
                axes.axhline(rates[0], color="black", linestyle=":", label=f"uncompressed ({sizes[0]:.1f} M)")
            else:
                axes.plot(sizes, rates, marker="o", label=recipe)
        axes.set(xlabel="encoder parameters (millions)", ylabel="word error rate (%)", ylim=(0, None))
        axes.legend()
