"""A Whisper as a folder for faster-whisper: the decoder for CTranslate2, the encoder for torch."""

import copy
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..configuration_lite_whisper import LiteWhisperConfig
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration

DECODER_FILES = ("config.json", "model.bin", "preprocessor_config.json", "tokenizer.json", "vocabulary.*")
ENCODER = "encoder"  # the folder beside them
QUANTIZATION = {"fp32": "float32", "fp16": "float16", "int8": "int8"}  # of the decoder, as CTranslate2 calls it


def write_faster_whisper_folder(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, precision: str, folder: Path
) -> None:
    """
    Writes a model for `lite_whisper.integrations.faster_whisper`.

    The files of CTranslate2's own converter, whose model holds the decoder alone; the tokenizer and
    `preprocessor_config.json`; and in the folder `encoder` a `LiteWhisperEncoder` in the dtype that it had.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper, on the CPU.
        processor (`WhisperProcessor`): its own.
        precision (`str`): of the decoder, a key of `QUANTIZATION`.
        folder (`Path`): to write to.
    """
    encoder = model.get_encoder()
    (folder / ENCODER).mkdir(parents=True)
    LiteWhisperConfig(**encoder.config.to_dict()).to_json_file(folder / ENCODER / "config.json")
    weights = {name: weight.contiguous() for name, weight in encoder.state_dict().items()}
    save_file(weights, folder / ENCODER / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / ENCODER / "config.json", folder / ENCODER / "model.safetensors")  # not for the owner alone
    write_ctranslate2(with_one_encoder_layer(model), processor, precision, folder)


def write_ctranslate2(
    whisper: WhisperForConditionalGeneration, processor: WhisperProcessor, precision: str, folder: Path
) -> None:
    """
    Writes a stock Whisper as faster-whisper itself loads it.

    Args:
        whisper (`WhisperForConditionalGeneration`): without low-rank pairs, on the CPU.
        processor (`WhisperProcessor`): its own.
        precision (`str`): a key of `QUANTIZATION`.
        folder (`Path`): an existing one.
    """
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory(dir=folder) as stock:
        whisper.save_pretrained(stock)
        processor.save_pretrained(stock)
        converted = TransformersConverter(stock).convert(f"{stock}/converted", quantization=QUANTIZATION[precision])
        for path in Path(converted).iterdir():
            path.rename(folder / path.name)
    processor.feature_extractor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


def with_one_encoder_layer(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """A stock Whisper with the decoder of a model; of the encoder's layers it has one, without which none loads."""
    whisper = model.to_whisper() if isinstance(model, LiteWhisperForConditionalGeneration) else copy.deepcopy(model)
    whisper.model.encoder.layers = whisper.model.encoder.layers[:1]
    whisper.config.encoder_layers = 1
    return whisper
