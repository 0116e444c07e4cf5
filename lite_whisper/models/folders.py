"""Loads models, processors and metadata from model folders or the Hub."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import GenerationConfig, PreTrainedConfig, WhisperForConditionalGeneration, WhisperProcessor

from ..common.errors import InputError
from ..configuration_lite_whisper import LiteWhisperConfig
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from .compression_json import COMPRESSION, read_compression
from .published import base_of_published
from .validation import check_parameters, check_processor_files, check_weights_fit

CARD = "README.md"

# Copied unchanged from the base model, because transformers 4.57 cannot read what transformers 5 would save.
PROCESSOR_FILES = (
    "added_tokens.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)

# Other safetensors files are variants in another dtype.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")

Model = TypeVar("Model", bound=WhisperForConditionalGeneration)


def encoder_parameters(model: WhisperForConditionalGeneration) -> int:
    """Counts the parameters of the encoder."""
    return sum(parameter.numel() for parameter in model.get_encoder().parameters())


def fingerprint(model: WhisperForConditionalGeneration) -> str:
    """A digest of the encoder's weights, which ties stored statistics and manifests to a model."""
    digest = hashlib.sha256()
    for parameter in model.get_encoder().parameters():
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def _explain_damage(name: str) -> Iterator[None]:
    """Converts whatever transformers raises for damaged files to an `InputError`."""
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{name} requires custom Python code, which is never run; give a model that loads without it"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot load {name}; its files may be damaged or belong to different models: {reason}"
        ) from error


