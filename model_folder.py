"""Model folders: a stock Whisper in, a complete LiteWhisper out."""

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig, WhisperForConditionalGeneration

from .errors import InputError
from .evaluation.plots import plot_ranks
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


def load_base_model(name: str) -> tuple[WhisperForConditionalGeneration, Path]:
    """
    Loads a stock Whisper in the dtype in which it is stored, from safetensors only.

    Args:
        name (`str`): Hub id or folder.

    Returns:
        The model, on the CPU, and a folder that holds its processor and generation files.

    Raises:
        InputError: it is no Whisper, is compressed already, or lacks its processor.
    """
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise InputError(f"there is no folder {name}; check the path given to --model")
        files = [*PROCESSOR_FILES, "config.json", "generation_config.json"]
        try:
            folder = Path(snapshot_download(name, allow_patterns=files))
        except (HFValidationError, OSError) as error:
            raise InputError(
                f"cannot find {name}: it is no folder here, and as a Hub id: {error} "
                "Give --model a folder, or a Hub id such as openai/whisper-small"
            ) from error
    config, _ = PreTrainedConfig.get_config_dict(folder)
    if config.get("model_type") == "lite-whisper":
        raise InputError(f"{name} is compressed already; give the Whisper that it was made from")
    if config.get("model_type") != "whisper":
        raise InputError(
            f"{name} is a {config.get('model_type', 'model of unknown type')}, not a Whisper; "
            "give a Whisper in the format of transformers, for example openai/whisper-small"
        )
    if not {"preprocessor_config.json", "processor_config.json"} & {path.name for path in folder.iterdir()}:
        raise InputError(f"{name} has no preprocessor_config.json; copy it from the Whisper it was fine-tuned from")
    if not (folder / "tokenizer_config.json").exists():
        raise InputError(f"{name} has no tokenizer; copy its files from the Whisper it was fine-tuned from")
    return WhisperForConditionalGeneration.from_pretrained(name, dtype="auto", use_safetensors=True), folder


def save_model_folder(
    model: WhisperForConditionalGeneration, files: Path, path: Path, report: dict[str, Any] | None = None
) -> None:
    """
    Writes a complete model folder, which appears under `path` only when it is whole.

    Args:
        model (`WhisperForConditionalGeneration`): a LiteWhisper, with its Python files and `ranks.png`, or a stock one.
        files (`Path`): a folder whose processor and generation files are copied as they are.
        path (`Path`): the folder to write; an existing one is replaced.
        report (`dict`, *optional*): what was done, for `compression.json`.
    """
    with temporary_name(path) as temporary:
        model.save_pretrained(temporary)
        for weights in temporary.glob("*.safetensors"):  # safetensors lets nobody else read them
            shutil.copymode(temporary / "config.json", weights)
        for name in (*PROCESSOR_FILES, "generation_config.json"):
            if (files / name).exists():
                shutil.copyfile(files / name, temporary / name)
        if report is not None:
            (temporary / "compression.json").write_text(json.dumps(report, indent=2) + "\n")
        if ranks := getattr(model.config, "low_rank_config", None):
            plot_ranks(ranks, model.config, temporary / "ranks.png")
