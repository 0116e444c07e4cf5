"""DistillationDataset: what a teacher says of audio, written to files once and read in every step of recovery."""

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

LAYERS = 5  # at the most so many outputs of layers below the last are compared, evenly spaced
TAUGHT_AT_ONCE = 8  # windows
SECONDS = "seconds"  # in a file's metadata: what its lessons took
PIECE = (0.5, 4.0)  # seconds; what the windows of all variants but the first are put together from


@dataclass(frozen=True)
class Recovery:
    """
    How recovery trains.

    Rate and batch size were chosen with whisper-base, the weights of the loss with the miniature, on calibration audio
    that was held out.

    Args:
        steps (`int`, *optional*): as many as fit into `minutes` by default.
        minutes (`float`, *optional*, defaults to 10): all of it together: the teacher's part and the student's.
        learning_rate (`float`, *optional*): the highest, reached after a twentieth of the steps; it falls to 0 as a
            cosine. By default it follows from the loss before the first step, see `learning_rate_of`.
        states (`float`, *optional*, defaults to 1): weight of a loss, see `RecoveryTrainer`.
        layers (`float`, *optional*, defaults to 1): likewise.
        decoder (`float`, *optional*, defaults to 0.2): likewise.
        variants (`int`, *optional*, defaults to 8): copies of the audio at the most, each in noise of its own; all but
            the first are pieces in random order. Within `minutes` there are as many as the teacher has time for.
        noise (`tuple[float, float]`, *optional*, defaults to `(0, 40)`): range of signal-to-noise ratios in dB, or
            `()`.
        batch_size (`int`, *optional*, defaults to 2): windows per step and process.
        seed (`int`, *optional*, defaults to 0): of the noise, the pieces and the order.
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
    """What the teacher said of each window, read from files when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._places = []
        for file in files:
            with safe_open(file, framework="pt") as lesson:
                self._places += [(file, row) for row in range(lesson.get_slice("tokens").get_shape()[0])]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        file, row = self._places[index]
        with safe_open(file, framework="pt") as lesson:
            return {name: lesson.get_slice(name)[row] for name in lesson.keys()}  # noqa: SIM118


def collate(distillation_data: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """DistillationDataset to a batch; texts are filled up with 0, of which nothing is predicted."""

    def stacked(name: str, dim: int = 0) -> torch.Tensor:
        return torch.stack([lesson[name] for lesson in distillation_data], dim)

    def filled(name: str) -> torch.Tensor:
        return pad_sequence([lesson[name] for lesson in distillation_data], batch_first=True)

    return {
        "input_features": stacked("features"),
        "decoder_input_ids": filled("tokens"),
        "predicted": filled("predicted"),
        "decoder_states": filled("decoder_states"),
        "layers": stacked("layers", dim=1),
        "states": stacked("states"),
    }


def spliced(windows: Sequence[Clip], length: int, generator: np.random.Generator) -> Clip:
    """A window of half the length or more, put together from random pieces of others, so that no text comes twice."""
    wanted = int(generator.integers(length // 2, length))
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < wanted:
        samples = windows[int(generator.integers(len(windows)))].samples
        size = int(SAMPLING_RATE * generator.uniform(*PIECE))
        start = int(generator.integers(max(1, len(samples) - size)))
        pieces.append(samples[start : start + size])
    return Clip("spliced", np.concatenate(pieces)[:wanted])


def compared_layers(encoder_layers: int) -> list[int]:
    """Which layers' outputs are compared, besides that of the whole encoder: places in `hidden_states`."""
    return sorted({round(place) for place in np.linspace(1, encoder_layers - 1, min(LAYERS, encoder_layers - 1))})


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
    Runs the teacher over the audio once and keeps what it says: greedy transcripts, and outputs of the layers compared
    and of the decoder (fp16).

    A step that reads this back takes a fraction of the time of one that also runs the teacher, which is larger than the
    student and would have to transcribe, and the device never holds both models. Disk: for each window and variant
    24 MB for large-v3 (30 s), so 19 GB for 100 windows and 8 variants. Several processes share the work.

    Args:
        teacher (`WhisperForConditionalGeneration`): the model before compression, on any device.
        extractor (`WhisperFeatureExtractor`): its own.
        windows (`Sequence[Clip]`): audio, at the most as long as the extractor's window.
        settings (`Recovery`): in which noise.
        folder (`Path`): for the files; those that are there and whole are kept.
        origin (`dict[str, Any]`): what decides the contents; files that were made otherwise are refused.
        variants (`range`): which variants.

    Returns:
        `list[Path]`: one file for each batch, which also tells how many seconds it took.

    Raises:
        InputError: the files are of something else.
    """
    state = PartialState()
    with state.main_process_first():
        record_origin(folder, origin)
    files: list[Path] = []
    total = len(windows) * len(variants)
    with tqdm(desc="teacher", unit="window", total=total, disable=not state.is_main_process) as progress:
        for variant in variants:
            generator = np.random.default_rng([settings.seed, variant])
            audio = [spliced(windows, extractor.n_samples, generator) if variant else window for window in windows]
            seed = settings.seed + variant
            batches = feature_batches(audio, extractor, len(audio), TAUGHT_AT_ONCE, settings.noise, seed)
            for number, features in enumerate(batches):
                files.append(folder / f"{variant:02}_{number:05}.safetensors")
                if len(files) % state.num_processes == state.process_index and not _is_example(files[-1]):
                    start = now(teacher.device)
                    lesson = _example(teacher, features)
                    save_tensors(lesson, files[-1], {SECONDS: str(now(teacher.device) - start)})
                progress.update(len(features))
    state.wait_for_everyone()
    return files


def seconds_of(files: Sequence[Path]) -> float:
    """How long the teacher took for these lessons, in all processes together."""
    seconds = 0.0
    for file in files:
        with safe_open(file, framework="pt") as lesson:
            seconds += float(lesson.metadata()[SECONDS])
    return seconds


def words_in(file: Path) -> int:
    """How many tokens of text the lessons of a batch hold."""
    with safe_open(file, framework="pt") as lesson:
        predicted = lesson.get_tensor("predicted")
    return int(predicted.sum()) - len(predicted)  # the end is predicted in silence too


def _is_example(file: Path) -> bool:
    try:
        load_tensors(file)
    except FileNotFoundError:
        return False
    except (SafetensorError, ValueError) as error:
        logger.warning("%s is damaged (%s) and made anew", file, error)
        return False
    return True


def _example(teacher: WhisperForConditionalGeneration, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the teacher says of a batch; where its device has no room, it goes on on the CPU."""
    try:
        encoder = teacher.get_encoder()
        *inputs, last = layer_inputs(encoder, features.to(teacher.device, teacher.dtype))
        states = encoder.layer_norm(last)
        tokens, predicted, _ = transcripts(teacher, states)
        decoded = teacher.get_decoder()(input_ids=tokens, encoder_hidden_states=states)
    except torch.OutOfMemoryError:
        if teacher.device.type == "cpu":
            raise
        return _example(on_cpu(teacher), features)
    layers = [inputs[place].half() for place in compared_layers(teacher.config.encoder_layers)]
    return {
        "features": features,
        "layers": torch.stack(layers, dim=1),
        "states": states.half(),
        "decoder_states": decoded.last_hidden_state.half(),
        "tokens": tokens,
        "predicted": predicted,
    }


def on_cpu(teacher: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Moves a teacher for which its device has no room to the CPU, and says so."""
    logger.warning("no room for the teacher on the device: it runs on the CPU, once over the audio")
    return teacher.to("cpu")  # type: ignore[arg-type]
