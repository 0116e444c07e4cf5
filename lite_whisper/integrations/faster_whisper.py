"""faster-whisper with the encoder of a LiteWhisper: torch runs the encoder, CTranslate2 the decoder."""

from pathlib import Path
from typing import Any

import ctranslate2
import faster_whisper
import numpy as np
import torch

from ..common.errors import InputError
from ..configuration_lite_whisper import LiteWhisperConfig
from ..export.faster_whisper_folder import DECODER_FILES, ENCODER_FOLDER
from ..modeling_lite_whisper import LiteWhisperEncoder
from ..models.folders import downloaded

TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # by CTranslate2's compute type
# Options of WhisperModel for locating its files, which would not find the encoder.
UNSUPPORTED_OPTIONS = ("download_root", "files", "local_files_only", "revision", "use_auth_token")
DYNAMIC_RANGE = 2.0  # Whisper clips log-mel features at 8 decades below the maximum, and divides them by 4


class LiteWhisperModel(faster_whisper.WhisperModel):
    """
    faster-whisper's `WhisperModel` for a folder written by `lite-whisper export --format faster-whisper`.

    It supports everything that `WhisperModel` does: beam search, voice activity detection, batched transcription and
    word timestamps. The encoder is a `LiteWhisperEncoder` in the data type of `compute_type`; on a GPU, int8 compute
    types use their floating-point part in the encoder.

    Args:
        model (`str`): the folder, or the Hub id of a repository with its contents.
        device (`str`): device of encoder and decoder, as in `WhisperModel`.
        optimize_for_inference (`bool`): whether to optimise the encoder for inference, which takes a few seconds.
        **options: options of `WhisperModel`, except `UNSUPPORTED_OPTIONS`.

    Raises:
        InputError: if there is no such folder, it was not written by the export, or an option is not supported.
    """

    def __init__(
        self, model: str, device: str = "auto", *, optimize_for_inference: bool = True, **options: Any
    ) -> None:
        if refused := [name for name in UNSUPPORTED_OPTIONS if name in options]:
            raise InputError(
                f"{', '.join(refused)} is not supported; download the files and pass their folder", setting=refused[0]
            )
        folder = Path(model)
        if not folder.is_dir():
            folder = downloaded(model, *DECODER_FILES, f"{ENCODER_FOLDER}/*")
        if not (folder / ENCODER_FOLDER / "config.json").exists():
            raise InputError(
                f"{model} has no encoder; run lite-whisper export MODEL --format faster-whisper --output FOLDER"
            )
        super().__init__(str(folder), device, **options)
        if options.get("cpu_threads"):
            torch.set_num_threads(options["cpu_threads"])
        cuda = self.model.device == "cuda"
        self.encoder_device = torch.device(f"cuda:{self.model.device_index[0]}" if cuda else "cpu")
        dtype = TORCH_DTYPES.get(self.model.compute_type.removeprefix("int8_"), torch.float32)
        config = LiteWhisperConfig.from_pretrained(folder / ENCODER_FOLDER)
        self.encoder = LiteWhisperEncoder.from_pretrained(folder / ENCODER_FOLDER, config=config, dtype=dtype).eval()
        self.encoder.to(self.encoder_device)
        if optimize_for_inference:
            with torch.inference_mode():
                int8 = self.model.compute_type.startswith("int8") and dtype == torch.float32 and not cuda
                self.encoder.optimize_for_inference(dtype="int8" if int8 else None)

    @torch.inference_mode()
    def encode(self, features: np.ndarray) -> ctranslate2.StorageView:
        """
        Encodes log-mel features.

        Args:
            features (`np.ndarray`): shape `(mel_bins, frames)` or `(batch, mel_bins, frames)`, padded with zeros.

        Returns:
            `ctranslate2.StorageView`: shape `(batch, positions, d_model)`; shares memory with torch if CTranslate2 can
            read it.
        """
        window = 2 * self.encoder.config.max_source_positions
        batch = replace_zero_padding(features.reshape(-1, *features.shape[-2:])[..., :window])
        states = self.encoder(torch.from_numpy(batch).to(self.encoder_device, self.encoder.dtype))[0].contiguous()
        if self.encoder_device.type == "cuda" and len(self.model.device_index) == 1 and states.dtype != torch.bfloat16:
            return ctranslate2.StorageView.from_array(states)
        return ctranslate2.StorageView.from_array(states.float().cpu().numpy())


def replace_zero_padding(features: np.ndarray) -> np.ndarray:
    """
    Replaces faster-whisper's zero padding by silence, since zero is not silence in log-mel features.

    Args:
        features (`np.ndarray`): shape `(batch, mel_bins, frames)`.

    Returns:
        `np.ndarray`: a copy in which the zero frames at the end of each clip have the value of silence.
    """
    features = np.array(features, np.float32)
    for clip in features:
        nonzero = np.flatnonzero(clip.any(axis=0))
        if len(nonzero):
            clip[:, nonzero[-1] + 1 :] = clip.max() - DYNAMIC_RANGE
    return features
