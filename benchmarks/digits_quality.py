"""
Measures the word error rates of the recipes at equal encoder size, on the miniature in noise.

    python benchmarks/digits_quality.py [--digits FOLDER] [--calibration-seeds 3] [--noise-seeds 5] [--recover 10]
        [--json FILE]

The sizes are those that the published thresholds give. All contenders use the same calibration audio (in noise between
0 and 40 dB, unless --calibration-noise says otherwise) and the same test strings in white noise at 8 dB. "added" is the
increase in word error rate over the uncompressed model, with the 95 % interval of a paired bootstrap over strings. For
the first calibration seed, the ingredients of the loss-aware recipe are also measured one by one. With --recover, each
loss-aware model is instead recovered on the calibration audio for the given number of minutes and measured again.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from record import write_results
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lite_whisper.audio import AudioDataset, Clip, feature_batches
from lite_whisper.audio.windows import with_noise
from lite_whisper.cli.options import noise_range
from lite_whisper.conversion.settings import NOISE
from lite_whisper.evaluation.decoding import transcribe
from lite_whisper.evaluation.significance import paired_bootstrap
from lite_whisper.evaluation.word_error_rate import text_normalizer, word_errors
from lite_whisper.lowrank import (
    budget_ranks,
    collect_moments,
    collect_sensitivities,
    compress,
    encoder_spectra,
    threshold_ranks,
)
from lite_whisper.lowrank.allocation import EncoderSpectra, total_cost
from lite_whisper.lowrank.spectrum import Spectrum
from lite_whisper.models.folders import encoder_parameters
from lite_whisper.training.recovery import Recovery, recover

ROOT = Path(__file__).parents[1]
THRESHOLDS = ("0.99:0.999", "0.97:0.99", "0.9:0.95")
RANK_MULTIPLE = 4
NUM_WINDOWS = 80
NOISE_DB = 8.0
UNITS = {"seed": "1", "encoder parameters": "1", "wer": "%", "added": "points", "low": "points", "high": "points"}


@dataclass
class Test:
    """Noisy copies of the test strings, with a method that counts a model's errors."""

    clips: list[Clip]
    strings: int
    processor: WhisperProcessor
    normalize: Callable[[str], str]

    def errors(self, model: WhisperForConditionalGeneration) -> np.ndarray:
        """Returns the word errors per string, summed over its noisy copies, of shape `(strings,)`."""
        texts = transcribe(model, self.processor, self.clips, batch_size=50).texts
        pairs = [
            (self.normalize(clip.text or ""), self.normalize(text))
            for clip, text in zip(self.clips, texts, strict=True)
        ]
        errors = [word_errors(reference, text) for reference, text in pairs]
        return np.array(errors).reshape(-1, self.strings).sum(axis=0)

    @property
    def words(self) -> np.ndarray:
        """Number of words per string, summed over its noisy copies, of shape `(strings,)`."""
        counts = [len(self.normalize(clip.text or "").split()) for clip in self.clips]
        return np.array(counts).reshape(-1, self.strings).sum(axis=0)


def noisy_test(folder: Path, noise_seeds: int, processor: WhisperProcessor) -> Test:
    """Reads the strings in a folder and adds white noise at 8 dB, once per seed."""
    strings = list(AudioDataset([str(folder)], need_text=True))
    noisy = []
    for seed in range(noise_seeds):
        generator = np.random.default_rng(seed)
        noisy += [Clip(c.name, with_noise(c.samples, NOISE_DB, generator), c.text) for c in strings]
    return Test(noisy, len(strings), processor, text_normalizer("basic", processor.tokenizer))


def normalised(spectra: EncoderSpectra) -> EncoderSpectra:
    """Divides the eigenvalues of each projection by their sum."""
    return [
        {
            name: Spectrum(s.eigenvalues / s.eigenvalues.sum(), s.in_features, s.out_features, s.has_bias, s.frames)
            for name, s in layer.items()
        }
        for layer in spectra
    ]


def main() -> None:
    """Prints the results and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--digits", type=Path, default=ROOT / "examples/digits", help="folder with calibration/ and test/"
    )
    parser.add_argument("--calibration-seeds", type=int, default=3)
    parser.add_argument("--noise-seeds", type=int, default=5)
    parser.add_argument("--calibration-noise", type=noise_range, default=NOISE, metavar="LOW:HIGH")
    parser.add_argument("--recover", type=float, metavar="MINUTES", help="measure recovery instead of the ingredients")
    parser.add_argument(
        "--thresholds", nargs="+", default=THRESHOLDS, help="measure at the sizes that these thresholds give"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    arguments = parser.parse_args()

    miniature = ROOT / "examples/whisper-digits"
    model = WhisperForConditionalGeneration.from_pretrained(miniature).eval()
    processor = WhisperProcessor.from_pretrained(miniature)
    test = noisy_test(arguments.digits / "test", arguments.noise_seeds, processor)
    words, base_errors = test.words, test.errors(model)
    base = 100 * base_errors.sum() / words.sum()
    print(f"uncompressed: {base:.2f} % of {words.sum()} words, {test.strings} strings, {arguments.noise_seeds} seeds")

    rows = []

    def report(seed: int, thresholds: str, recipe: str, lite: WhisperForConditionalGeneration) -> None:
        errors = test.errors(lite)
        points, low, high = paired_bootstrap(errors, base_errors, words)
        row = {
            "seed": seed,
            "thresholds": thresholds,
            "recipe": recipe,
            "encoder parameters": encoder_parameters(lite),
            "wer": round(100 * errors.sum() / words.sum(), 2),
            "added": round(points, 2),
            "low": round(low, 2),
            "high": round(high, 2),
        }
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    for seed in range(arguments.calibration_seeds):
        audio = AudioDataset([str(arguments.digits / "calibration")], seed=seed)
        extractor = processor.feature_extractor
        batches = list(feature_batches(audio, extractor, NUM_WINDOWS, 8, arguments.calibration_noise, seed))
        moments = collect_moments(model, batches)
        sensitivities = collect_sensitivities(model, batches, seed)
        variances, losses = encoder_spectra(model, moments), encoder_spectra(model, moments, sensitivities)
        ingredients = not seed and not arguments.recover
        for thresholds in arguments.thresholds:
            attention, mlp = map(float, thresholds.split(":"))
            published = threshold_ranks(variances, (attention, mlp), RANK_MULTIPLE)
            budget = total_cost(variances, published)
            report(seed, thresholds, "published", compress(model, moments, published))
            ranks = budget_ranks(losses, budget, RANK_MULTIPLE)
            lite = compress(model, moments, ranks, sensitivities)
            report(seed, thresholds, "loss-aware", lite)
            if arguments.recover:
                settings = Recovery(minutes=arguments.recover, noise=arguments.calibration_noise, seed=seed)
                with tempfile.TemporaryDirectory() as folder:
                    print(recover(lite, model, extractor, audio, NUM_WINDOWS, Path(folder), settings))
                report(seed, thresholds, "recovered", lite)
            if not ingredients:
                continue
            by_variance = budget_ranks(normalised(variances), budget, RANK_MULTIPLE)
            report(seed, thresholds, "budget on relative variance", compress(model, moments, by_variance))
            report(seed, thresholds, "ranks by loss, factors by variance", compress(model, moments, ranks))
    if arguments.json:
        write_results(rows, arguments.json, UNITS)


if __name__ == "__main__":
    main()
