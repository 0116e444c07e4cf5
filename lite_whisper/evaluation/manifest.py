"""Manifests: one JSON line for each utterance, in the fields that the scorer of the Open ASR leaderboard reads."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import read_kept, write_kept
from ..common.json_lines import verify_line

NUMBERS = ("duration", "time", "encoder_time", "decoder_time")


@dataclass(frozen=True)
class Utterance:
    """
    One line of a manifest.

    Args:
        index (`int`): the place in the dataset.
        audio_filepath (`str`): the name of the clip.
        duration (`float`): seconds of audio.
        time (`float`): seconds that it took; of a batch, the fraction by duration.
        encoder_time (`float`): those of the encoder.
        decoder_time (`float`): those of the decoder.
        text (`str`): the reference, normalised.
        pred_text (`str`): the prediction, normalised.
        reference (`str`): as it was given.
        prediction (`str`): as the model wrote it.
        retried (`bool`, *optional*, defaults to `False`): whether the first try looked broken, see `second_try`.
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
    A line of a manifest that holds one chunk of a call; its reference is that of the whole call.

    Args:
        parent_id (`str`): the call.
        chunk_index (`int`): the place in it, from 0.
    """

    parent_id: str = ""
    chunk_index: int = 0


def manifest_path(folder: Path, model: str, dataset: str) -> Path:
    """Where the manifest of a model and set lies; its name is the one of the Open ASR leaderboard."""
    model, dataset = (name.replace("/", "-").replace(":", "_") for name in (model, dataset))
    return folder / f"MODEL_{model}_DATASET_{dataset}.jsonl"


def read_manifest(path: Path) -> list[Utterance]:
    """
    Reads a manifest, in the order of the dataset.

    Raises:
        InputError: there is none, or a line is not one of a manifest or comes twice; the message names the line.
    """
    try:
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); give a manifest that evaluate has written") from error
    utterances: dict[int, Utterance] = {}
    for number, line in enumerate(lines if lines != [b""] else [], start=1):
        try:
            values = json.loads(line)
            # earlier versions named it "retried", or left it out
            known = {"fallback": values.get("retried", False)} | values
            kind = CallChunk if "parent_id" in values else Utterance
            utterance = kind(**{field.name: known[field.name] for field in fields(kind)})
            _check_types(utterance)
            verify_line(values)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                f"{path} line {number} is not one of a manifest or damaged ({type(error).__name__}: {error}); remove "
                "the line and evaluate again, which adds what is missing"
            ) from error
        if utterance.index in utterances:
            raise InputError(f"{path} line {number} repeats utterance {utterance.index}; remove one of the two")
        utterances[utterance.index] = utterance
    return [utterances[index] for index in sorted(utterances)]


def _check_types(utterance: Utterance) -> None:
    for name, value in asdict(utterance).items():
        whole = {"index": int, "fallback": bool, "chunk_index": int}
        expected = whole.get(name, (int, float) if name in NUMBERS else str)
        if not isinstance(value, expected):
            raise TypeError(f"{name} is {value!r}")


def settings_path(manifest: Path) -> Path:
    """The file beside a manifest that says how it was made."""
    return manifest.with_suffix(".settings.json")


def read_settings(manifest: Path) -> dict[str, Any]:
    """
    How a manifest was made.

    Raises:
        InputError: the file beside it is missing or malformed.
    """
    return read_kept(settings_path(manifest), "keep it beside its manifest, or remove both and evaluate again")


def write_settings(manifest: Path, settings: dict[str, Any]) -> None:
    """Writes how a manifest was made beside it."""
    write_kept(settings_path(manifest), settings)
