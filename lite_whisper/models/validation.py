"""What the small files of a model claim, compared with what is plausible before memory is taken for it."""

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import WhisperConfig, WhisperForConditionalGeneration

from ..common.errors import InputError

LARGEST = 5_000_000_000  # parameters, three times those of the largest Whisper
TIED = 2  # at the most so many times the stored parameters are in a model: its embeddings are its output layer too

# What a feature extractor multiplies into filters and windows. Of the published Whispers: 128, 400, 160, 30, 16,000.
MOST = {"feature_size": 1024, "n_fft": 1 << 16, "hop_length": 1 << 16, "chunk_length": 600, "sampling_rate": 1 << 18}


def check_parameters(config: WhisperConfig, name: str) -> None:
    """
    Makes sure that a configuration, of which nobody need have the weights, is of a size that a Whisper has.

    Raises:
        InputError: it has far more parameters.
    """
    wanted = _parameters(WhisperForConditionalGeneration, config)
    if wanted > LARGEST:
        raise InputError(
            f"config.json of {name} describes a model of {wanted:,} parameters, and no Whisper has {LARGEST:,}; "
            "copy the file from the Whisper that the model was made from"
        )


def _parameters(model_class: type[WhisperForConditionalGeneration], config: WhisperConfig) -> int:
    """How many parameters a model has, without memory for any."""
    with torch.device("meta"):
        model: torch.nn.Module = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters())


def check_weights_fit(model_class: type[WhisperForConditionalGeneration], folder: Path, name: str) -> None:
    """
    Makes sure that a configuration describes a model of about the size of its weights, of which only headers are read.

    Args:
        model_class (`type`): of the model.
        folder (`Path`): that holds its configuration and weights.
        name (`str`): what to call the model.

    Raises:
        InputError: it would be more than twice as large, or there are no weights.
    """
    whole = folder / "model.safetensors"  # which counts where there are shards too
    files = [whole] if whole.exists() else [*folder.glob("model-*.safetensors")]
    if not files:
        raise InputError(f"{name} has no model.safetensors, nor shards of it; give a whole model, saved as safetensors")
    stored = sum(prod(shape) for shape in _stored_shapes(files))
    if not stored:
        raise InputError(f"the weights of {name} are missing: its safetensors hold none; give a whole model")
    config_class: Any = model_class.config_class
    wanted = _parameters(model_class, config_class.from_pretrained(folder))
    if wanted > TIED * stored:
        raise InputError(
            f"config.json of {name} describes a model of {wanted:,} parameters, but its weights hold {stored:,}; "
            "give the files of one model"
        )


def _stored_shapes(files: Sequence[Path]) -> Iterator[list[int]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118, it is no dict
                yield file.get_slice(key).get_shape()


def check_processor_files(folder: Path) -> None:
    """
    Makes sure that the processor in a folder is one of Whisper's, of plausible sizes, and loads nothing from elsewhere.

    Raises:
        InputError: it is not, or its files hold no JSON object.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.exists():
            continue
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise InputError(f"{path} holds no JSON object; copy it from the Whisper that the model was made from")
        if "audio_tokenizer" in settings:  # transformers would load that model, whatever the processor
            raise InputError(f"{path} names an audio_tokenizer, which no Whisper has; remove that entry")
        extractor = settings.get("feature_extractor", settings)
        for setting, most in MOST.items():
            _check_size(path, setting, extractor, most)


def _check_size(path: Path, setting: str, extractor: Any, most: int) -> None:
    size = extractor.get(setting, 1) if isinstance(extractor, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= most:
        raise InputError(
            f"{setting} in {path} is {size!r}, not a whole number between 1 and {most}; copy the file from the "
            "Whisper that the model was made from"
        )
