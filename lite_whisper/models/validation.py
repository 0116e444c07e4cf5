"""Checks the sizes in the JSON files of a model before memory is allocated for them."""

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import WhisperConfig, WhisperForConditionalGeneration

from ..common.errors import InputError

MAX_PARAMETERS = 5_000_000_000  # about three times the largest Whisper
MAX_PARAMETERS_PER_STORED = 2  # tied embeddings are stored once but counted twice

# Sizes of filters and windows in a feature extractor. Published Whispers: at most 128, 400, 160, 30, 16,000.
MAX_FEATURE_SIZES = {
    "feature_size": 1024,
    "n_fft": 1 << 16,
    "hop_length": 1 << 16,
    "chunk_length": 600,
    "sampling_rate": 1 << 18,
}


def check_parameters(config: WhisperConfig, name: str) -> None:
    """
    Checks that a configuration describes a model of plausible size; weights are not needed.

    Raises:
        InputError: the model would have more than `MAX_PARAMETERS` parameters.
    """
    described = _parameters(WhisperForConditionalGeneration, config)
    if described > MAX_PARAMETERS:
        raise InputError(
            f"config.json of {name} describes a model of {described:,} parameters, more than the "
            f"{MAX_PARAMETERS:,} allowed; copy the file from the base model"
        )


def _parameters(model_class: type[WhisperForConditionalGeneration], config: WhisperConfig) -> int:
    """Counts the parameters of a model without allocating memory for them."""
    with torch.device("meta"):
        model: torch.nn.Module = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters())


def check_weights_fit(model_class: type[WhisperForConditionalGeneration], folder: Path, name: str) -> None:
    """
    Checks that the size described by a configuration matches the stored weights. Reads only the weights' headers.

    Args:
        model_class (`type`): class of the model.
        folder (`Path`): folder that holds configuration and weights.
        name (`str`): name of the model in messages.

    Raises:
        InputError: the described model is more than twice as large, or there are no weights.
    """
    whole = folder / "model.safetensors"  # takes precedence over shards
    files = [whole] if whole.exists() else [*folder.glob("model-*.safetensors")]
    if not files:
        raise InputError(f"{name} has no model.safetensors or shards of it; give a complete model saved as safetensors")
    stored = sum(prod(shape) for shape in _stored_shapes(files))
    if not stored:
        raise InputError(f"the safetensors of {name} contain no weights; give a complete model")
    config_class: Any = model_class.config_class
    described = _parameters(model_class, config_class.from_pretrained(folder))
    if described > MAX_PARAMETERS_PER_STORED * stored:
        raise InputError(
            f"config.json of {name} describes a model of {described:,} parameters, but its weights hold {stored:,}; "
            "give files that belong to the same model"
        )


def _stored_shapes(files: Sequence[Path]) -> Iterator[list[int]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118, not a dict
                yield file.get_slice(key).get_shape()


def check_processor_files(folder: Path) -> None:
    """
    Checks that a folder holds a Whisper processor of plausible sizes that loads no other model.

    Raises:
        InputError: it does not, or one of its files does not contain a JSON object.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.exists():
            continue
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise InputError(f"{path} does not contain a JSON object; copy it from the base model")
        if "audio_tokenizer" in settings:  # transformers would load that model for any processor
            raise InputError(f"{path} has an audio_tokenizer, which Whisper does not use; remove that entry")
        extractor = settings.get("feature_extractor", settings)
        for setting, largest in MAX_FEATURE_SIZES.items():
            _check_size(path, setting, extractor, largest)


def _check_size(path: Path, setting: str, extractor: Any, largest: int) -> None:
    size = extractor.get(setting, 1) if isinstance(extractor, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= largest:
        raise InputError(
            f"{setting} in {path} is {size!r}, not an integer between 1 and {largest}; copy the file from the base "
            "model"
        )
