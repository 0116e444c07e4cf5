"""Writes complete model folders."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import metadata_load
from transformers import WhisperConfig, WhisperForConditionalGeneration
from yaml import YAMLError

from ..common.files import temporary_name
from ..common.plots import saved_figure
from ..configuration_lite_whisper import PROJECTIONS
from ..lowrank.allocation import Ranks
from ..models.compression_json import write_compression
from ..models.folders import CARD, PROCESSOR_FILES
from ..publishing.card import write_card

logger = logging.getLogger(__name__)


def base_card(files: Path) -> dict[str, Any]:
    """
    Reads licence and languages from the model card in the folder of a base model.

    If the card cannot be read, a warning is logged and both are left out.
    """
    card = files / CARD
    try:
        metadata = (metadata_load(card) if card.exists() else None) or {}
        fields = {name: metadata[name] for name in ("license", "language") if name in metadata}
    except (OSError, ValueError, TypeError, YAMLError) as error:
        logger.warning("cannot read %s (%s): licence and languages are left out", card, " ".join(str(error).split()))
        return {}
    return {name: value for name, value in fields.items() if _is_text(value)}


def _is_text(value: Any) -> bool:
    """Whether a value is a string or a list of strings."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def save_model_folder(
    model: WhisperForConditionalGeneration, files: Path, path: Path, report: dict[str, Any] | None = None
) -> None:
    """
    Writes a complete model folder, which appears under `path` only once it is complete.

    Args:
        model (`WhisperForConditionalGeneration`):
            A compressed model, saved with its Hub files and `ranks.png`, or a stock Whisper.
        files (`Path`): folder from which processor and generation files are copied.
        path (`Path`): the folder to write; an existing one is replaced.
        report (`dict`, *optional*): contents of `compression.json`, from which the model card is rendered.
    """
    with temporary_name(path) as temporary:
        model.save_pretrained(temporary)
        for weights in temporary.glob("*.safetensors"):  # safetensors files are readable by their owner only
            shutil.copymode(temporary / "config.json", weights)
        for name in (*PROCESSOR_FILES, "generation_config.json"):
            if (files / name).exists():
                shutil.copyfile(files / name, temporary / name)
        if report is not None:
            write_compression(temporary, report)
            write_card(temporary, path.name)
        if ranks := getattr(model.config, "low_rank_config", None):
            _plot_ranks(ranks, model.config, temporary / "ranks.png")


def _plot_ranks(ranks: Ranks, config: WhisperConfig, path: Path) -> None:
    """Plots the rank of every encoder projection, with layers from left to right and dense projections left blank."""
    table = np.array([[layer_ranks.get(projection, np.nan) for layer_ranks in ranks] for projection in PROJECTIONS])
    with saved_figure(path, 3 + 0.45 * len(ranks), 3.2) as (figure, axes):
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
