"""Distillation data: the teacher's outputs on the training audio, written to files once and read in every step."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from ..audio import SAMPLING_RATE, Clip, feature_batches
from ..common.files import record_origin
from ..common.tensor_files import load_tensors, save_tensors
from ..common.timing import now
from ..models.layers import layer_inputs, transcripts

logger = logging.getLogger(__name__)

MAX_COMPARED_LAYERS = 5  # evenly spaced below the last layer
TEACHER_BATCH_SIZE = 8
SECONDS_KEY = "seconds"  # metadata of a file: time taken by the teacher
PIECE_SECONDS = (0.5, 4.0)  # range of the lengths from which `splice` draws


@dataclass(frozen=True)
class Recovery:
    """
    Settings of recovery.

    The default learning rate and batch size were chosen with whisper-base, and the loss weights with the bundled
    miniature model, on held-out calibration audio.

    Args:
        steps (`int`, *optional*): number of training steps; by default, as many as fit into `minutes`.
        minutes (`float`, *optional*, defaults to 10): total time for running the teacher and training the student.
        learning_rate (`float`, *optional*): peak learning rate, after a warm-up over the first twentieth of the steps
            and before a cosine decay to 0. By default, it is derived from the initial loss, see
            `choose_learning_rate`.
        states (`float`, *optional*, defaults to 1): weight of the encoder output in the loss, see `RecoveryTrainer`.
        layers (`float`, *optional*, defaults to 1): weight of the encoder layers' outputs in the loss.
        decoder (`float`, *optional*, defaults to 0.2): weight of the decoder output in the loss.
        variants (`int`, *optional*, defaults to 8): maximum number of variants of the audio, each with different noise.
            The first is the audio itself; the others are assembled from short pieces in random order. Unless `steps`
            is given, the number is reduced to what the teacher can process in its share of `minutes`.
        noise (`tuple[float, float]`, *optional*, defaults to `(0, 40)`): range of signal-to-noise ratios in dB of the
            added white noise, or `()` for none.
        batch_size (`int`, *optional*, defaults to 2): windows per step and process.
        seed (`int`, *optional*, defaults to 0): seed of the noise, the pieces and the order of the data.
    """

    steps: int | None = None
    minutes: float = 10.0
    learning_rate: float | None = None
    states: float = 1.0
    layers: float = 1.0
    decoder: float = 0.2
    variants: int = 8
    noise: tuple[float, float] | tuple[()] = (0.0, 40.0)
    batch_size: int = 2
    seed: int = 0


class DistillationDataset(Dataset):
    """
    The distillation data of each window, read from disk on access.

    Args:
        files (`Sequence[Path]`): files written by `write_distillation_data`.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._locations = []
        for path in files:
            with safe_open(path, framework="pt") as file:
                self._locations += [(path, row) for row in range(file.get_slice("tokens").get_shape()[0])]

    def __len__(self) -> int:
        return len(self._locations)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        path, row = self._locations[index]
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name)[row] for name in file.keys()}  # noqa: SIM118