def _load(model_class: type[Model], name: str, folder: Path) -> Model:
    """
    Loads a complete model in its stored dtype, from safetensors only and without running code from its folder.

    Raises:
        InputError: the files are damaged or belong to different models, or weights are missing or not finite.
    """
    if not Path(name).is_dir():
        folder = downloaded(name, *WEIGHTS)
    with _explain_damage(name):
        check_weights_fit(model_class, folder, name)
        loaded: Any = model_class.from_pretrained(
            folder, dtype="auto", use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
        model, report = loaded
        if (folder / "generation_config.json").exists():  # transformers ignores a damaged one
            model.generation_config = GenerationConfig.from_pretrained(folder)
        faults = {
            "lack": report["missing_keys"],
            # Other unexpected weights, such as the head of another task, are harmless.
            "contain, unlike config.json,": [key for key in report["unexpected_keys"] if key.startswith("model.")],
            "contain NaN or infinity in": [
                key for key, weight in model.named_parameters() if not weight.isfinite().all()
            ],
        }
    for fault, keys in faults.items():
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(f"the weights of {name} {fault} {min(keys)}{more}; give a complete model")
    return model


def model_files(name: str) -> tuple[Path, dict[str, Any]]:
    """
    Finds the files of a model, without its weights.

    Args:
        name (`str`): Hub id or folder.

    Returns:
        `tuple[Path, dict[str, Any]]`: their folder, and the contents of `config.json`.

    Raises:
        InputError: the model does not exist.
    """
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise InputError(f"the folder {name} does not exist; check the path")
        folder = downloaded(name, *PROCESSOR_FILES, "config.json", "generation_config.json", COMPRESSION, CARD)
    with _explain_damage(name):
        return folder, dict(PreTrainedConfig.get_config_dict(folder)[0])  # fails if the JSON is not an object


def downloaded(name: str, *files: str) -> Path:
    """
    Downloads files of a Hub repository, unless they are cached.

    Args:
        name (`str`): Hub id of the repository.
        *files (`str`): file names or patterns; files that the repository does not have are skipped.

    Returns:
        `Path`: the folder that holds the files.

    Raises:
        InputError: the repository does not exist, or the Hub cannot be reached.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=[*files]))
    except (HFValidationError, OSError) as error:
        raise InputError(
            f"cannot find {name}: not a local folder, and the Hub answers: {error} "
            "Give a folder, or a Hub id such as openai/whisper-small"
        ) from error


def base_model_files(name: str) -> tuple[Path, dict[str, Any]]:
    """
    `model_files` of a stock Whisper with its processor.

    Raises:
        InputError: the model is no Whisper, is already compressed, has no processor, or its `config.json` is invalid.
    """
    folder, config = model_files(name)
    if config.get("model_type") == "lite-whisper":
        raise InputError(f"{name} is already compressed; give its base model")
    if config.get("model_type") != "whisper":
        raise InputError(
            f"{name} is a {config.get('model_type', 'model of unknown type')}, not a Whisper; "
            "give a Whisper in the format of transformers, for example openai/whisper-small"
        )
    with _explain_damage(name):
        check_parameters(LiteWhisperConfig(**config), name)  # checks more than WhisperConfig
    if not {"preprocessor_config.json", "processor_config.json"} & {path.name for path in folder.iterdir()}:
        raise InputError(f"{name} has no preprocessor_config.json; copy it from the base model")
    if not (folder / "tokenizer_config.json").exists():
        raise InputError(f"{name} has no tokenizer; copy its files from the base model")
    return folder, config


def load_base_model(name: str) -> tuple[WhisperForConditionalGeneration, Path]:
    """
    Loads a stock Whisper in its stored dtype, from safetensors only.

    Args:
        name (`str`): Hub id or folder.

    Returns:
        `tuple[WhisperForConditionalGeneration, Path]`: the model on the CPU, and the folder of its processor and
        generation files.

    Raises:
        InputError: as in `base_model_files`, or its files are damaged.
    """
    folder, _ = base_model_files(name)
    return _load(WhisperForConditionalGeneration, name, folder), folder


def load_compressed_model(name: str) -> tuple[LiteWhisperForConditionalGeneration, Path]:
    """
    Loads a compressed model or a published checkpoint in its stored dtype.

    Args:
        name (`str`): Hub id or folder.

    Returns:
        `tuple[LiteWhisperForConditionalGeneration, Path]`: the model on the CPU, and the folder of its other files
        (published checkpoints lack most of them).

    Raises:
        InputError: the model is not compressed, or its files are damaged.
    """
    folder, config = model_files(name)
    if config.get("model_type") != "lite-whisper":
        raise InputError(
            f"{name} is a {config.get('model_type', 'model of unknown type')}, not a compressed model; "
            "give one, for example efficient-speech/lite-whisper-large-v3-turbo"
        )
    return _load(LiteWhisperForConditionalGeneration, name, folder), folder


def load_model(name: str) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """
    Loads a stock Whisper, a compressed model or a published checkpoint, together with its processor.

    For published checkpoints, processor and generation settings are loaded from the base model.

    Args:
        name (`str`): Hub id or folder.

    Raises:
        InputError: the model does not exist, has no processor, or its files are damaged.
    """
    if model_files(name)[1].get("model_type") != "lite-whisper":
        model, folder = load_base_model(name)
        return model, load_processor(folder)
    lite, folder = load_compressed_model(name)
    if not (folder / "tokenizer_config.json").exists():
        base = base_of_published(name)
        if base is None:
            raise InputError(
                f"{name} has no processor; complete it: lite-whisper upgrade {name} --base-model WHISPER "
                "--output FOLDER"
            )
        folder, _ = base_model_files(base)
        lite.generation_config = GenerationConfig.from_pretrained(folder)
    return lite, load_processor(folder)


def check_language(language: str | None, model: WhisperForConditionalGeneration, name: str) -> None:
    """
    Checks that a model supports a language.

    Raises:
        InputError: the model supports English only.
    """
    if language not in (None, "en") and not getattr(model.generation_config, "is_multilingual", False):
        raise InputError(
            f"{name} supports English only, not {language}; choose a multilingual model", setting="language"
        )


def load_processor(folder: Path) -> WhisperProcessor:
    """
    Loads the processor of a model folder, without running code from it.

    Raises:
        InputError: its files are damaged or do not belong to a Whisper.
    """
    with _explain_damage(str(folder)):
        check_processor_files(folder)
        return WhisperProcessor.from_pretrained(folder, trust_remote_code=False)


def base_model_of(name: str) -> str:
    """The base model of a compressed model, from its folder or its published name; otherwise the given name."""
    folder, config = model_files(name)
    if config.get("model_type") != "lite-whisper":
        return name
    if report := read_compression(folder):
        return report["base_model"]
    return base_of_published(name) or name
