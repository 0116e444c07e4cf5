"""Plots of error rates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.plots import saved_figure
from ..models.published import PUBLISHED
from .leaderboard import BENCHMARK, ESB


def plot_error_by_set(results: Sequence[Any], path: Path) -> None:
    """
    Draws the word error rate of each model on each set as bars.

    Args:
        results (`Sequence[Result]`): see `evaluation.report`.
        path (`Path`): of the image.
    """
    models, sets = (list(dict.fromkeys(getattr(r, name) for r in results)) for name in ("model", "dataset"))
    with saved_figure(path, 4 + 0.4 * len(models) * len(sets), 4) as (_, axes):
        for place, model in enumerate(models):
            rates = {r.dataset: r.wer for r in results if r.model == model}
            at = [index + (place + 0.5) / (len(models) + 1) for index, name in enumerate(sets) if name in rates]
            axes.bar(at, [rates[name] for name in sets if name in rates], 1 / (len(models) + 1), label=model)
        axes.set_xticks([index + 0.5 - 0.5 / (len(models) + 1) for index in range(len(sets))])
        axes.set_xticklabels([name.removeprefix(f"{ESB}:").removeprefix(f"{BENCHMARK}:") for name in sets])
        axes.set_ylabel("word error rate (%)")
        axes.legend()


def plot_error_by_size(results: Sequence[Any], sizes: dict[str, int], bases: set[str], path: Path) -> None:
    """
    Draws the word error rate, averaged over sets, against the size of the encoder.

    Args:
        results (`Sequence[Result]`): see `evaluation.report`.
        sizes (`dict[str, int]`): encoder parameters of each model.
        bases (`set[str]`): names of the base models; the published checkpoints of these are drawn for reference.
        path (`Path`): of the image.
    """
    with saved_figure(path) as (_, axes):
        for model, size in sizes.items():
            rate = np.mean([r.wer for r in results if r.model == model])
            axes.plot(size / 1e6, rate, marker="o", linestyle="", label=model)
        for base in sorted(bases & PUBLISHED.keys()):
            points = np.array([*PUBLISHED[base].values()])
            label = f"{base}, published (ESB, per utterance)"
            axes.plot(*points.T, marker="x", linestyle=":", color="gray", label=label)
        axes.set(xlabel="encoder parameters (millions)", ylabel="word error rate (%), mean over sets", ylim=(0, None))
        axes.legend()
