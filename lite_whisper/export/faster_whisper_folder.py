"""Write a folder for faster-whisper: the decoder for CTranslate2, the encoder for torch."""

import copy
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ..configuration_lite_whisper import LiteWhisperConfig
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration

DECODER_FILES = ("config.json", "model.bin", "preprocessor_config.json", "tokenizer.json", "vocabulary.*")
ENCODER_FOLDER = "encoder"
CTRANSLATE2_DTYPES = ("float32", "float16", "int8")


def write_faster_whisper_folder(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, dtypes: Sequence[str], folder: Path
) -> None:
    """
    Writes a model for `lite_whisper.integrations.faster_whisper`.

    The folder contains the decoder as written by CTranslate2's converter, the tokenizer, `preprocessor_config.json`
    and, in the subfolder `encoder`, a `LiteWhisperEncoder` in its original dtype.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper, on the CPU.
        processor (`WhisperProcessor`): its processor.
        dtypes (`Sequence[str]`): data type of the decoder, one of `CTRANSLATE2_DTYPES`.
        folder (`Path`): folder to write to.
    """
    encoder = model.get_encoder()
    (folder / ENCODER_FOLDER).mkdir(parents=True)
    LiteWhisperConfig(**encoder.config.to_dict()).to_json_file(folder / ENCODER_FOLDER / "config.json")
    weights = {name: weight.contiguous() for name, weight in encoder.state_dict().items()}
    save_file(weights, folder / ENCODER_FOLDER / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(
        folder / ENCODER_FOLDER / "config.json", folder / ENCODER_FOLDER / "model.safetensors"
    )  # safetensors makes the file readable by its owner only
    (dtype,) = dtypes
    write_ctranslate2(with_one_encoder_layer(model), processor, dtype, folder)


def write_ctranslate2(
    whisper: WhisperForConditionalGeneration, processor: WhisperProcessor, dtype: str, folder: Path
) -> None:
    """
    Writes a stock Whisper in the format of CTranslate2, as faster-whisper loads it.

    Args:
        whisper (`WhisperForConditionalGeneration`): a model without low-rank pairs, on the CPU.
        processor (`WhisperProcessor`): its processor.
        dtype (`str`): data type of the weights, one of `CTRANSLATE2_DTYPES`.
        folder (`Path`): existing folder to write to.
    """
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory(dir=folder) as stock:
        whisper.save_pretrained(stock)
        processor.save_pretrained(stock)
        converted = TransformersConverter(stock).convert(f"{stock}/converted", quantization=dtype)
        for path in Path(converted).iterdir():
            path.rename(folder / path.name)
    processor.feature_extractor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


def with_one_encoder_layer(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """A stock Whisper with the model's decoder and one encoder layer, the least that CTranslate2's converter loads."""
    whisper = model.to_whisper() if isinstance(model, LiteWhisperForConditionalGeneration) else copy.deepcopy(model)
    whisper.model.encoder.layers = whisper.model.encoder.layers[:1]
    whisper.config.encoder_layers = 1
    return whisper
