"""The files of a model beside its graphs: configuration, generation settings and tokenizer."""

import json
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..configuration_lite_whisper import LiteWhisperConfig

OF_TORCH = ("auto_map", "constant_padding", "low_rank_config")  # in config.json; the graphs hold what they describe


def write_model_files(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: Path, **more: Any
) -> None:
    """
    Writes what runtimes without torch read beside the graphs.

    `config.json`, `generation_config.json` and `preprocessor_config.json`; the tokenizer in its new form and in its
    old.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper.
        processor (`WhisperProcessor`): its own.
        folder (`Path`): to write to.
        more (`Any`): what else `config.json` is to say.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in OF_TORCH}
    if isinstance(model.config, LiteWhisperConfig):
        config["model_type"] = LiteWhisperConfig.model_type
    _write_json(config | more, folder / "config.json")
    model.generation_config.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    _write_tokenizer(processor.tokenizer, folder)


def _write_json(values: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the files of transformers, and those of its tokenizers before they were one file."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    _write_json(tokenizer.get_added_vocab(), folder / "added_tokens.json")
