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
    figure.savefig(path, dpi=150)
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
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
