"""Write the files beside the graphs of a model: configuration, generation settings and tokenizer."""

import json
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..configuration_lite_whisper import LiteWhisperConfig

# Keys of config.json that only torch needs; the exported graphs already contain what they describe.
TORCH_ONLY_KEYS = ("auto_map", "constant_padding", "low_rank_config")


def write_model_files(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: Path, **more: Any
) -> None:
    """
    Writes the files that runtimes without torch read beside the graphs.

    These are `config.json`, `generation_config.json`, `preprocessor_config.json`, and the tokenizer both as
    `tokenizer.json` and in the older form of `vocab.json`, `merges.txt` and `added_tokens.json`.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper.
        processor (`WhisperProcessor`): its processor.
        folder (`Path`): folder to write to.
        more (`Any`): further entries of `config.json`.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in TORCH_ONLY_KEYS}
    if isinstance(model.config, LiteWhisperConfig):
        config["model_type"] = LiteWhisperConfig.model_type
    _write_json(config | more, folder / "config.json")
    model.generation_config.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    _write_tokenizer(processor.tokenizer, folder)


def _write_json(values: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the tokenizer in the current and in the older form."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    _write_json(tokenizer.get_added_vocab(), folder / "added_tokens.json")
