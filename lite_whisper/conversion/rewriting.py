"""Merges a compressed model into a stock Whisper, or upgrades a published checkpoint to a complete model folder."""

from pathlib import Path

from ..common.errors import InputError
from ..common.files import check_output
from ..models.compression_json import public_name
from ..models.folders import base_model_files, load_compressed_model
from ..models.published import base_of_published
from .saving import base_card, save_model_folder


def merge(name: str, output: Path, overwrite: bool = False) -> None:
    """
    Merges the factors of a compressed model and writes it as a complete stock Whisper.

    Args:
        name (`str`): Hub id or folder of the compressed model.
        output (`Path`): the folder to write.
        overwrite (`bool`): whether to replace an existing model folder.

    Raises:
        InputError: the model is not compressed or has no processor.
    """
    check_output(output, name, overwrite)
    model, folder = load_compressed_model(name)
    if not (folder / "tokenizer_config.json").exists():
        raise InputError(f"{name} has no processor; complete it first with lite-whisper upgrade")
    save_model_folder(model.to_whisper(), folder, output)


def upgrade(name: str, base_name: str | None, output: Path, overwrite: bool = False) -> None:
    """
    Upgrades a published checkpoint to a complete model folder.

    Adds the processor, full generation settings and all Auto classes, and ties the weights.

    Args:
        name (`str`): Hub id or folder of the checkpoint.
        base_name (`str`, *optional*): the base model; can be omitted for published names.
        output (`Path`): the folder to write.
        overwrite (`bool`): whether to replace an existing model folder.

    Raises:
        InputError: the model is not compressed, or its base model is unknown or has other sizes.
    """
    check_output(output, name, overwrite)
    base_name = base_name or base_of_published(name)
    if base_name is None:
        raise InputError(f"the base model of {name} is unknown; give it", setting="base_model")
    model, _ = load_compressed_model(name)
    files, base_config = base_model_files(base_name)
    for size in ("d_model", "encoder_layers", "decoder_layers", "vocab_size", "num_mel_bins"):
        if base_config.get(size) != getattr(model.config, size):
            raise InputError(
                f"{name} was not made from {base_name}: its {size} is {getattr(model.config, size)}, not "
                f"{base_config.get(size)}; give its base model",
                setting="base_model",
            )
    report = {
        "base_model": public_name(base_name),
        "base_card": base_card(files),
        "upgraded_from": public_name(name),
        "low_rank_config": model.config.low_rank_config,
    }
    save_model_folder(model, files, output, report)
