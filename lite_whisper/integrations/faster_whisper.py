"""faster-whisper with the encoder of a LiteWhisper: torch encodes, CTranslate2 decodes."""

from pathlib import Path
from typing import Any

import ctranslate2
import faster_whisper
import numpy as np
import torch

from ..common.errors import InputError
from ..configuration_lite_whisper import LiteWhisperConfig
from ..export.faster_whisper_folder import DECODER_FILES, ENCODER
from ..modeling_lite_whisper import LiteWhisperEncoder
from ..models.folders import downloaded

TORCH_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # of what CTranslate2 computes with
# Options of WhisperModel on where its files come from, which know nothing of an encoder beside them.
OF_FILES = ("download_root", "files", "local_files_only", "revision", "use_auth_token")
FLOOR = 2.0  # Whisper cuts log-mel features off so much below the loudest: 8 powers of ten, a fourth each


class LiteWhisperModel(faster_whisper.WhisperModel):
    """
    faster-whisper's `WhisperModel` for a folder that `lite-whisper export --format faster-whisper` has written.

    All that it does with a Whisper it does with this one: beam search, voice activity detection, batches, times of
    words. The encoder is a `LiteWhisperEncoder`, optimised for inference, in the precision of `compute_type`, on a GPU
    in that which it has beside integers.

    Args:
        model (`str`): the folder, or the Hub id of a repository that holds it.
        device (`str`): as in `WhisperModel`, for both halves.
        optimize_for_inference (`bool`): whether the encoder is made ready for inference, which takes a few seconds.
        **options: as in `WhisperModel`, but for those of `OF_FILES`.

    Raises:
        InputError: there is no such folder, it was not written by the export, or an option is not taken.
    """

    def __init__(
        self, model: str, device: str = "auto", *, optimize_for_inference: bool = True, **options: Any
    ) -> None:
        if refused := [name for name in OF_FILES if name in options]:
            raise InputError(
                f"{', '.join(refused)} is not taken; download what you want, and give the folder", setting=refused[0]
            )
        folder = Path(model)
        if not folder.is_dir():
            folder = downloaded(model, *DECODER_FILES, f"{ENCODER}/*")
        if not (folder / ENCODER / "config.json").exists():
            raise InputError(
                f"{model} holds no encoder; make it: lite-whisper export MODEL --format faster-whisper --output FOLDER"
            )
        super().__init__(str(folder), device, **options)
        if options.get("cpu_threads"):
            torch.set_num_threads(options["cpu_threads"])
        cuda = self.model.device == "cuda"
        self.encoder_device = torch.device(f"cuda:{self.model.device_index[0]}" if cuda else "cpu")
        dtype = TORCH_TYPES.get(self.model.compute_type.removeprefix("int8_"), torch.float32)
        config = LiteWhisperConfig.from_pretrained(folder / ENCODER)
        self.encoder = LiteWhisperEncoder.from_pretrained(folder / ENCODER, config=config, dtype=dtype).eval()
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
            features (`np.ndarray`): of shape `(mel_bins, frames)` or `(batch, mel_bins, frames)`, padded with zeros.

        Returns:
            `ctranslate2.StorageView`: of shape `(batch, positions, d_model)`, in the memory of torch where CTranslate2
            can read it there.
        """
        window = 2 * self.encoder.config.max_source_positions
        batch = silent_after_the_end(features.reshape(-1, *features.shape[-2:])[..., :window])
        states = self.encoder(torch.from_numpy(batch).to(self.encoder_device, self.encoder.dtype))[0].contiguous()
        if self.encoder_device.type == "cuda" and len(self.model.device_index) == 1 and states.dtype != torch.bfloat16:
            return ctranslate2.StorageView.from_array(states)
        return ctranslate2.StorageView.from_array(states.float().cpu().numpy())


def silent_after_the_end(features: np.ndarray) -> np.ndarray:
    """
    Puts silence where faster-whisper has padded features with zeros, which stand for a sound.

    Args:
        features (`np.ndarray`): of shape `(batch, mel_bins, frames)`.

    Returns:
        `np.ndarray`: a copy in which the frames of zeros at a clip's end hold what silence is in Whisper's features.
    """
    features = np.array(features, np.float32)
    for clip in features:
        sounding = np.flatnonzero(clip.any(axis=0))
        if len(sounding):
            clip[:, sounding[-1] + 1 :] = clip.max() - FLOOR
    return features
