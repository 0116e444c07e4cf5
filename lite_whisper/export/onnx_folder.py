"""Write a folder of ONNX files in the layout that transformers.js and onnx-asr expect."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from .model_files import write_model_files
from .onnx_dtypes import ONNX_SUFFIXES, convert_graph
from .onnx_graphs import trace
from .onnx_merge import merge_decoders

if TYPE_CHECKING:
    import onnx

MAX_FILE_BYTES = 2**31 - 2**20  # protobuf cannot read larger files, so the weights go into a separate file


def write_onnx_folder(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, dtypes: Sequence[str], folder: Path
) -> None:
    """
    Writes a model with all files that runtimes without torch need.

    These are `onnx/encoder_model{suffix}.onnx` and `onnx/decoder_model_merged{suffix}.onnx`, with the suffix of each
    data type, and the files of `write_model_files`.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper, on the CPU; it is converted to
            float32.
        processor (`WhisperProcessor`): its processor.
        dtypes (`Sequence[str]`): data types of the weights, keys of `ONNX_SUFFIXES`.
        folder (`Path`): folder to write to.
    """
    model = model.float()
    graphs = trace(model)
    (folder / "onnx").mkdir(parents=True)
    external: dict[str, int] = {}
    for dtype in dtypes:
        encoder, first, following = (convert_graph(graph, dtype) for graph in vars(graphs).values())
        for name, graph in {"encoder_model": encoder, "decoder_model_merged": merge_decoders(first, following)}.items():
            path = folder / "onnx" / f"{name}{ONNX_SUFFIXES[dtype]}.onnx"
            if save_graph(graph, path):
                external[path.name] = 1
    more: dict[str, Any] = {"transformers.js_config": {"use_external_data_format": external}} if external else {}
    write_model_files(model, processor, folder, **more)


def save_graph(model: "onnx.ModelProto", path: Path) -> bool:
    """
    Writes a graph, with its weights in a separate file if it is too large.

    Args:
        model (`onnx.ModelProto`): the graph; it loses its weights if they are written to a separate file.
        path (`Path`): file to write.

    Returns:
        `bool`: whether the weights are in a separate file.
    """
    import onnx

    external = sum(len(weight.raw_data) for weight in model.graph.initializer) > MAX_FILE_BYTES
    weights_path = path.with_name(f"{path.name}_data")
    onnx.save(model, path, save_as_external_data=external, location=weights_path.name if external else None)
    if external:
        shutil.copymode(path, weights_path)  # onnx makes this file readable by its owner only
    return external
