"""Export a Whisper, compressed or not, to a folder for another runtime."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..common.errors import InputError
from ..common.files import check_output, temporary_name
from ..inference_lite_whisper import is_plain, projections
from ..models.folders import load_model, model_files
from .faster_whisper_folder import CTRANSLATE2_DTYPES, write_faster_whisper_folder
from .onnx_dtypes import ONNX_SUFFIXES
from .onnx_folder import write_onnx_folder
from .openvino_folder import OPENVINO_DTYPES, write_openvino_folder

MULTILINGUAL_SETTINGS = ("lang_to_id", "task_to_id", "no_timestamps_token_id")

Writer = Callable[[WhisperForConditionalGeneration, WhisperProcessor, Sequence[str], Path], None]


@dataclass(frozen=True)
class ExportFormat:
    """
    A format that models can be exported to.

    Args:
        write (`Callable`): writes a model and its processor with the given data types to a folder.
        packages (`tuple[str, ...]`): import names of the required packages.
        dtypes (`tuple[str, ...]`): supported data types of the weights.
        default_dtypes (`tuple[str, ...]`): data types written by default.
        several_dtypes (`bool`): whether one folder can hold several data types.
    """

    write: Writer
    packages: tuple[str, ...]
    dtypes: tuple[str, ...]
    default_dtypes: tuple[str, ...]
    several_dtypes: bool = False


EXPORT_FORMATS = {
    "onnx": ExportFormat(
        write_onnx_folder,
        packages=("onnx", "onnxscript", "onnxruntime"),
        dtypes=tuple(ONNX_SUFFIXES),
        default_dtypes=("float32", "int8"),
        several_dtypes=True,
    ),
    "faster-whisper": ExportFormat(
        write_faster_whisper_folder,
        packages=("ctranslate2", "faster_whisper"),
        dtypes=CTRANSLATE2_DTYPES,
        default_dtypes=("float32",),
    ),
    "openvino": ExportFormat(
        write_openvino_folder,
        packages=("onnx", "onnxscript", "openvino", "openvino_tokenizers"),
        dtypes=OPENVINO_DTYPES,
        default_dtypes=("float16",),
    ),
}


@dataclass(frozen=True)
class ExportSettings:
    """
    Model, format and data types of an export.

    Args:
        model (`str`): Hub id or folder of a Whisper, compressed or not.
        output (`Path`): folder to write.
        format (`str`): target format, a key of `EXPORT_FORMATS`.
        dtype (`Sequence[str]`, *optional*): data types of the weights; the default ones of the format if not given.
        overwrite (`bool`): whether to replace an existing folder at `output`.
    """

    model: str
    output: Path
    format: str = "onnx"
    dtype: Sequence[str] | None = None
    overwrite: bool = False


def export(settings: ExportSettings) -> None:
    """
    Exports a model to a folder for another runtime; the folder appears only when it is complete.

    Args:
        settings (`ExportSettings`): model, format and data types.

    Raises:
        InputError: if packages are missing, the format does not support a data type, or the model or output folder
            cannot be used.
    """
    export_format = EXPORT_FORMATS[settings.format]
    missing = [name for name in export_format.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{settings.format} requires {', '.join(missing)}; pip install 'lite-whisper[{settings.format}]'",
            setting="format",
        )
    dtypes = settings.dtype or export_format.default_dtypes
    check_dtypes(dtypes, settings.format)
    check_output(settings.output, settings.model, settings.overwrite)
    check_plain(settings.model)
    model, processor = load_model(settings.model)
    check_exportable(model, settings.model)
    for parameter in model.eval().parameters():
        parameter.requires_grad_(False)
    with temporary_name(settings.output) as folder:
        export_format.write(model, processor, dtypes, folder)


def check_dtypes(dtypes: Sequence[str], format_name: str) -> None:
    """
    Checks that a format supports the data types, and several of them in one folder if several are given.

    Raises:
        InputError: if it does not.
    """
    export_format = EXPORT_FORMATS[format_name]
    for dtype in dtypes:
        if dtype not in export_format.dtypes:
            raise InputError(
                f"{format_name} does not support {dtype}; choose from {', '.join(export_format.dtypes)}",
                setting="dtype",
            )
    if len(dtypes) > 1 and not export_format.several_dtypes:
        raise InputError(
            f"a folder for {format_name} holds one data type, not {', '.join(dtypes)}; export each to its own folder",
            setting="dtype",
        )


def check_plain(name: str) -> None:
    """
    Checks, before loading the weights, that a model has no adapters and no quantised layers.

    Raises:
        InputError: if it has, or if there is no such model.
    """
    folder, config = model_files(name)
    if config.get("quantization_config"):
        raise InputError(f"the layers of {name} are quantised; export the unquantised model", setting="dtype")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{name} has an adapter; merge it into the model first (merge_and_unload of PEFT)")


def check_exportable(model: WhisperForConditionalGeneration, name: str) -> None:
    """
    Checks that a loaded model has plain linear layers and complete generation settings.

    Raises:
        InputError: if it has adapters or quantised layers, or its generation settings lack languages or tasks.
    """
    modules = [module for layer in model.get_encoder().layers for module in projections(layer).values()]
    modules += filter(_is_linear, model.get_decoder().modules())
    unsupported = next((module for module in modules if not is_plain(module)), None)
    if unsupported is not None:
        raise InputError(
            f"{name} has layers of type {type(unsupported).__name__}; merge adapters into the model first, and export "
            "the unquantised model"
        )
    if getattr(model.generation_config, "is_multilingual", False):
        missing = [key for key in MULTILINGUAL_SETTINGS if not getattr(model.generation_config, key, None)]
        if missing:
            raise InputError(
                f"generation_config.json of {name} lacks {', '.join(missing)}; copy the file from the base model, or "
                "run lite-whisper upgrade"
            )


def _is_linear(module: nn.Module) -> bool:
    """Whether a module stands in the place of a linear layer."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")
