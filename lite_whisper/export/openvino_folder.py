"""Write a folder of OpenVINO models in the layout that openvino-genai expects."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from .model_files import write_model_files
from .onnx_folder import save_graph
from .onnx_graphs import Graphs, trace
from .openvino_models import compress_weights, stateful_decoder

OPENVINO_DTYPES = ("float32", "float16", "int8")


def write_openvino_folder(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, dtypes: Sequence[str], folder: Path
) -> None:
    """
    Writes a model with all files that runtimes without torch need.

    These are `openvino_encoder_model`, `openvino_decoder_model`, `openvino_tokenizer` and `openvino_detokenizer`, each
    as `.xml` and `.bin`, and the files of `write_model_files`.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper, on the CPU; it is converted to
            float32.
        processor (`WhisperProcessor`): its processor.
        dtypes (`Sequence[str]`): data type of the weights, one of `OPENVINO_DTYPES`; with `int8`, the weights of
            matrix products are int8 and all others float16.
        folder (`Path`): folder to write to.
    """
    (dtype,) = dtypes
    model = model.float()
    graphs = trace(model)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _write_models(graphs, Path(scratch), dtype, folder)
    _write_tokenizer(processor.tokenizer, folder)
    # Other programs load it as a Whisper; the graphs contain everything specific to LiteWhisper.
    write_model_files(model, processor, folder, model_type="whisper", architectures=["WhisperForConditionalGeneration"])


def _write_models(graphs: Graphs, scratch: Path, dtype: str, folder: Path) -> None:
    """Writes encoder and decoder, by way of files in `scratch`, which OpenVINO keeps open while its models exist."""
    import openvino

    core = openvino.Core()
    read = {}
    for name, graph in vars(graphs).items():
        save_graph(graph, scratch / f"{name}.onnx")
        read[name] = core.read_model(scratch / f"{name}.onnx")
    decoder = stateful_decoder(read["first"], read["following"])
    for part, model in {"encoder": read["encoder"], "decoder": decoder}.items():
        if dtype == "int8":
            compress_weights(model)
        openvino.save_model(model, folder / f"openvino_{part}_model.xml", compress_to_fp16=dtype != "float32")


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    import openvino
    from openvino_tokenizers import convert_tokenizer

    for name, model in zip(
        ("tokenizer", "detokenizer"), convert_tokenizer(tokenizer, with_detokenizer=True), strict=True
    ):
        openvino.save_model(model, folder / f"openvino_{name}.xml")
