"""Manifests: JSON lines, one per utterance, with the fields expected by the scorer of the Open ASR leaderboard."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import read_json, write_json
from ..common.json_lines import verify_line

NUMERIC_FIELDS = ("duration", "time", "encoder_time", "decoder_time")


@dataclass(frozen=True)
class Utterance:
    """
    One line of a manifest.

    Args:
        index (`int`): index of the clip in the dataset.
        audio_filepath (`str`): name of the clip.
        duration (`float`): seconds of audio.
        time (`float`): seconds of processing; the time of a batch is divided among its clips by duration.
        encoder_time (`float`): seconds spent in the encoder.
        decoder_time (`float`): seconds spent in the decoder.
        text (`str`): normalised reference.
        pred_text (`str`): normalised prediction.
        reference (`str`): original reference.
        prediction (`str`): original output of the model.
        fallback (`bool`, *optional*, defaults to `False`): whether the clip was decoded again with all positions
            computed, see `models.fallback`.
    """

    index: int
    audio_filepath: str
    duration: float
    time: float
    encoder_time: float
    decoder_time: float
    text: str
    pred_text: str
    reference: str
    prediction: str
    fallback: bool = False


@dataclass(frozen=True)
class CallChunk(Utterance):
    """
    A line of a manifest for one chunk of a call; its reference is the transcript of the whole call.

    Args:
        parent_id (`str`): id of the call.
        chunk_index (`int`): index of the chunk in the call, from 0.
    """

    parent_id: str = ""
    chunk_index: int = 0


def manifest_path(folder: Path, model: str, dataset: str) -> Path:
    """Path of the manifest of a model and dataset, named as on the Open ASR leaderboard."""
    model, dataset = (name.replace("/", "-").replace(":", "_") for name in (model, dataset))
    return folder / f"MODEL_{model}_DATASET_{dataset}.jsonl"


def read_manifest(path: Path) -> list[Utterance]:
    """
    Reads a manifest, in the order of the dataset.

    Raises:
        InputError: if the file cannot be read, or a line is invalid or repeated; the message gives the line number.
    """
    try:
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error}); give a manifest written by lite-whisper evaluate"
        ) from error
    utterances: dict[int, Utterance] = {}
    for number, line in enumerate(lines if lines != [b""] else [], start=1):
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise TypeError("not a JSON object")
            # Older manifests use "retried", or have neither.
            known = {"fallback": values.get("retried", False)} | values
            kind = CallChunk if "parent_id" in values else Utterance
            utterance = kind(**{field.name: known[field.name] for field in fields(kind)})
            _check_types(utterance)
            verify_line(values)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                f"{path} line {number} is damaged or not a manifest line ({type(error).__name__}: {error}); remove the "
                "line and evaluate again to transcribe the missing clip"
            ) from error
        if utterance.index in utterances:
            raise InputError(f"{path} line {number} repeats utterance {utterance.index}; remove one of the lines")
        utterances[utterance.index] = utterance
    return [utterances[index] for index in sorted(utterances)]


def _check_types(utterance: Utterance) -> None:
    for name, value in asdict(utterance).items():
        types = {"index": int, "fallback": bool, "chunk_index": int}
        expected = types.get(name, (int, float) if name in NUMERIC_FIELDS else str)
        if not isinstance(value, expected):
            raise TypeError(f"{name} is {value!r}")


def settings_path(manifest: Path) -> Path:
    """Path of the settings file beside a manifest."""
    return manifest.with_suffix(".settings.json")


def read_settings(manifest: Path) -> dict[str, Any]:
    """
    Reads the settings with which a manifest was written.

    Raises:
        InputError: if the settings file is missing or malformed.
    """
    return read_json(settings_path(manifest), "keep it beside its manifest, or remove both and evaluate again")


def write_settings(manifest: Path, settings: dict[str, Any]) -> None:
    """Writes the settings file beside a manifest."""
    write_json(settings_path(manifest), settings)
