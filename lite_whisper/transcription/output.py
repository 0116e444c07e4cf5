"""Writes transcripts to one file of JSON lines, text or subtitles, or to one file per recording."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..common.errors import InputError
from ..common.files import MAX_NAME_BYTES, check_writable, remove_leftovers, temporary_name
from .formats import TRANSCRIPT_FORMATS, Transcript
from .transcriber import read_transcripts

JSON_LINES = "jsonl"


@dataclass(frozen=True)
class Output:
    """
    Destination and format of the transcripts.

    Args:
        path (`Path`): a file, or a folder for one file per recording.
        format (`str`): `"jsonl"`, `"txt"`, `"srt"` or `"vtt"`.
        is_folder (`bool`): whether `path` is a folder.
    """

    path: Path
    format: str
    is_folder: bool

    @classmethod
    def from_path(cls, path: Path, format: str | None = None) -> "Output":
        """
        Infers the output from a path: a file if it has a known suffix, or a folder if a format is given.

        Args:
            path (`Path`): ending in .jsonl, .txt, .srt or .vtt, or a folder.
            format (`str`, *optional*): format of the files in a folder: txt, srt or vtt.

        Raises:
            InputError: the path is a folder without a format, or a file with one.
        """
        suffix = path.suffix.removeprefix(".")
        is_folder = suffix not in (JSON_LINES, *TRANSCRIPT_FORMATS)
        if is_folder != (format is not None):
            raise InputError(
                f"{path} is not a valid output: give a .jsonl, .txt, .srt or .vtt file without a format, or a folder "
                "and the format txt, srt or vtt",
                setting="format",
            )
        return cls(path, format or suffix, is_folder)

    def check(self, sources: Sequence[str], overwrite: bool) -> None:
        """
        Checks that the output can be written, before any work is done.

        Raises:
            InputError: the output exists, or it is a text or subtitle file and there may be several recordings.
        """
        path, is_single = self.path, len(sources) == 1 and Path(sources[0]).is_file()
        remove_leftovers(path)
        if self.format != JSON_LINES and not self.is_folder and not is_single:
            raise InputError(
                f"{path} can only hold one recording, and there may be several; give a folder and the format "
                f"{self.format}, or a .jsonl file",
                setting="format",
            )
        if path.is_dir() and (not self.is_folder or any(path.iterdir())):
            raise InputError(
                f"{path} is a folder that is not empty; choose another output or remove it", setting="output"
            )
        if path.exists() and not path.is_dir() and (self.is_folder or not overwrite):
            advice = "choose another output" + ("" if self.is_folder else ", or overwrite it")
            raise InputError(f"{path} already exists; {advice}", setting="output" if self.is_folder else "overwrite")
        check_writable(path)

    def write(self, transcripts: Path) -> None:
        """Writes transcripts in the order of the recordings. The output only appears once it is complete."""
        with temporary_name(self.path) as temporary:
            if self.is_folder:
                self._write_files(transcripts, temporary)
                return
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:  # as in `append_lines`
                for transcript in read_transcripts(transcripts):
                    file.write(
                        json_line(transcript)
                        if self.format == JSON_LINES
                        else TRANSCRIPT_FORMATS[self.format](transcript)
                    )

    def _write_files(self, transcripts: Path, folder: Path) -> None:
        folder.mkdir()
        names = file_names([transcript.audio for transcript in read_transcripts(transcripts)], self.format)
        for transcript, name in zip(read_transcripts(transcripts), names, strict=True):
            if not transcript.error:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(TRANSCRIPT_FORMATS[self.format](transcript), encoding="utf-8")


def json_line(transcript: Transcript) -> str:
    """Converts a transcript to a line of JSON, with either the text or the error."""
    values = asdict(transcript)
    omitted = ("text", "segments", "fallback") if transcript.error else ("error",)
    return json.dumps({key: value for key, value in values.items() if key not in omitted}, ensure_ascii=False) + "\n"


def file_names(recordings: Sequence[str], format: str) -> list[str]:
    """
    Derives the name of each recording's file in the output folder, keeping the folder structure of the recordings.

    Recordings that differ only in their suffix keep it: call.wav.srt and call.mp3.srt. Rows of a dataset may share a
    name or have one that is not a valid file name; every recording still gets a valid and unique file name.

    Args:
        recordings (`Sequence[str]`): files, or rows of datasets, in order.
        format (`str`): suffix of the files.

    Returns:
        `list[str]`: a relative path for each recording.
    """
    paths = [Path(_valid(name)).resolve() for name in recordings]  # no name can lead out of the folder
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    counts = Counter(path.with_suffix("") for path in dict.fromkeys(paths))
    taken: set[str] = set()
    names = []
    for path in paths:
        stem = str((path.with_suffix("") if counts[path.with_suffix("")] == 1 else path).relative_to(root))
        name, number = f"{stem}.{format}", 1
        while name.casefold() in taken:  # some file systems ignore case
            number += 1
            name = f"{stem}-{number}.{format}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _valid(name: str) -> str:
    """Replaces invalid characters in a path and truncates its components to the limit of file systems."""
    printable = "".join(character if character.isprintable() else "_" for character in name)
    return "/".join(part if len(part.encode()) <= MAX_NAME_BYTES else _truncated(part) for part in printable.split("/"))


def _truncated(part: str) -> str:
    return part.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