def collate(examples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Collates examples of a `DistillationDataset` into a batch; token sequences are padded with 0 and masked."""

    def stack(name: str, dim: int = 0) -> torch.Tensor:
        return torch.stack([example[name] for example in examples], dim)

    def pad(name: str) -> torch.Tensor:
        return pad_sequence([example[name] for example in examples], batch_first=True)

    return {
        "input_features": stack("features"),
        "decoder_input_ids": pad("tokens"),
        "predicted": pad("predicted"),
        "decoder_states": pad("decoder_states"),
        "layers": stack("layers", dim=1),
        "states": stack("states"),
    }


def splice(windows: Sequence[Clip], length: int, generator: np.random.Generator) -> Clip:
    """
    Assembles a window from random pieces of other windows, so that each variant has different text.

    Args:
        windows (`Sequence[Clip]`): windows from which the pieces are taken.
        length (`int`): maximum length in samples; the result has at least half of it.
        generator (`np.random.Generator`): source of random numbers.

    Returns:
        `Clip`: the new window.
    """
    target = int(generator.integers(length // 2, length))
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < target:
        samples = windows[int(generator.integers(len(windows)))].samples
        size = int(SAMPLING_RATE * generator.uniform(*PIECE_SECONDS))
        start = int(generator.integers(max(1, len(samples) - size)))
        pieces.append(samples[start : start + size])
    return Clip("spliced", np.concatenate(pieces)[:target])


def compared_layers(encoder_layers: int) -> list[int]:
    """Returns the indices in `hidden_states` of the layer outputs that the loss compares, without the last layer."""
    return sorted(
        {round(index) for index in np.linspace(1, encoder_layers - 1, min(MAX_COMPARED_LAYERS, encoder_layers - 1))}
    )


@torch.no_grad()
def write_distillation_data(
    teacher: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    windows: Sequence[Clip],
    settings: Recovery,
    folder: Path,
    origin: dict[str, Any],
    variants: range,
) -> list[Path]:
    """
    Runs the teacher over the audio once and writes its greedy transcripts, layer outputs and decoder outputs to files.

    Reading the outputs (float16) back is much faster than running the teacher, which would also have to transcribe, in
    every step, and the device never holds both models. Each variant of a 30 s window takes 24 MB on disk with large-v3,
    so 100 windows in 8 variants take 19 GB. Several processes share the work.

    Args:
        teacher (`WhisperForConditionalGeneration`): the base model, on any device.
        extractor (`WhisperFeatureExtractor`): the feature extractor of the teacher.
        windows (`Sequence[Clip]`): audio, each no longer than the extractor's window.
        settings (`Recovery`): the noise and its seed.
        folder (`Path`): folder for the files; complete files of an earlier run are reused.
        origin (`dict[str, Any]`): all settings that affect the contents.
        variants (`range`): numbers of the variants to process.

    Returns:
        `list[Path]`: one file per batch.

    Raises:
        InputError: the folder holds files that were created with other settings.
    """
    state = PartialState()
    with state.main_process_first():
        record_origin(folder, origin)
    files: list[Path] = []
    total = len(windows) * len(variants)
    with tqdm(desc="teacher", unit="window", total=total, disable=not state.is_main_process) as progress:
        for variant in variants:
            generator = np.random.default_rng([settings.seed, variant])
            audio = [splice(windows, extractor.n_samples, generator) if variant else window for window in windows]
            seed = settings.seed + variant
            batches = feature_batches(audio, extractor, len(audio), TEACHER_BATCH_SIZE, settings.noise, seed)
            for number, features in enumerate(batches):
                files.append(folder / f"{variant:02}_{number:05}.safetensors")
                if len(files) % state.num_processes == state.process_index and not _is_complete(files[-1]):
                    start = now(teacher.device)
                    examples = _teacher_outputs(teacher, features)
                    save_tensors(examples, files[-1], {SECONDS_KEY: str(now(teacher.device) - start)})
                progress.update(len(features))
    state.wait_for_everyone()
    return files


def teacher_seconds(files: Sequence[Path]) -> float:
    """Returns the total time that the teacher took for these files, summed over processes."""
    seconds = 0.0
    for path in files:
        with safe_open(path, framework="pt") as file:
            seconds += float(file.metadata()[SECONDS_KEY])
    return seconds


def count_text_tokens(path: Path) -> int:
    """Counts the text tokens in the transcripts of a file."""
    with safe_open(path, framework="pt") as file:
        predicted = file.get_tensor("predicted")
    return int(predicted.sum()) - len(predicted)  # without the end token of each transcript


def _is_complete(path: Path) -> bool:
    try:
        load_tensors(path)
    except FileNotFoundError:
        return False
    except (SafetensorError, ValueError) as error:
        logger.warning("%s is damaged (%s); running the teacher again for this batch", path, error)
        return False
    return True


def _teacher_outputs(teacher: WhisperForConditionalGeneration, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """Computes the distillation data of a batch; falls back to the CPU if the device runs out of memory."""
    try:
        encoder = teacher.get_encoder()
        *inputs, last = layer_inputs(encoder, features.to(teacher.device, teacher.dtype))
        states = encoder.layer_norm(last)
        tokens, predicted, _ = transcripts(teacher, states)
        decoded = teacher.get_decoder()(input_ids=tokens, encoder_hidden_states=states)
    except torch.OutOfMemoryError:
        if teacher.device.type == "cpu":
            raise
        return _teacher_outputs(move_to_cpu(teacher), features)
    layers = [inputs[index].half() for index in compared_layers(teacher.config.encoder_layers)]
    return {
        "features": features,
        "layers": torch.stack(layers, dim=1),
        "states": states.half(),
        "decoder_states": decoded.last_hidden_state.half(),
        "tokens": tokens,
        "predicted": predicted,
    }


def move_to_cpu(teacher: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Moves a teacher that does not fit on its device to the CPU and logs a warning."""
    logger.warning("not enough device memory for the teacher: it runs on the CPU")
    return teacher.to("cpu")  # type: ignore[arg-type]
