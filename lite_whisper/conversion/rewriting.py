"""Rewriting a compressed model: as a stock Whisper, or completed."""

from pathlib import Path

from ..common.errors import InputError
from ..common.files import check_output
from ..models.compression_json import public_name
from ..models.folders import base_model_files, load_compressed_model
from ..models.published import base_of_published
from .saving import base_card, save_model_folder


def merge(name: str, output: Path, overwrite: bool = False) -> None:
    """
    Multiplies the pairs of a LiteWhisper out and writes it as a complete stock Whisper.

    Args:
        name (`str`): Hub id or folder of the LiteWhisper.
        output (`Path`): the folder to write.
        overwrite (`bool`): whether a model folder that exists is replaced.

    Raises:
        InputError: it is not compressed, or has no processor.
    """
    check_output(output, name, overwrite)
    model, folder = load_compressed_model(name)
    if not (folder / "tokenizer_config.json").exists():
        raise InputError(f"{name} has no processor; complete it first with lite-whisper upgrade")
    save_model_folder(model.to_whisper(), folder, output)


def upgrade(name: str, base_name: str | None, output: Path, overwrite: bool = False) -> None:
    """
    Completes a published checkpoint: processor, full generation settings, all Auto classes, tied weights.

    Args:
        name (`str`): Hub id or folder of the checkpoint.
        base_name (`str`, *optional*): the Whisper that it was made from; a published name tells it.
        output (`Path`): the folder to write.
        overwrite (`bool`): whether a model folder that exists is replaced.

    Raises:
        InputError: it is not compressed, or its base is unknown or of other sizes.
    """
    check_output(output, name, overwrite)
    base_name = base_name or base_of_published(name)
    if base_name is None:
        raise InputError(f"{name} does not tell which Whisper it was made from; name it", setting="base_model")
    model, _ = load_compressed_model(name)
    files, base_config = base_model_files(base_name)
    for size in ("d_model", "encoder_layers", "decoder_layers", "vocab_size", "num_mel_bins"):
        if base_config.get(size) != getattr(model.config, size):
            raise InputError(
                f"{name} was not made from {base_name}: {size} is {getattr(model.config, size)} in the one and "
                f"{base_config.get(size)} in the other; name its base",
                setting="base_model",
            )
    report = {
        "base_model": public_name(base_name),
        "base_card": base_card(files),
        "upgraded_from": public_name(name),
        "low_rank_config": model.config.low_rank_config,
    }
    save_model_folder(model, files, output, report)
