"""A Whisper as a folder of ONNX files, laid out as transformers.js and onnx-asr look for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..configuration_lite_whisper import LiteWhisperConfig
from .onnx_graphs import trace
from .onnx_merge import merged
from .onnx_precision import SUFFIXES, in_precision

if TYPE_CHECKING:
    import onnx

LARGEST_FILE = 2**31 - 2**20  # bytes; what is larger, protobuf does not read, and its weights take a file beside it
OF_TORCH = ("auto_map", "constant_padding", "low_rank_config")  # in config.json; the graphs hold what they describe


def write_onnx_folder(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, precisions: Sequence[str], folder: Path
) -> None:
    """
    Writes a model with all that runtimes without torch need.

    `onnx/encoder_model{suffix}.onnx` and `onnx/decoder_model_merged{suffix}.onnx`, the suffix that of the precision;
    `config.json`, `generation_config.json` and `preprocessor_config.json`; the tokenizer in its new form and in its
    old.

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
            if _write(graph, path):
                external[path.name] = 1
    config = {name: value for name, value in model.config.to_dict().items() if name not in OF_TORCH}
    if isinstance(model.config, LiteWhisperConfig):
        config["model_type"] = LiteWhisperConfig.model_type
    if external:
        config["transformers.js_config"] = {"use_external_data_format": external}
    _write_json(config, folder / "config.json")
    model.generation_config.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    _write_tokenizer(processor.tokenizer, folder)


def _write(model: "onnx.ModelProto", path: Path) -> bool:
    """Writes a graph; returns whether its weights are in a file beside it."""
    import onnx

    external = sum(len(weight.raw_data) for weight in model.graph.initializer) > LARGEST_FILE
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}_data" if external else None)
    return external


def _write_json(values: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the files of transformers, and those of its tokenizers before they were one file."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    _write_json(tokenizer.get_added_vocab(), folder / "added_tokens.json")
