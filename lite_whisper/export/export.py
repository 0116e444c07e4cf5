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
from . import faster_whisper_folder, onnx_folder, openvino_folder
from .onnx_precision import SUFFIXES

OF_LANGUAGES = ("lang_to_id", "task_to_id", "no_timestamps_token_id")


@dataclass(frozen=True)
class Format:
    """
    What a model can be written as.

    Args:
        packages (`tuple[str, ...]`): what that takes, by the names under which they are imported.
        precisions (`tuple[str, ...]`): of the weights.
        usual (`tuple[str, ...]`): those that are written unless others are asked for.
        several (`bool`): whether a folder may hold several; otherwise their files have the same names.
    """

    packages: tuple[str, ...]
    dtypes: tuple[str, ...]
    default_dtypes: tuple[str, ...]
    several: bool = False


EXPORT_FORMATS = {
    "onnx": Format(("onnx", "onnxscript", "onnxruntime"), tuple(SUFFIXES), ("fp32", "q8"), several=True),
    "faster-whisper": Format(
        ("ctranslate2", "faster_whisper"), tuple(faster_whisper_folder.QUANTIZATION), default_dtypes=("fp32",)
    ),
    "openvino": Format(
        ("onnx", "onnxscript", "openvino", "openvino_tokenizers"), openvino_folder.PRECISIONS, default_dtypes=("fp16",)
    ),
}


@dataclass(frozen=True)
class ExportSettings:
    """
    Which model is to run where.

    Args:
        model (`str`): Hub id or folder of a Whisper, compressed or not.
        output (`Path`): the folder to write.
        format (`str`): a key of `EXPORT_FORMATS`.
        dtype (`Sequence[str]`, *optional*): precisions, of those of the format, for which see there.
        overwrite (`bool`): whether a folder at `output` is replaced.
    """

    model: str
    output: Path
    format: str = "onnx"
    dtype: Sequence[str] | None = None
    overwrite: bool = False


def export(settings: ExportSettings) -> None:
    """
    Writes a model as a folder for another runtime, which appears only when it is whole.

    Args:
        settings (`ExportSettings`): what to do.

    Raises:
        InputError: packages are missing, the format has no such precision, or model or output cannot be used.
    """
    of = EXPORT_FORMATS[settings.format]
    missing = [name for name in of.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} is missing, which the format needs: pip install 'lite-whisper[{settings.format}]'",
            setting="format",
        )
    precisions = settings.dtype or of.default_dtypes
    check_precisions(precisions, settings.format)
    check_output(settings.output, settings.model, settings.overwrite)
    check_plain(settings.model)
    model, processor = load_model(settings.model)
    check_exportable(model, settings.model)
    for parameter in model.eval().parameters():
        parameter.requires_grad_(False)
    with temporary_name(settings.output) as folder:
        if settings.format == "onnx":
            onnx_folder.write_onnx_folder(model.float(), processor, precisions, folder)
        elif settings.format == "openvino":
            openvino_folder.write_openvino_folder(model.float(), processor, precisions[0], folder)
        else:
            faster_whisper_folder.write_faster_whisper_folder(model, processor, precisions[0], folder)


def check_precisions(precisions: Sequence[str], to_format: str) -> None:
    """
    Makes sure that a format has these precisions, and that there is one where its files have one name.

    Raises:
        InputError: it has not, or there are several.
    """
    known = EXPORT_FORMATS[to_format].dtypes
    for precision in precisions:
        if precision not in known:
            raise InputError(f"{to_format} has no {precision}, but {', '.join(known)}", setting="dtype")
    if len(precisions) > 1 and not EXPORT_FORMATS[to_format].several:
        raise InputError(
            f"a folder for {to_format} has one precision, not {', '.join(precisions)}; write a folder for each",
            setting="dtype",
        )


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
