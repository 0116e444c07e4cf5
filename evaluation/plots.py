"""Figures that are easier to look at than to read."""

from pathlib import Path

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
