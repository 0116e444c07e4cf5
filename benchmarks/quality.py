"""
Measures the word error rate of compressed Whisper models: the published recipe and this project's, at equal size.

    python benchmarks/quality.py --base-model MODEL --calibration AUDIO... --test SET... --output FOLDER
        [--sizes 0.81 0.65 0.5] [--recipes published loss-aware] [--recover MINUTES [--dtype bfloat16]]
        [--noise DB...] [--rates HZ...] [--gains DB...] [--language CODE] [--normalizer english] [--num-windows N]
        [--batch-size 8]

MODEL is a folder or a Hub id, SET a folder with transcripts; a size is the fraction of the encoder's parameters to
keep. Every set is transcribed greedily, with the language set or detected, unchanged and under each condition: in white
noise at a signal-to-noise ratio, as if recorded at a lower sampling rate, or with a gain. "wer" is the corpus word
error rate, "added" its increase over the uncompressed model, with the 95 % interval of a paired bootstrap over clips
(low, high). "differs" is the word error rate against the transcripts of the uncompressed model, which needs no
references. "long" counts outputs with more than twice as many words as the reference, mostly hallucination loops.

FOLDER keeps the calibration statistics and the transcripts. Run the command again to resume after an interruption, or
to add sizes, sets or conditions: only missing transcripts are computed. The table is FOLDER/quality.json.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soxr
from record import write_results
from transformers import WhisperForConditionalGeneration

from lite_whisper.audio import SAMPLING_RATE, AudioDataset, Clip
from lite_whisper.audio.windows import with_noise
from lite_whisper.common.files import record_origin, write_json
from lite_whisper.conversion.convert import CalibratedModel, load_and_calibrate
from lite_whisper.conversion.recipes import compress_loss_aware, projections_budget
from lite_whisper.conversion.settings import ConversionSettings
from lite_whisper.evaluation.decoding import DecodingOptions, transcribe
from lite_whisper.evaluation.significance import paired_bootstrap
from lite_whisper.evaluation.word_error_rate import text_normalizer, word_errors
from lite_whisper.lowrank import compress, encoder_spectra
from lite_whisper.lowrank.allocation import threshold_ranks_within
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.models.folders import encoder_parameters, load_base_model, load_processor
from lite_whisper.training.recovery import Recovery, recover

SIZES = (0.81, 0.65, 0.5)
RECIPES = ("published", "loss-aware")
ALL_WINDOWS = 10**6  # more than any calibration set has
UNITS = {"size": "1", "wer": "%", "added": "points", "low": "points", "high": "points", "differs": "%", "long": "clips"}


@dataclass(frozen=True)
class Words:
    """
    Word errors of normalised transcripts.

    Args:
        errors (`np.ndarray` of shape `(clips,)`): word errors of each transcript.
        counts (`np.ndarray` of shape `(clips,)`): words in each reference.
        long (`int`): number of transcripts with more than twice as many words as the reference.
    """

    errors: np.ndarray
    counts: np.ndarray
    long: int

    @property
    def rate(self) -> float:
        """The corpus word error rate in per cent."""
        return 100 * self.errors.sum() / self.counts.sum()


def compare_words(references: Sequence[str], texts: Sequence[str], normalize: Callable[[str], str]) -> Words:
    """Compares each text with its reference."""
    pairs = [(normalize(reference), normalize(text)) for reference, text in zip(references, texts, strict=True)]
    counts = np.array([len(reference.split()) for reference, _ in pairs])
    long = sum(len(text.split()) > 2 * len(reference.split()) for reference, text in pairs)
    return Words(np.array([word_errors(*pair) for pair in pairs]), counts, long)


def amplified(clips: Sequence[Clip], gain: float) -> list[Clip]:
    """Amplifies clips by `gain` dB, clipped at full scale."""
    scale = np.float32(10 ** (gain / 20))
    return [Clip(c.name, (c.samples * scale).clip(-1, 1), c.text) for c in clips]


def in_noise(clips: Sequence[Clip], decibels: float) -> list[Clip]:
    """Adds different white noise to each clip, at a signal-to-noise ratio in dB."""
    generator = np.random.default_rng(0)
    return [Clip(c.name, with_noise(c.samples, decibels, generator).clip(-1, 1), c.text) for c in clips]


def recorded_at(clips: Sequence[Clip], rate: float) -> list[Clip]:
    """Limits the bandwidth of clips to that of a lower sampling rate in Hz."""
    return [
        Clip(c.name, soxr.resample(soxr.resample(c.samples, SAMPLING_RATE, rate), rate, SAMPLING_RATE), c.text)
        for c in clips
    ]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", required=True, metavar="MODEL")
    parser.add_argument("--calibration", nargs="+", required=True, metavar="AUDIO")
    parser.add_argument("--test", nargs="+", type=Path, required=True, metavar="SET")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--sizes", nargs="+", type=float, default=SIZES)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument(
        "--recover", type=float, metavar="MINUTES", help="also measure the loss-aware recipe after recovery"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of recovery; bfloat16 uses autocast"
    )
    parser.add_argument("--noise", nargs="*", type=float, default=[], metavar="DB")
    parser.add_argument("--rates", nargs="*", type=float, default=[], metavar="HZ")
    parser.add_argument("--gains", nargs="*", type=float, default=[], metavar="DB")
    parser.add_argument("--language", metavar="CODE", help="language of the test sets (default: detected)")
    parser.add_argument("--normalizer", default="english")
    parser.add_argument(
        "--num-windows", type=int, metavar="N", help="windows of calibration audio (default: as convert)"
    )
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    windows = {} if arguments.num_windows is None else {"num_windows": arguments.num_windows}
    settings = ConversionSettings(arguments.base_model, arguments.output, arguments.calibration, **windows)
    origin = {"model": settings.base_model, "calibration": arguments.calibration, "windows": settings.num_windows}
    record_origin(arguments.output, origin)
    Benchmark(settings, arguments).run()


class Benchmark:
    """Transcribes with each contender, building it only if its transcripts are missing, and writes the table."""

    def __init__(self, settings: ConversionSettings, arguments: argparse.Namespace) -> None:
        self.settings, self.arguments = settings, arguments
        self.bases: dict[str, CalibratedModel] = {}
        self.model, folder = load_base_model(settings.base_model)
        self.processor = load_processor(folder)
        self.normalize = text_normalizer(arguments.normalizer, self.processor.tokenizer)
        self.tests = dict(self.conditions())

    def conditions(self) -> Iterator[tuple[str, list[Clip]]]:
        """Yields the test sets by name, unchanged and under each condition."""
        for folder in self.arguments.test:
            clips, name = list(AudioDataset([str(folder)], need_text=True)), f"{folder.parent.name}-{folder.name}"
            name += f" told {self.arguments.language}" if self.arguments.language else ""
            yield name, clips
            for change, values, unit in (
                (in_noise, self.arguments.noise, "dB noise"),
                (recorded_at, self.arguments.rates, "Hz"),
                (amplified, self.arguments.gains, "dB"),
            ):
                yield from ((f"{name} {value:g} {unit}", change(clips, value)) for value in values)

    def base(self, recipe: str) -> CalibratedModel:
        """Loads and calibrates the base model for a recipe; the published recipe calibrates without noise."""
        if recipe not in self.bases:
            name: Literal["liteasr", "loss-aware"] = "liteasr" if recipe == "published" else "loss-aware"
            settings = replace(
                self.settings, recipe=name, noise=None, calibration_file=self.file(f"{recipe}.safetensors")
            )
            self.bases[recipe] = load_and_calibrate(settings, "cpu", self.settings.output / "unfinished")
        return self.bases[recipe]

    def file(self, name: str) -> Path:
        """Returns the path of a file in the output folder."""
        return self.settings.output / name

    def run(self) -> None:
        """Measures all contenders, prints the rows and writes the table."""
        uncompressed = self.transcripts("uncompressed", lambda: self.model)
        rows = self.rows("uncompressed", 1.0, uncompressed, uncompressed)
        for size in self.arguments.sizes:
            for recipe in self.arguments.recipes:
                make = self.published if recipe == "published" else self.loss_aware
                texts = self.transcripts(f"{recipe} {size:g}", partial(make, size))
                rows += self.rows(recipe, size, texts, uncompressed)
            if self.arguments.recover:
                name = f"recovered {self.arguments.recover:g} minutes"
                texts = self.transcripts(f"{name} {size:g}", partial(self.recovered, size))
                rows += self.rows(name, size, texts, uncompressed)
        write_results(rows, self.file("quality.json"), UNITS)

    def published(self, size: float) -> LiteWhisperForConditionalGeneration:
        """Compresses by the published recipe, with the thresholds that give this size."""
        base = self.base("published")
        spectra = encoder_spectra(base.model, base.calibration.moments)
        budget = projections_budget(base.model, spectra, int(size * encoder_parameters(base.model)))
        return compress(base.model, base.calibration.moments, threshold_ranks_within(spectra, budget))

    def loss_aware(self, size: float) -> LiteWhisperForConditionalGeneration:
        """Compresses by this project's recipe."""
        base = self.base("loss-aware")
        return compress_loss_aware(replace(self.settings, ratio=size), base.model, base.calibration)[0]

    def recovered(self, size: float) -> LiteWhisperForConditionalGeneration:
        """Compresses by this project's recipe and recovers on the calibration audio."""
        lite, base = self.loss_aware(size), self.base("loss-aware")
        settings = Recovery(minutes=self.arguments.recover, noise=self.settings.noise or (), seed=self.settings.seed)
        audio, folder = AudioDataset(self.arguments.calibration), self.file(f"unfinished/recovery-{size:g}")
        extractor, dtype = self.processor.feature_extractor, self.arguments.dtype
        print(recover(lite, base.model, extractor, audio, ALL_WINDOWS, folder, settings, dtype=dtype), flush=True)
        return lite

    def transcripts(self, contender: str, make: Callable[[], WhisperForConditionalGeneration]) -> dict[str, list[str]]:
        """Returns a contender's texts for each test set; builds the contender if any are missing."""
        texts, model, decoding = {}, None, DecodingOptions(language=self.arguments.language)
        for test, clips in self.tests.items():
            path = self.file(f"{contender}, {test}.json")
            if not path.exists():
                model = model or make().float().eval()
                found = transcribe(model, self.processor, clips, self.arguments.batch_size, decoding).texts
                write_json(path, {clip.name: text for clip, text in zip(clips, found, strict=True)})
            kept = json.loads(path.read_text())
            texts[test] = [kept[clip.name] for clip in clips]
        return texts

    def rows(
        self, contender: str, size: float, texts: dict[str, list[str]], uncompressed: dict[str, list[str]]
    ) -> list[dict[str, Any]]:
        """Returns the rows of a contender, one per test set."""
        rows = []
        for test, clips in self.tests.items():
            references = [clip.text or "" for clip in clips]
            ours, theirs = (compare_words(references, found[test], self.normalize) for found in (texts, uncompressed))
            added = paired_bootstrap(ours.errors, theirs.errors, ours.counts)
            rows.append(
                {
                    "recipe": contender,
                    "size": size,
                    "test": test,
                    "wer": round(ours.rate, 2),
                    "added": round(added.points, 2),
                    "low": round(added.low, 2),
                    "high": round(added.high, 2),
                    "differs": round(compare_words(uncompressed[test], texts[test], self.normalize).rate, 2),
                    "long": ours.long,
                }
            )
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
        return rows


if __name__ == "__main__":
    main()
