"""Model folders and Hub ids in; models, processors and what their files say out."""

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

# Copied from the base model as they are: what transformers 5 writes in their place, 4.57 cannot read.
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

# Other safetensors are variants in another precision.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")

Model = TypeVar("Model", bound=WhisperForConditionalGeneration)


def encoder_parameters(model: WhisperForConditionalGeneration) -> int:
    """How many parameters the encoder has."""
    return sum(parameter.numel() for parameter in model.get_encoder().parameters())


def fingerprint(model: WhisperForConditionalGeneration) -> str:
    """A digest of the encoder's weights, by which stored moments are known to belong to them."""
    digest = hashlib.sha256()
    for parameter in model.get_encoder().parameters():
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def _damage_explained(name: str) -> Iterator[None]:
    """Makes an `InputError` of whatever transformers raises over damaged files, most of which it does not check."""
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{name} needs Python code of its own, which is not run; give a model that transformers loads without"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot load {name}, whose files may be damaged or of different models: {reason}") from error


def _load(model_class: type[Model], name: str, folder: Path) -> Model:
    """
    Loads a model in the dtype in which it is stored, from safetensors only, if it is whole; none of its code is run.

    Raises:
        InputError: the files are damaged, of several models, or lack weights, or these are not finite.
    """
    if not Path(name).is_dir():
        folder = downloaded(name, *WEIGHTS)
    with _damage_explained(name):
        check_weights_fit(model_class, folder, name)
        loaded: Any = model_class.from_pretrained(
            folder, dtype="auto", use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
        model, report = loaded
        if (folder / "generation_config.json").exists():  # transformers does without a damaged one
            model.generation_config = GenerationConfig.from_pretrained(folder)
        faults = {
            "lack": report["missing_keys"],
            # Others, such as the head of another task, do no harm.
            "have, against config.json,": [key for key in report["unexpected_keys"] if key.startswith("model.")],
            "hold NaN or infinity in": [key for key, weight in model.named_parameters() if not weight.isfinite().all()],
        }
    for fault, keys in faults.items():
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(f"the weights of {name} {fault} {min(keys)}{more}; give a whole model")
    return model


def model_files(name: str) -> tuple[Path, dict[str, Any]]:
    """
    Finds the files of a model other than its weights.

    Args:
        name (`str`): Hub id or folder.

    Returns:
        `tuple[Path, dict[str, Any]]`: the folder that holds them, and the contents of `config.json`.

    Raises:
        InputError: there is no such model.
    """
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise InputError(f"there is no folder {name}; check the path")
        folder = downloaded(name, *PROCESSOR_FILES, "config.json", "generation_config.json", COMPRESSION, CARD)
    with _damage_explained(name):
        return folder, dict(PreTrainedConfig.get_config_dict(folder)[0])  # JSON may hold something else


def downloaded(name: str, *files: str) -> Path:
    """
    Finds, or fetches, files of a Hub repository.

    Args:
        name (`str`): the Hub id.
        *files (`str`): names or patterns of files.

    Returns:
        `Path`: the folder that holds those of them that the repository has.

    Raises:
        InputError: there is no such repository, or no network.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=[*files]))
    except (HFValidationError, OSError) as error:
        raise InputError(
            f"cannot find {name}: it is no folder here, and as a Hub id: {error} "
            "Give a folder, or a Hub id such as openai/whisper-small"
        ) from error


def base_model_files(name: str) -> tuple[Path, dict[str, Any]]:
    """
    `model_files` of a stock Whisper with its processor.

    Raises:
        InputError: it is no Whisper, is compressed already, lacks its processor, or `config.json` makes no sense.
    """
    folder, config = model_files(name)
    if config.get("model_type") == "lite-whisper":
        raise InputError(f"{name} is compressed already; give the Whisper that it was made from")
    if config.get("model_type") != "whisper":
        raise InputError(
            f"{name} is a {config.get('model_type', 'model of unknown type')}, not a Whisper; "
            "give a Whisper in the format of transformers, for example openai/whisper-small"
        )
    with _damage_explained(name):
        check_parameters(LiteWhisperConfig(**config), name)  # which checks more than WhisperConfig
    if not {"preprocessor_config.json", "processor_config.json"} & {path.name for path in folder.iterdir()}:
        raise InputError(f"{name} has no preprocessor_config.json; copy it from the Whisper it was fine-tuned from")
    if not (folder / "tokenizer_config.json").exists():
        raise InputError(f"{name} has no tokenizer; copy its files from the Whisper it was fine-tuned from")
    return folder, config


def load_base_model(name: str) -> tuple[WhisperForConditionalGeneration, Path]:
    """
    Loads a stock Whisper in the dtype in which it is stored, from safetensors only.

    Args:
        name (`str`): Hub id or folder.

    Returns:
        `tuple[WhisperForConditionalGeneration, Path]`: the model, on the CPU, and a folder that holds its processor and
        generation files.

    Raises:
        InputError: as in `base_model_files`; or its files are damaged.
    """
    folder, _ = base_model_files(name)
    return _load(WhisperForConditionalGeneration, name, folder), folder


def load_compressed_model(name: str) -> tuple[LiteWhisperForConditionalGeneration, Path]:
    """
    Loads a LiteWhisper, ours or one of the published checkpoints, in the dtype in which it is stored.

    Args:
        name (`str`): Hub id or folder.

    Returns:
        `tuple[LiteWhisperForConditionalGeneration, Path]`: the model, on the CPU, and the folder that holds its other
        files, which a published checkpoint has few of.

    Raises:
        InputError: it is not compressed, or its files are damaged.
    """
    folder, config = model_files(name)
    if config.get("model_type") != "lite-whisper":
        raise InputError(
            f"{name} is a {config.get('model_type', 'model of unknown type')}, not a LiteWhisper; "
            "give a model that was compressed, for example efficient-speech/lite-whisper-large-v3-turbo"
        )
    return _load(LiteWhisperForConditionalGeneration, name, folder), folder


def load_model(name: str) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """
    Loads a stock Whisper or a LiteWhisper, a published checkpoint too, with its processor.

    A published checkpoint has neither processor nor all of the generation settings: they are those of its base model.

    Args:
        name (`str`): Hub id or folder.

    Raises:
        InputError: there is no such model, it has no processor, or its files are damaged.
    """
    if model_files(name)[1].get("model_type") != "lite-whisper":
        model, folder = load_base_model(name)
        return model, load_processor(folder)
    lite, folder = load_compressed_model(name)
    if not (folder / "tokenizer_config.json").exists():
        base = base_of_published(name)
        if base is None:
            raise InputError(
                f"{name} has no processor; complete it: lite-whisper convert --upgrade {name} --base-model WHISPER "
                "--output FOLDER"
            )
        folder, _ = base_model_files(base)
        lite.generation_config = GenerationConfig.from_pretrained(folder)
    return lite, load_processor(folder)


def check_language(language: str | None, model: WhisperForConditionalGeneration, name: str) -> None:
    """
    Makes sure that a model knows a language.

    Raises:
        InputError: it knows English only.
    """
    if language not in (None, "en") and not getattr(model.generation_config, "is_multilingual", False):
        raise InputError(f"{name} knows English only, not {language}; take another model", setting="language")


def load_processor(folder: Path) -> WhisperProcessor:
    """
    Loads the processor in a model folder; no code in it is run.

    Raises:
        InputError: its files are damaged, or it is none of Whisper's.
    """
    with _damage_explained(str(folder)):
        check_processor_files(folder)
        return WhisperProcessor.from_pretrained(folder, trust_remote_code=False)


def base_model_of(name: str) -> str:
    """The Whisper that a compressed model was made from, as far as its folder or name tells; else the name itself."""
    folder, config = model_files(name)
    if config.get("model_type") != "lite-whisper":
        return name
    if report := read_compression(folder):
        return report["base_model"]
    return base_of_published(name) or name
