"""Figures that are easier to look at than to read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from transformers import WhisperConfig

from ..configuration_lite_whisper import PROJECTIONS
from ..lowrank.allocation import Ranks
from ..lowrank.time_cost import DENSE, TimeTable
from ..published import PUBLISHED


def plot_ranks(ranks: Ranks, config: WhisperConfig, path: Path) -> None:
    """Draws the rank of every encoder projection, layers from left to right; what stays dense is left blank."""
    table = np.array([[of_layer.get(projection, np.nan) for of_layer in ranks] for projection in PROJECTIONS])
    figure, axes = pyplot.subplots(figsize=(3 + 0.45 * len(ranks), 3.2), layout="constrained")
    image = axes.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=config.d_model)
    for (row, layer), rank in np.ndenumerate(table):
        label, color = ("dense", "black") if np.isnan(rank) else (f"{rank:.0f}", "white")
        if rank > 0.6 * config.d_model:
            color = "black"
        axes.text(layer, row, label, ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(ranks)))
    axes.set_yticks(range(len(PROJECTIONS)), PROJECTIONS)
    axes.set(xlabel="encoder layer", title="Rank of every encoder projection")
    figure.colorbar(image, label=f"rank (full: {config.d_model})")
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)


def plot_pareto(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """
    Draws word error rate against encoder size, a line for each recipe and a level for the uncompressed model.

    Args:
        rows (`Sequence[dict]`): each with recipe, encoder_parameters and word_error_rate (per cent).
        path (`Path`): of the image.
    """
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
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
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)


def plot_error_by_set(results: Sequence[Any], path: Path) -> None:
    """
    Draws the word error rate of each model on each set as bars.

    Args:
        results (`Sequence[Result]`): see `evaluation.report`.
        path (`Path`): of the image.
    """
    models, sets = (list(dict.fromkeys(getattr(r, name) for r in results)) for name in ("model", "dataset"))
    figure, axes = pyplot.subplots(figsize=(4 + 0.4 * len(models) * len(sets), 4), layout="constrained")
    for place, model in enumerate(models):
        rates = {r.dataset: r.wer for r in results if r.model == model}
        at = [index + (place + 0.5) / (len(models) + 1) for index, name in enumerate(sets) if name in rates]
        axes.bar(at, [rates[name] for name in sets if name in rates], 1 / (len(models) + 1), label=model)
    axes.set_xticks([index + 0.5 - 0.5 / (len(models) + 1) for index in range(len(sets))])
    axes.set_xticklabels([name.removeprefix("hf-audio/esb-datasets-test-only-sorted:") for name in sets])
    axes.set_ylabel("word error rate (%)")
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)


def plot_error_by_size(results: Sequence[Any], sizes: dict[str, int], bases: set[str], path: Path) -> None:
    """
    Draws the word error rate, averaged over sets, against the size of the encoder.

    Args:
        results (`Sequence[Result]`): see `evaluation.report`.
        sizes (`dict[str, int]`): encoder parameters of each model.
        bases (`set[str]`): names of the base models; the published checkpoints of these are drawn for reference.
        path (`Path`): of the image.
    """
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for model, size in sizes.items():
        rate = np.mean([r.wer for r in results if r.model == model])
        axes.plot(size / 1e6, rate, marker="o", linestyle="", label=model)
    for base in sorted(bases & PUBLISHED.keys()):
        points = np.array([*PUBLISHED[base].values()])
        axes.plot(*points.T, marker="x", linestyle=":", color="gray", label=f"{base}, published (ESB, per utterance)")
    axes.set(xlabel="encoder parameters (millions)", ylabel="word error rate (%), mean over sets", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)


def plot_times(table: TimeTable, path: Path) -> None:
    """Draws the time of the products of each size against the rank, and the level of the dense product."""
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for index, ((inputs, outputs), times) in enumerate(table.products.items()):
        ranks = sorted(rank for rank in times if isinstance(rank, int))
        color = f"C{index}"
        axes.plot(ranks, [times[rank] / 1e3 for rank in ranks], marker="o", color=color, label=f"{inputs} → {outputs}")
        axes.axhline(times[DENSE] / 1e3, color=color, linestyle=":")
    axes.set(xlabel="rank (dotted: dense)", ylabel="milliseconds per window", xlim=(0, None), ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)
