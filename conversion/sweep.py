"""Both recipes at several sizes, from one calibration, as a table and a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


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
