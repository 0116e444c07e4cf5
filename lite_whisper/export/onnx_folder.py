"""A Whisper as a folder of ONNX files, laid out as transformers.js and onnx-asr look for them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from .model_files import write_model_files
from .onnx_graphs import trace
from .onnx_merge import merged
from .onnx_precision import SUFFIXES, in_precision

if TYPE_CHECKING:
    import onnx

LARGEST_FILE = 2**31 - 2**20  # bytes; what is larger, protobuf does not read, and its weights take a file beside it


def write_onnx_folder(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, precisions: Sequence[str], folder: Path
) -> None:
    """
    Writes a model with all that runtimes without torch need.

    `onnx/encoder_model{suffix}.onnx` and `onnx/decoder_model_merged{suffix}.onnx`, the suffix that of the precision,
    and the files of `write_model_files`.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper, in fp32, on the CPU.
        processor (`WhisperProcessor`): its own.
        precisions (`Sequence[str]`): keys of `SUFFIXES`.
        folder (`Path`): to write to.
    """
    graphs = trace(model)
    (folder / "onnx").mkdir(parents=True)
    external: dict[str, int] = {}
    for precision in precisions:
        encoder, first, following = (in_precision(graph, precision) for graph in vars(graphs).values())
        for name, graph in {"encoder_model": encoder, "decoder_model_merged": merged(first, following)}.items():
            path = folder / "onnx" / f"{name}{SUFFIXES[precision]}.onnx"
            if save_graph(graph, path):
                external[path.name] = 1
    more: dict[str, Any] = {"transformers.js_config": {"use_external_data_format": external}} if external else {}
    write_model_files(model, processor, folder, **more)


def save_graph(model: "onnx.ModelProto", path: Path) -> bool:
    """
    Writes a graph; returns whether its weights are in a file beside it.

    Args:
        model (`onnx.ModelProto`): which forgets its weights, if they are written to a file of their own.
        path (`Path`): to write to.
    """
    import onnx

    external = sum(len(weight.raw_data) for weight in model.graph.initializer) > LARGEST_FILE
    beside = path.with_name(f"{path.name}_data")
    onnx.save(model, path, save_as_external_data=external, location=beside.name if external else None)
    if external:
        shutil.copymode(path, beside)  # onnx lets nobody else read it
    return external
