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
    Plots the word error rate of each model on each dataset as bars.

    Args:
        results (`Sequence[Result]`): results, see `evaluation.report`.
        path (`Path`): image to write.
    """
    models, datasets = (list(dict.fromkeys(getattr(r, name) for r in results)) for name in ("model", "dataset"))
    with saved_figure(path, 4 + 0.4 * len(models) * len(datasets), 4) as (_, axes):
        for number, model in enumerate(models):
            rates = {r.dataset: r.wer for r in results if r.model == model}
            x = [index + (number + 0.5) / (len(models) + 1) for index, name in enumerate(datasets) if name in rates]
            axes.bar(x, [rates[name] for name in datasets if name in rates], 1 / (len(models) + 1), label=model)
        axes.set_xticks([index + 0.5 - 0.5 / (len(models) + 1) for index in range(len(datasets))])
        axes.set_xticklabels([name.removeprefix(f"{ESB}:").removeprefix(f"{BENCHMARK}:") for name in datasets])
        axes.set_ylabel("word error rate (%)")
        axes.legend()


def plot_error_by_size(results: Sequence[Any], sizes: dict[str, int], bases: set[str], path: Path) -> None:
    """
    Plots the mean word error rate over all datasets against the size of the encoder.

    Args:
        results (`Sequence[Result]`): results, see `evaluation.report`.
        sizes (`dict[str, int]`): encoder parameters of each model.
        bases (`set[str]`): names of the base models, whose published checkpoints are plotted for reference.
        path (`Path`): image to write.
    """
    with saved_figure(path) as (_, axes):
        for model, size in sizes.items():
            rate = np.mean([r.wer for r in results if r.model == model])
            axes.plot(size / 1e6, rate, marker="o", linestyle="", label=model)
        for base in sorted(bases & PUBLISHED.keys()):
            points = np.array([*PUBLISHED[base].values()])
            label = f"{base}, published (ESB, per utterance)"
            axes.plot(*points.T, marker="x", linestyle=":", color="gray", label=label)
        axes.set(
            xlabel="encoder parameters (millions)", ylabel="word error rate (%), mean over datasets", ylim=(0, None)
        )
        axes.legend()
