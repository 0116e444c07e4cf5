"""
Time of the encoder, and of a whole transcription, against the length of the clip.

    python benchmarks/short_audio.py NAME=FOLDER... --audio SET [--lengths 1 2 5 10 20 30] [--clips 3] [--batch-size 1]
        [--repetitions 3] [--threads 2] [--output build/short-audio]

Each FOLDER holds a Whisper, compressed or not, of which the first is the reference. A LiteWhisper runs in the inference
mode, and takes padding for constant where it has learnt to. Where ctranslate2 is installed, which is what
faster-whisper calls, it runs the reference too, in fp32 and in int8. SET is a folder of speech; clips of each length
are cut from it, one after the other. Every repetition runs every contender at every length once, in an order that
rotates; times are medians over repetitions of the seconds for one clip, in fp32 on the CPU, log-mel features left out.
"whole" is the greedy transcription without timestamps, by transformers into as many tokens as the reference writes of
its own accord, so that what a model says does not count. Writes short_audio.json and short_audio.png.
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
"""Features of shape `(batch, mel_bins, mel_frames)`, and how many tokens are written, if that is fixed."""

Run = Callable[[Batch], Any]
"""One pass over a batch."""

Contender = dict[str, Run]
"""How to run the encoder, and the whole."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--audio", required=True)
    parser.add_argument("--lengths", nargs="+", type=float, default=[1, 2, 5, 10, 20, 30])
    parser.add_argument("--clips", type=int, default=3)
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
        write = next(iter(contenders.values()))["whole"]
        batches: dict[float, list[Batch]] = {}
        for length in arguments.lengths:
            parts = cut(speech, length, arguments.clips, arguments.batch_size, processor)
            batches[length] = [(part, text_tokens(write((part, None)), processor) + 1) for part in parts]  # and the end
        contenders |= ctranslate2_contenders(reference, processor, Path(work), arguments.threads)
        rows = measured(contenders, batches, arguments.repetitions)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_results(rows, arguments.output / "short_audio.json", UNITS)
    draw(rows, arguments.output / "short_audio.png")


def cut(
    speech: np.ndarray, length: float, clips: int, batch_size: int, processor: WhisperProcessor
) -> Iterator[torch.Tensor]:
    """Features of so many batches of clips of a length in seconds."""
    samples = round(length * SAMPLING_RATE)
    if clips * batch_size * samples > len(speech):
        raise SystemExit(f"the audio holds less than {clips * batch_size} clips of {length:g} s; give more")
    pieces = speech[: clips * batch_size * samples].reshape(clips, batch_size, samples)
    for batch in pieces:
        yield processor.feature_extractor(list(batch), sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features


def text_tokens(tokens: torch.Tensor, processor: WhisperProcessor) -> int:
    """How many tokens of text the longest of a batch has; all others come after them in the vocabulary."""
    return int((tokens < processor.tokenizer.eos_token_id).sum(dim=1).max())


def transformers_contender(folder: str, batch_size: int) -> Contender:
    """A model folder in transformers."""
    model, _ = load_model(folder)
    model.float().eval()
    if isinstance(model, LiteWhisperForConditionalGeneration):
        model.optimize_for_inference(batch_size=batch_size)
    mask = torch.ones(batch_size, 3000, dtype=torch.long)

    @torch.no_grad()
    def whole(batch: Batch) -> Any:
        options: dict[str, Any] = {"language": "en", "task": "transcribe", "num_beams": 1, "do_sample": False}
        features, tokens = batch
        if tokens is not None:
            options |= {"min_new_tokens": tokens, "max_new_tokens": tokens}
        return model.generate(features, attention_mask=mask, **options)

    return {"encoder": lambda batch: model.get_encoder()(batch[0]), "whole": whole}


def ctranslate2_contenders(folder: str, processor: WhisperProcessor, work: Path, threads: int) -> dict[str, Contender]:
    """The same in ctranslate2, in fp32 and in int8; nothing where that is not installed."""
    try:
        import ctranslate2
    except ImportError:
        print("ctranslate2 is not installed: faster-whisper is left out")
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
def measured(
    contenders: dict[str, Contender], batches: dict[float, list[Batch]], repetitions: int
) -> list[dict[str, Any]]:
    """A row for each contender and length: median seconds for one clip of encoder and whole."""
    seconds: dict[tuple[str, float, str], list[float]] = defaultdict(list)
    names = list(contenders)
    for repetition in tqdm(range(-1, repetitions), "repetitions"):  # the first one warms up
        turn = repetition % len(names)
        for length, of_length in batches.items():
            for name in names[turn:] + names[:turn]:
                for part, run in contenders[name].items():
                    start = time.perf_counter()
                    for batch in of_length:
                        run(batch)
                    spent = (time.perf_counter() - start) / sum(len(features) for features, _ in of_length)
                    if repetition >= 0:
                        seconds[name, length, part].append(spent)
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


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds against length, the encoder beside the whole."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, part in zip(axes, ("encoder", "whole"), strict=True):
        for name in dict.fromkeys(row["contender"] for row in rows):
            points = [(row["length"], row[part]) for row in rows if row["contender"] == name]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xlabel="length of the clip (s)", ylabel="seconds for one clip", ylim=(0, None))
        axis.set_title("encoder" if part == "encoder" else "whole transcription")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
