"""
Measures throughput and memory of `lite-whisper transcribe` on many short files, against the transformers pipeline.

    python benchmarks/transcription.py [--files 2000] [--batch-sizes 8 16] [--repetitions 3] [--threads 2]
        [--model examples/whisper-digits] [--recordings examples/digits/test] [--device cpu]
        [--output build/transcription]

The files are copies of the recordings in a temporary folder. The contenders are one pipeline call per file, one
pipeline call with batches over a generator of the files, and `transcribe_recordings` (which writes its results to
disk), all with the same stock model, audio reading and options. Each pass runs in its own process, which loads the
model and transcribes a few files before the clock starts; the order of the contenders rotates. Seconds and resident
memory (before the first file, after the last, and the peak) are medians over repetitions. "differ" counts the files
whose text differs from that of one call per file. Writes transcription.json with a row per pass.
"""

import argparse
import gc
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import soundfile
import torch
from record import write_results
from transformers import pipeline

from lite_whisper.audio import SAMPLING_RATE, AudioDataset, decode
from lite_whisper.common.memory import PeakMemory
from lite_whisper.transcription.transcriber import Transcriber, read_transcripts, transcribe_recordings

ROOT = Path(__file__).parents[1]
OPTIONS: dict[str, Any] = {
    "return_timestamps": True,
    "generate_kwargs": {"task": "transcribe", "language": "en", "num_beams": 1},
}
ONE_CALL, GENERATOR, OURS = "one call per file", "pipeline over a generator", "transcribe_recordings"
WARM_UP = 16  # files
UNITS = {"batch size": "files", "repetition": "1", "seconds": "s", "before": "B", "after": "B", "peak": "B"}


def pipeline_inputs(files: list[Path]) -> Iterator[dict[str, Any]]:
    """Reads the files one by one as inputs for the pipeline."""
    return ({"raw": decode(file), "sampling_rate": SAMPLING_RATE} for file in files)


def transcribe(contender: str, recognizer: Any, files: list[Path], batch_size: int, lines: Path) -> Iterator[str]:
    """Transcribes the files with a contender; yields the texts."""
    if contender == OURS:
        transcriber = Transcriber(recognizer, batch_size, OPTIONS)
        transcribe_recordings(transcriber, AudioDataset([str(file) for file in files]).entries(), lines)
        yield from (transcript.text for transcript in read_transcripts(lines))
    elif contender == GENERATOR:
        yield from (
            result["text"].strip() for result in recognizer(pipeline_inputs(files), batch_size=batch_size, **OPTIONS)
        )
    else:
        yield from (recognizer(each, **OPTIONS)["text"].strip() for each in pipeline_inputs(files))


def measure_pass(
    contender: str, batch_size: int, arguments: argparse.Namespace, folder: Path
) -> tuple[dict[str, float], list[str]]:
    """Transcribes all files of a folder in a new process; returns seconds, bytes of memory, and the texts."""
    torch.set_num_threads(arguments.threads)
    recognizer = pipeline("automatic-speech-recognition", model=str(arguments.model), device=arguments.device)
    files = sorted(folder.iterdir())
    with tempfile.TemporaryDirectory() as work:
        list(transcribe(contender, recognizer, files[:WARM_UP], batch_size, Path(work) / "warm-up"))
        gc.collect()
        process = psutil.Process()
        with PeakMemory() as memory:  # returns free heap memory to the system
            before, start = process.memory_info().rss, time.perf_counter()
            texts = list(transcribe(contender, recognizer, files, batch_size, Path(work) / "lines"))
            seconds, after = time.perf_counter() - start, process.memory_info().rss
    return {"seconds": seconds, "before": before, "after": after, "peak": memory.peak}, texts


def copies(recordings: Path, count: int, folder: Path) -> float:
    """Fills a folder with `count` copies of recordings; returns the seconds of audio."""
    originals = [Path(entry.location) for entry in AudioDataset([str(recordings)]).entries()]
    seconds = 0.0
    for index in range(count):
        original = originals[index % len(originals)]
        shutil.copyfile(original, folder / f"{index:06}_{original.name}")
        seconds += soundfile.info(original).duration
    return seconds


def main() -> None:
    """Measures all contenders, writes the table and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=ROOT / "examples/whisper-digits")
    parser.add_argument("--recordings", type=Path, default=ROOT / "examples/digits/test")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=ROOT / "build/transcription")
    arguments = parser.parse_args()
    contenders = [(ONE_CALL, 1), *((name, size) for name in (GENERATOR, OURS) for size in arguments.batch_sizes)]
    rows: list[dict[str, Any]] = []
    texts: dict[tuple[str, int], list[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        audio = copies(arguments.recordings, arguments.files, folder)
        print(
            f"{arguments.files} files, {audio:.0f} s of audio, {arguments.device}, {arguments.threads} threads",
            flush=True,
        )
        for repetition in range(arguments.repetitions):
            turn = repetition % len(contenders)
            for contender, batch_size in contenders[turn:] + contenders[:turn]:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
                    figures, found = executor.submit(measure_pass, contender, batch_size, arguments, folder).result()
                texts.setdefault((contender, batch_size), found)
                rows.append({"contender": contender, "batch size": batch_size, "repetition": repetition, **figures})
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_results(rows, arguments.output / "transcription.json", UNITS)
    baseline = 0.0
    for contender, batch_size in contenders:
        passes = [row for row in rows if (row["contender"], row["batch size"]) == (contender, batch_size)]
        seconds, *memory = (
            statistics.median(row[name] for row in passes) for name in ("seconds", "before", "after", "peak")
        )
        baseline = baseline or seconds
        differ = sum(a != b for a, b in zip(texts[contender, batch_size], texts[ONE_CALL, 1], strict=True))
        before, after, peak = (value / 1e6 for value in memory)
        print(
            f"{contender}, batch {batch_size}: {seconds:.1f} s, {arguments.files / seconds:.1f} files/s, "
            f"{audio / seconds:.1f} s of audio/s ({baseline / seconds:.2f} times one call per file), "
            f"resident {before:.0f} MB before, {after:.0f} MB after, peak {peak:.0f} MB; {differ} differ"
        )


if __name__ == "__main__":
    main()
