"""
Measures the time of the encoder, and of whole transcriptions, by clip length.

    python benchmarks/short_audio.py NAME=FOLDER... --audio SET [--lengths 1 2 5 10 20 30] [--num-clips 3]
        [--batch-size 1] [--repetitions 3] [--threads 2] [--output build/short-audio]

Each FOLDER holds a Whisper, compressed or not; the first is the reference. LiteWhisper models run with optimised
inference, and with constant padding if they have padding tables. If CTranslate2 (the engine of faster-whisper) is
installed, it runs the reference as well, in float32 and in int8. SET is a folder of speech, from which consecutive
clips of each length are cut. Each repetition runs every contender at every length once, in rotating order. Times are
median seconds per clip, in float32 on the CPU, without log-mel features. "whole" is the greedy transcription without
timestamps; in transformers, every model writes as many tokens as the reference, so that differences in the text do not
affect the time. Writes short_audio.json and short_audio.png.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from record import write_results
from tqdm import tqdm
from transformers import WhisperProcessor

from lite_whisper.audio import SAMPLING_RATE, AudioDataset
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.models.folders import load_model

PROMPT = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
UNITS = {
    **{"length": "s", "encoder": "s", "encoder, times as fast": "times", "whole": "s", "whole, times as fast": "times"},
    "saved, % of the encoder's": "%",
}

Batch = tuple[torch.Tensor, int | None]
"""Features of shape `(batch, mel_bins, mel_frames)`, and the number of tokens to write, or None for any."""

Run = Callable[[Batch], Any]
"""One pass over a batch."""

Contender = dict[str, Run]
"""Runs the encoder ("encoder") or the whole transcription ("whole")."""


def main() -> None:
    """Measures all contenders at all lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--audio", required=True)
    parser.add_argument("--lengths", nargs="+", type=float, default=[1, 2, 5, 10, 20, 30])
    parser.add_argument("--num-clips", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/short-audio"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folders = dict(name.split("=", 1) for name in arguments.models)
    reference = next(iter(folders.values()))
    _, processor = load_model(reference)
    speech = np.concatenate([clip.samples for clip in AudioDataset([arguments.audio])])
    with tempfile.TemporaryDirectory() as work:
        contenders = {name: transformers_contender(folder, arguments.batch_size) for name, folder in folders.items()}
        transcribe = next(iter(contenders.values()))["whole"]
        batches: dict[float, list[Batch]] = {}
        for length in arguments.lengths:
            parts = cut(speech, length, arguments.num_clips, arguments.batch_size, processor)
            # One more token for the end of the text.
            batches[length] = [(part, text_tokens(transcribe((part, None)), processor) + 1) for part in parts]
        contenders |= ctranslate2_contenders(reference, processor, Path(work), arguments.threads)
        rows = measure(contenders, batches, arguments.repetitions)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_results(rows, arguments.output / "short_audio.json", UNITS)
    plot(rows, arguments.output / "short_audio.png")


def cut(
    speech: np.ndarray, length: float, clips: int, batch_size: int, processor: WhisperProcessor
) -> Iterator[torch.Tensor]:
    """Cuts clips of a length in seconds from the audio; yields the features of `clips` batches."""
    samples = round(length * SAMPLING_RATE)
    if clips * batch_size * samples > len(speech):
        raise SystemExit(f"--audio is too short for {clips * batch_size} clips of {length:g} s; add recordings")
    pieces = speech[: clips * batch_size * samples].reshape(clips, batch_size, samples)
    for batch in pieces:
        yield processor.feature_extractor(list(batch), sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features


def text_tokens(tokens: torch.Tensor, processor: WhisperProcessor) -> int:
    """Counts the text tokens of the longest text in a batch; special tokens have higher ids."""
    return int((tokens < processor.tokenizer.eos_token_id).sum(dim=1).max())


def transformers_contender(folder: str, batch_size: int) -> Contender:
    """Loads a model folder into transformers."""
    model, _ = load_model(folder)
    model.float().eval()
    if isinstance(model, LiteWhisperForConditionalGeneration):
        model.optimize_for_inference(batch_size=batch_size)
    mask = torch.ones(batch_size, 3000, dtype=torch.long)

    @torch.no_grad()
    def transcribe(batch: Batch) -> Any:
        options: dict[str, Any] = {"language": "en", "task": "transcribe", "num_beams": 1, "do_sample": False}
        features, tokens = batch
        if tokens is not None:
            options |= {"min_new_tokens": tokens, "max_new_tokens": tokens}
        return model.generate(features, attention_mask=mask, **options)

    return {"encoder": lambda batch: model.get_encoder()(batch[0]), "whole": transcribe}


def ctranslate2_contenders(folder: str, processor: WhisperProcessor, work: Path, threads: int) -> dict[str, Contender]:
    """Converts a model to CTranslate2, in float32 and int8; returns nothing if CTranslate2 is not installed."""
    try:
        import ctranslate2
    except ImportError:
        print("skipping faster-whisper: ctranslate2 is not installed")
        return {}
    ctranslate2.converters.TransformersConverter(folder).convert(str(work / "ctranslate2"))
    prompt = processor.tokenizer.convert_tokens_to_ids(PROMPT)

    def contender(compute_type: str) -> Contender:
        model = ctranslate2.models.Whisper(
            str(work / "ctranslate2"), compute_type=compute_type, intra_threads=threads, inter_threads=1
        )

        def view(features: torch.Tensor) -> Any:
            return ctranslate2.StorageView.from_array(features.numpy())

        return {
            "encoder": lambda batch: model.encode(view(batch[0])),
            "whole": lambda batch: model.generate(view(batch[0]), [prompt] * len(batch[0]), beam_size=1),
        }

    return {"faster-whisper": contender("float32"), "faster-whisper int8": contender("int8_float32")}


@torch.no_grad()
def measure(
    contenders: dict[str, Contender], batches: dict[float, list[Batch]], repetitions: int
) -> list[dict[str, Any]]:
    """Returns a row per contender and length: median seconds per clip of the encoder and of the whole."""
    seconds: dict[tuple[str, float, str], list[float]] = defaultdict(list)
    names = list(contenders)
    for repetition in tqdm(range(-1, repetitions), "repetitions"):  # the first one is the warm-up
        turn = repetition % len(names)
        for length, length_batches in batches.items():
            for name in names[turn:] + names[:turn]:
                for part, run in contenders[name].items():
                    start = time.perf_counter()
                    for batch in length_batches:
                        run(batch)
                    duration = (time.perf_counter() - start) / sum(len(features) for features, _ in length_batches)
                    if repetition >= 0:
                        seconds[name, length, part].append(duration)
    rows = []
    for name in names:
        for length in batches:
            row: dict[str, Any] = {"contender": name, "length": length}
            for part in ("encoder", "whole"):
                row[part] = round(median(seconds[name, length, part]), 4)
                row[f"{part}, times as fast"] = round(median(seconds[names[0], length, part]) / row[part], 2)
            saved = {
                part: median(seconds[names[0], length, part]) - median(seconds[name, length, part])
                for part in ("encoder", "whole")
            }
            row["saved, % of the encoder's"] = (
                round(100 * saved["whole"] / saved["encoder"]) if name != names[0] else None
            )
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots seconds against clip length, for the encoder and the whole transcription."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, part in zip(axes, ("encoder", "whole"), strict=True):
        for name in dict.fromkeys(row["contender"] for row in rows):
            points = [(row["length"], row[part]) for row in rows if row["contender"] == name]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xlabel="clip length (s)", ylabel="seconds per clip", ylim=(0, None))
        axis.set_title("encoder" if part == "encoder" else "whole transcription")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
