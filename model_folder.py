"""Model folders: a stock Whisper in, a complete LiteWhisper out."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import metadata_load, snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import GenerationConfig, PreTrainedConfig, WhisperForConditionalGeneration, WhisperProcessor

from .configuration_lite_whisper import LiteWhisperConfig
from .errors import InputError
from .evaluation.plots import plot_ranks
from .modeling_lite_whisper import LiteWhisperForConditionalGeneration
from .publishing.card import CARD, COMPRESSION, write_card
from .saving import temporary_name

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


Model = TypeVar("Model", bound=WhisperForConditionalGeneration)
PUBLISHED_NAME = re.compile(r"lite-whisper-(tiny|base|small|medium|large-v3-turbo|large-v3)(-acc|-fast)?")


def encoder_parameters(model: WhisperForConditionalGeneration) -> int:
    """How many parameters the encoder has."""
    return sum(parameter.numel() for parameter in model.get_encoder().parameters())


def fingerprint(model: WhisperForConditionalGeneration) -> str:
    """A digest of the encoder's weights, by which stored moments are known to belong to them."""
    digest = hashlib.sha256()
    for parameter in model.get_encoder().parameters():
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def public_name(source: str) -> str:
    """What a published file may say of a model or dataset: the Hub id, but of a path on this machine only the name."""
    path = Path(source)
    # A dataset may be gone by now where its moments were kept.
    return path.resolve().name if path.exists() or path.is_absolute() or source.startswith((".", "~")) else source


@contextmanager
def _damage_told(name: str) -> Iterator[None]:
    """Makes an `InputError` of whatever transformers raises over damaged files, most of which it does not check."""
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot load {name}, whose files may be damaged or of different models: {reason}") from error


def _load(model_class: type[Model], name: str, folder: Path) -> Model:
    """
    Loads a model in the dtype in which it is stored, from safetensors only, if it is whole.

    Raises:
        InputError: the files are damaged, weights are missing, left over or not finite.
    """
    with _damage_told(name):
        loaded: Any = model_class.from_pretrained(name, dtype="auto", use_safetensors=True, output_loading_info=True)
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
        The folder that holds them, and the contents of `config.json`.

    Raises:
        InputError: there is no such model.
    """
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise InputError(f"there is no folder {name}; check the path")
        files = [*PROCESSOR_FILES, "config.json", "generation_config.json", COMPRESSION, CARD]
        try:
            folder = Path(snapshot_download(name, allow_patterns=files))
        except (HFValidationError, OSError) as error:
            raise InputError(
                f"cannot find {name}: it is no folder here, and as a Hub id: {error} "
                "Give a folder, or a Hub id such as openai/whisper-small"
            ) from error
    with _damage_told(name):
        return folder, dict(PreTrainedConfig.get_config_dict(folder)[0])  # JSON may hold something else


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
    with _damage_told(name):
        LiteWhisperConfig(**config)  # checks more than WhisperConfig
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
        The model, on the CPU, and a folder that holds its processor and generation files.

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
        The model, on the CPU, and the folder that holds its other files, which a published checkpoint has few of.

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
        published = PUBLISHED_NAME.fullmatch(Path(name).name)
        if published is None:
            raise InputError(f"{name} has no processor; complete it with convert.py --upgrade and --base-model")
        folder, _ = base_model_files(f"openai/whisper-{published[1]}")
        lite.generation_config = GenerationConfig.from_pretrained(folder)
    return lite, load_processor(folder)


def load_processor(folder: Path) -> WhisperProcessor:
    """
    Loads the processor in a model folder.

    Raises:
        InputError: its files are damaged.
    """
    with _damage_told(str(folder)):
        return WhisperProcessor.from_pretrained(folder)


def base_model_of(name: str) -> str:
    """The Whisper that a compressed model was made from, as far as its folder or name tells; else the name itself."""
    folder, config = model_files(name)
    if config.get("model_type") != "lite-whisper":
        return name
    report = folder / COMPRESSION
    if report.exists():
        with _damage_told(name):
            return json.loads(report.read_text())["base_model"]
    published = PUBLISHED_NAME.fullmatch(Path(name).name)
    return f"openai/whisper-{published[1]}" if published else name


def base_card(files: Path) -> dict[str, Any]:
    """What the card of a base model, in the folder of its files, says of its licence and languages."""
    card = files / CARD
    metadata = (metadata_load(card) if card.exists() else None) or {}
    return {name: metadata[name] for name in ("license", "language") if name in metadata}


def merge(name: str, output: Path) -> None:
    """
    Multiplies the pairs of a LiteWhisper out and writes it as a complete stock Whisper.

    Args:
        name (`str`): Hub id or folder of the LiteWhisper.
        output (`Path`): the folder to write.

    Raises:
        InputError: it is not compressed, or has no processor.
    """
    model, folder = load_compressed_model(name)
    if not (folder / "tokenizer_config.json").exists():
        raise InputError(f"{name} has no processor; complete it first with --upgrade")
    save_model_folder(model.to_whisper(), folder, output)


def upgrade(name: str, base_name: str | None, output: Path) -> None:
    """
    Completes a published checkpoint: processor, full generation settings, all Auto classes, tied weights.

    Args:
        name (`str`): Hub id or folder of the checkpoint.
        base_name (`str`, *optional*): the Whisper that it was made from; a published name tells it.
        output (`Path`): the folder to write.

    Raises:
        InputError: it is not compressed, or its base is unknown or of other sizes.
    """
    if base_name is None:
        published = PUBLISHED_NAME.fullmatch(Path(name).name)
        if published is None:
            raise InputError(f"{name} does not tell which Whisper it was made from; name it with --base-model")
        base_name = f"openai/whisper-{published[1]}"
    model, _ = load_compressed_model(name)
    files, base_config = base_model_files(base_name)
    for size in ("d_model", "encoder_layers", "decoder_layers", "vocab_size", "num_mel_bins"):
        if base_config.get(size) != getattr(model.config, size):
            raise InputError(
                f"{name} was not made from {base_name}: {size} is {getattr(model.config, size)} in the one and "
                f"{base_config.get(size)} in the other; name its base with --base-model"
            )
    report = {
        "base_model": public_name(base_name),
        "base_card": base_card(files),
        "upgraded_from": public_name(name),
        "low_rank_config": model.config.low_rank_config,
    }
    save_model_folder(model, files, output, report)


def save_model_folder(
    model: WhisperForConditionalGeneration, files: Path, path: Path, report: dict[str, Any] | None = None
) -> None:
    """
    Writes a complete model folder, which appears under `path` only when it is whole.

    Args:
        model (`WhisperForConditionalGeneration`): a LiteWhisper, with its Python files and `ranks.png`, or a stock one.
        files (`Path`): a folder whose processor and generation files are copied as they are.
        path (`Path`): the folder to write; an existing one is replaced.
        report (`dict`, *optional*): what was done, for `compression.json` and the model card.
    """
    with temporary_name(path) as temporary:
        model.save_pretrained(temporary)
        for weights in temporary.glob("*.safetensors"):  # safetensors lets nobody else read them
            shutil.copymode(temporary / "config.json", weights)
        for name in (*PROCESSOR_FILES, "generation_config.json"):
            if (files / name).exists():
                shutil.copyfile(files / name, temporary / name)
        if report is not None:
            (temporary / COMPRESSION).write_text(json.dumps(report, indent=2) + "\n")
            write_card(temporary, path.name)
        if ranks := getattr(model.config, "low_rank_config", None):
            plot_ranks(ranks, model.config, temporary / "ranks.png")
