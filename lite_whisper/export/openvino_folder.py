"""A Whisper as a folder of OpenVINO models, laid out as openvino-genai looks for them."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from .model_files import write_model_files
from .onnx_folder import save_graph
from .onnx_graphs import Graphs, trace
from .openvino_models import compress_weights, stateful_decoder

PRECISIONS = ("fp32", "fp16", "int8")


def write_openvino_folder(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, precision: str, folder: Path
) -> None:
    """
    Writes a model with all that runtimes without torch need.

    `openvino_encoder_model`, `openvino_decoder_model`, `openvino_tokenizer` and `openvino_detokenizer`, each of them
    `.xml` and `.bin`, and the files of `write_model_files`.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper, in fp32, on the CPU.
        processor (`WhisperProcessor`): its own.
        precision (`str`): one of `PRECISIONS`, of the weights: `int8` is of those of products, the rest being fp16.
        folder (`Path`): to write to.
    """
    graphs = trace(model)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _write_models(graphs, Path(scratch), precision, folder)
    _write_tokenizer(processor.tokenizer, folder)
    # For other programs it is Whisper: they need not know what its graphs compute.
    write_model_files(model, processor, folder, model_type="whisper", architectures=["WhisperForConditionalGeneration"])


def _write_models(graphs: Graphs, scratch: Path, precision: str, folder: Path) -> None:
    """Writes encoder and decoder. OpenVINO reads graphs from files, and keeps those open as long as its models live."""
    import openvino

    core = openvino.Core()
    read = {}
    for name, graph in vars(graphs).items():
        save_graph(graph, scratch / f"{name}.onnx")
        read[name] = core.read_model(scratch / f"{name}.onnx")
    decoder = stateful_decoder(read["first"], read["following"])
    for part, model in {"encoder": read["encoder"], "decoder": decoder}.items():
        if precision == "int8":
            compress_weights(model)
        openvino.save_model(model, folder / f"openvino_{part}_model.xml", compress_to_fp16=precision != "fp32")


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    import openvino
    from openvino_tokenizers import convert_tokenizer

    for name, model in zip(
        ("tokenizer", "detokenizer"), convert_tokenizer(tokenizer, with_detokenizer=True), strict=True
    ):
        openvino.save_model(model, folder / f"openvino_{name}.xml")
