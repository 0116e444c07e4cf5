"""The command `lite-whisper transcribe`."""

import argparse
import glob
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import AutomaticSpeechRecognitionPipeline, WhisperForConditionalGeneration, WhisperProcessor

from ..arguments import device_name, positive
from ..audio import AudioDataset
from ..common.errors import InputError, exit_code
from ..common.files import check_same, check_writable, read_kept, temporary_name, tidy, unfinished, write_kept
from ..evaluation.command import add_decoding_arguments, check_language
from ..modeling_lite_whisper import LiteWhisperForConditionalGeneration
from ..models.folders import fingerprint, load_model
from .formats import FORMATS, Transcript
from .transcriber import Transcriber, read_transcripts, transcribe_recordings

JSON_LINES = "jsonl"


def parse_arguments(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    """The arguments of `lite-whisper transcribe`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Transcribe any number of recordings of any length. A run that was interrupted goes on when the "
        "same command is given again.",
    )
    parser.add_argument("sources", nargs="+", help="files, folders, patterns such as 'calls/**/*.wav', or Hub datasets")
    parser.add_argument("--model", required=True, help="Hub id or folder of a Whisper, compressed or not")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="a file .jsonl, with a line for each recording; a file .txt, .srt or .vtt, for one recording; or, with "
        "--format, a folder in which each recording has a file",
    )
    parser.add_argument("--format", choices=FORMATS, help="of the files in a folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the file at --output")
    parser.add_argument(
        "--timestamps", choices=("none", "segment", "word"), default="segment", help="of the segments (default segment)"
    )
    add_decoding_arguments(parser)
    parser.add_argument("--batch-size", type=positive, default=8, help="windows that run at once (default 8)")
    parser.add_argument("--device", type=device_name, help="cpu, cuda, cuda:1 (default cuda where there is a GPU)")
    parser.add_argument(
        "--ray",
        action="store_true",
        help="share the work over the devices of a Ray cluster (that of RAY_ADDRESS, or one started on this machine), "
        "whose nodes need lite-whisper and see the files under the same names",
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    arguments = parser.parse_args(argv)
    suffix = arguments.output.suffix.removeprefix(".")
    arguments.folder = suffix not in (JSON_LINES, *FORMATS)
    if arguments.folder != (arguments.format is not None):
        parser.error("--output is a file .jsonl, .txt, .srt or .vtt, or a folder with --format txt, srt or vtt")
    arguments.format = arguments.format or suffix
    if arguments.format in ("srt", "vtt") and arguments.timestamps == "none":
        parser.error("subtitles have times; leave --timestamps none out")
    return arguments


def expanded(sources: Sequence[str]) -> list[str]:
    """
    The sources with patterns replaced by the files that match.

    Raises:
        InputError: a pattern matches nothing.
    """
    names: list[str] = []
    for source in sources:
        if Path(source).exists() or not glob.has_magic(source):
            names.append(source)
            continue
        matching = files_matching(Path(source))
        if not matching:
            raise InputError(f"no file matches {source}")
        names += matching
    return names


def files_matching(pattern: Path) -> list[str]:
    """The files that match; `**` follows no links to folders, as glob.glob does, even where they lead in circles."""
    pattern = pattern / "*" if pattern.name == "**" else pattern
    found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    return sorted(str(path) for path in found if path.is_file() and not path.name.startswith("."))


def check_output(arguments: argparse.Namespace, sources: Sequence[str]) -> None:
    """
    Makes sure, before any work is done, that the output can be written.

    Raises:
        InputError: it exists, or is one file of text where there are several recordings.
    """
    output, alone = arguments.output, len(sources) == 1 and Path(sources[0]).is_file()
    tidy(output)
    if arguments.format != JSON_LINES and not arguments.folder and not alone:
        raise InputError(
            f"{output} holds one recording and there may be several; name a folder and --format {arguments.format}, "
            "or a file .jsonl"
        )
    if output.is_dir() and (not arguments.folder or any(output.iterdir())):
        raise InputError(f"{output} is a folder that holds something; choose another --output or remove it")
    if output.exists() and not output.is_dir() and (arguments.folder or not arguments.overwrite):
        raise InputError(f"{output} exists; choose another --output" + ("" if arguments.folder else " or --overwrite"))
    check_writable(output)


def write(transcripts: Path, output: Path, form: str, folder: bool) -> None:
    """Writes the transcripts in the order of the recordings; nothing is seen of it before all is there."""
    with temporary_name(output) as temporary:
        if folder:
            temporary.mkdir()
            names = file_names([t.audio for t in read_transcripts(transcripts) if not t.error], form)
            for transcript in read_transcripts(transcripts):
                if not transcript.error:
                    path = temporary / names[transcript.audio]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(FORMATS[form](transcript), encoding="utf-8")
            return
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:  # as in `append`
            for transcript in read_transcripts(transcripts):
                file.write(json_line(transcript) if form == JSON_LINES else FORMATS[form](transcript))


def json_line(transcript: Transcript) -> str:
    """A line of the output; an error stands in the place of the text."""
    values = asdict(transcript)
    left_out = ("text", "segments") if transcript.error else ("error",)
    return json.dumps({key: value for key, value in values.items() if key not in left_out}, ensure_ascii=False) + "\n"


def file_names(recordings: Sequence[str], form: str) -> dict[str, str]:
    """
    Where the file of each recording lies in the folder: as in the folder that holds them all.

    Two that differ in their suffix only keep it: call.wav.srt and call.mp3.srt.
    """
    paths = {name: Path(name).resolve() for name in recordings}  # so that no name leads out of the folder
    root = os.path.commonpath([path.parent for path in paths.values()]) if paths else ""
    counts = Counter(path.with_suffix("") for path in paths.values())
    return {
        name: f"{(path.with_suffix('') if counts[path.with_suffix('')] == 1 else path).relative_to(root)}.{form}"
        for name, path in paths.items()
    }


def transcriber(
    arguments: argparse.Namespace, model: WhisperForConditionalGeneration, processor: WhisperProcessor, device: str
) -> Transcriber:
    """The model on a device, ready to transcribe as the arguments say."""
    generate_kwargs: dict[str, Any] = {"num_beams": arguments.num_beams}
    if getattr(model.generation_config, "is_multilingual", False):
        generate_kwargs |= {"task": arguments.task, "language": arguments.language}
    model.to(device=device, dtype=getattr(torch, arguments.dtype))  # type: ignore[call-arg]
    if isinstance(model, LiteWhisperForConditionalGeneration):
        model.optimize_for_inference(batch_size=arguments.batch_size)
    recognizer = AutomaticSpeechRecognitionPipeline(
        model=model.eval(), tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    return Transcriber(recognizer, arguments.batch_size, arguments.timestamps, generate_kwargs)


def load_transcriber(arguments: argparse.Namespace, device: str) -> Transcriber:
    """Loads what the arguments name and gives a `transcriber`; in an actor of a cluster."""
    return transcriber(arguments, *load_model(arguments.model), device)


def run(arguments: argparse.Namespace) -> None:
    """Transcribes what the arguments name and writes the result."""
    sources = expanded(arguments.sources)
    check_output(arguments, sources)
    model, processor = load_model(arguments.model)
    check_language(arguments.language, model, arguments.model)
    settings = {
        "model": fingerprint(model),
        "sources": list(arguments.sources),
        **{name: getattr(arguments, name) for name in ("language", "task", "num_beams", "timestamps", "dtype")},
        "batch_size": arguments.batch_size,
    }
    with unfinished(arguments.output) as work:
        work.mkdir(parents=True, exist_ok=True)
        kept, lines = work / "settings.json", work / "transcripts.jsonl"
        if kept.exists():
            check_same(read_kept(kept), settings, kept)
        write_kept(kept, settings)
        if arguments.ray:
            from .cluster import transcribe_on_cluster  # Ray need not be installed

            on_gpus = None if arguments.device is None else arguments.device != "cpu"
            transcribe_on_cluster(partial(load_transcriber, arguments), sources, lines, on_gpus)
        else:
            device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
            entries = AudioDataset(sources).entries()
            transcribe_recordings(transcriber(arguments, model, processor, device), entries, lines)
        errors = [transcript.error for transcript in read_transcripts(lines)]
        failed = [error for error in errors if error]
        if len(failed) == len(errors):
            raise InputError(f"none of the {len(errors)} recordings could be read, the first because it {failed[0]}")
        write(lines, arguments.output, arguments.format, arguments.folder)
    print(
        f"{len(errors) - len(failed)} recordings transcribed" + (f", {len(failed)} could not be read" if failed else "")
    )
    print(f"written to {arguments.output}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper transcribe") -> int:
    """Runs `lite-whisper transcribe`; returns the exit code."""
    logging.basicConfig(format="%(message)s")
    arguments = parse_arguments(argv, program)
    with logging_redirect_tqdm():
        return exit_code(lambda: run(arguments))
