"""Where transcripts are written: one file of JSON lines or text, or a file for each recording."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..common.errors import InputError
from ..common.files import LONGEST_NAME, check_writable, temporary_name, tidy
from .formats import TRANSCRIPT_FORMATS, Transcript
from .transcriber import read_transcripts

JSON_LINES = "jsonl"


@dataclass(frozen=True)
class Output:
    """
    Where transcripts go, and in which form.

    Args:
        path (`Path`): a file, or the folder for a file of each recording.
        format (`str`): `"jsonl"`, `"txt"`, `"srt"` or `"vtt"`.
        is_folder (`bool`): whether `path` is a folder.
    """

    path: Path
    format: str
    is_folder: bool

    @classmethod
    def from_path(cls, path: Path, format: str | None = None) -> "Output":
        """
        The output that a path means: a file by its suffix, or a folder where the form is named.

        Args:
            path (`Path`): ending in .jsonl, .txt, .srt or .vtt, or a folder.
            format (`str`, *optional*): of the files in a folder: txt, srt or vtt.

        Raises:
            InputError: it is neither.
        """
        suffix = path.suffix.removeprefix(".")
        is_folder = suffix not in (JSON_LINES, *TRANSCRIPT_FORMATS)
        if is_folder != (format is not None):
            raise InputError(
                "the output is a file .jsonl, .txt, .srt or .vtt, or a folder with a format, txt, srt or vtt",
                setting="format",
            )
        return cls(path, format or suffix, is_folder)

    def check(self, sources: Sequence[str], overwrite: bool) -> None:
        """
        Makes sure, before any work is done, that it can be written.

        Raises:
            InputError: it exists, or is one file of text where there are several recordings.
        """
        path, alone = self.path, len(sources) == 1 and Path(sources[0]).is_file()
        tidy(path)
        if self.format != JSON_LINES and not self.is_folder and not alone:
            raise InputError(
                f"{path} holds one recording and there may be several; name a folder and the format {self.format}, "
                "or a file .jsonl",
                setting="format",
            )
        if path.is_dir() and (not self.is_folder or any(path.iterdir())):
            raise InputError(
                f"{path} is a folder that holds something; choose another output or remove it", setting="output"
            )
        if path.exists() and not path.is_dir() and (self.is_folder or not overwrite):
            advice = "choose another output" + ("" if self.is_folder else ", or replace it")
            raise InputError(f"{path} exists; {advice}", setting="output" if self.is_folder else "overwrite")
        check_writable(path)

    def write(self, transcripts: Path) -> None:
        """Writes transcripts in the order of the recordings; nothing is seen of it before all is there."""
        with temporary_name(self.path) as temporary:
            if self.is_folder:
                self._write_files(transcripts, temporary)
                return
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:  # as in `append`
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
    """A line of the output; an error stands in the place of the text."""
    values = asdict(transcript)
    left_out = ("text", "segments", "fallback") if transcript.error else ("error",)
    return json.dumps({key: value for key, value in values.items() if key not in left_out}, ensure_ascii=False) + "\n"


def file_names(recordings: Sequence[str], format: str) -> list[str]:
    """
    Where the file of each recording lies in the folder: as in the folder that holds them all.

    Two that differ in their suffix only keep it: call.wav.srt and call.mp3.srt. Rows of a dataset may share a name, or
    have one that no file can have; whatever they are called, every recording has a valid file of its own.

    Args:
        recordings (`Sequence[str]`): files, or rows of datasets, in their order.
        format (`str`): the suffix of the files.

    Returns:
        `list[str]`: a relative path for each.
    """
    paths = [Path(_valid(name)).resolve() for name in recordings]  # so that no name leads out of the folder
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    counts = Counter(path.with_suffix("") for path in dict.fromkeys(paths))
    taken: set[str] = set()
    names = []
    for path in paths:
        stem = str((path.with_suffix("") if counts[path.with_suffix("")] == 1 else path).relative_to(root))
        name, number = f"{stem}.{format}", 1
        while name.casefold() in taken:  # some file systems do not tell small letters from capitals
            number += 1
            name = f"{stem}-{number}.{format}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _valid(name: str) -> str:
    """The name with what no file's name can hold replaced, and its parts cut to what file systems take."""
    printable = "".join(character if character.isprintable() else "_" for character in name)
    return "/".join(part if len(part.encode()) <= LONGEST_NAME else _cut(part) for part in printable.split("/"))


def _cut(part: str) -> str:
    return part.encode()[:LONGEST_NAME].decode(errors="ignore")
