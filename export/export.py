"""Any Whisper in, a folder for another runtime out."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import WhisperForConditionalGeneration

from ..common.errors import InputError
from ..common.files import check_output, temporary_name
from ..inference_lite_whisper import is_plain, projections
from ..models.folders import load_model, model_files
from .onnx_folder import write_onnx_folder

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # of each format, by the names under which they are imported
OF_LANGUAGES = ("lang_to_id", "task_to_id", "no_timestamps_token_id")


@dataclass(frozen=True)
class ExportSettings:
    """
    Which model is to run where.

    Args:
        model (`str`): Hub id or folder of a Whisper, compressed or not.
        output (`Path`): the folder to write.
        format (`str`): `onnx`.
        dtype (`Sequence[str]`): precisions, keys of `onnx_precision.SUFFIXES`.
        overwrite (`bool`): whether a folder at `output` is replaced.
    """

    model: str
    output: Path
    format: str = "onnx"
    dtype: Sequence[str] = ("fp32", "q8")
    overwrite: bool = False


def export(settings: ExportSettings) -> None:
    """
    Writes a model as a folder for another runtime, which appears only when it is whole.

    Args:
        settings (`ExportSettings`): what to do.

    Raises:
        InputError: packages are missing, or model or output cannot be used.
    """
    missing = [name for name in PACKAGES[settings.format] if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} is missing, which the format needs: pip install 'lite-whisper[{settings.format}]'",
            setting="format",
        )
    check_output(settings.output, settings.model, settings.overwrite)
    check_plain(settings.model)
    model, processor = load_model(settings.model)
    check_exportable(model, settings.model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with temporary_name(settings.output) as folder:
        write_onnx_folder(model.float().eval(), processor, settings.dtype, folder)


def check_plain(name: str) -> None:
    """
    Makes sure, before it is loaded, that a model has neither adapters nor quantised layers.

    Raises:
        InputError: it has; or there is no such model.
    """
    folder, config = model_files(name)
    if config.get("quantization_config"):
        raise InputError(f"the layers of {name} are quantised; give the model as it was before", setting="dtype")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{name} has an adapter; merge it into the model first (merge_and_unload of PEFT)")


def check_exportable(model: WhisperForConditionalGeneration, name: str) -> None:
    """
    Makes sure that a model has what an exported one needs.

    Raises:
        InputError: it has adapters or quantised layers, or its generation settings lack those of languages.
    """
    modules = [module for layer in model.get_encoder().layers for module in projections(layer).values()]
    modules += filter(_multiplies, model.get_decoder().modules())
    found = [module for module in modules if not is_plain(module)]
    if found:
        raise InputError(
            f"{name} has layers of the type {type(found[0]).__name__}; merge adapters into the model first, and give "
            "the model as it was before its layers were quantised"
        )
    if getattr(model.generation_config, "is_multilingual", False):
        lacking = [key for key in OF_LANGUAGES if not getattr(model.generation_config, key, None)]
        if lacking:
            raise InputError(
                f"generation_config.json of {name} lacks {', '.join(lacking)}; copy it from the Whisper that it was "
                "made from, or complete the model: lite-whisper convert --upgrade"
            )


def _multiplies(module: nn.Module) -> bool:
    """Whether it stands where Whisper has a linear layer."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")
