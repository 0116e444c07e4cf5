"""
Measures the word error rates of number formats on top of compression, on the miniature in noise.

    python benchmarks/quantization.py [--digits FOLDER] [--ratios 0.2 0.14] [--noise-seeds 5] [--json FILE]

FOLDER holds calibration/ and test/. The miniature is compressed to each ratio and transcribes the test strings in white
noise at 8 dB: in float32, with optimised inference, in bfloat16, and with the encoder's factors and dense projections
in int8 (torchao, activations quantised dynamically). "added" is the increase in word error rate over the same model in
float32, with the 95 % interval of a paired bootstrap over strings. `encoder_speed.py` measures the speed of the
formats.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from digits_quality import noisy_test
from encoder_speed import int8
from finetuning import MINIATURE, ROOT, compress_miniature
from record import write_results
from transformers import WhisperForConditionalGeneration

from lite_whisper.evaluation.significance import paired_bootstrap
from lite_whisper.models.folders import load_model

UNITS = {"ratio": "1", "wer": "%", "added": "points", "low": "points", "high": "points"}


def with_int8_encoder(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Quantises the encoder of a model to int8 in place and returns the model."""
    model.model.encoder = int8(model.get_encoder())
    return model


FORMATS: dict[str, Callable[[WhisperForConditionalGeneration], WhisperForConditionalGeneration]] = {
    "float32": lambda model: model,
    "float32, optimised inference": lambda model: model.optimize_for_inference(),  # type: ignore[operator]
    "bfloat16": lambda model: model.to(torch.bfloat16),  # type: ignore[arg-type]
    "int8": with_int8_encoder,
}


def main() -> None:
    """Prints the results and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, default=ROOT / "examples/digits")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.14])
    parser.add_argument("--noise-seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    arguments = parser.parse_args()

    test = noisy_test(arguments.digits / "test", arguments.noise_seeds, load_model(str(MINIATURE))[1])
    words = test.words
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for ratio in arguments.ratios:
            folder = compress_miniature(arguments.digits, ratio, Path(work) / f"{ratio}")
            reference = None
            for name, change in FORMATS.items():
                errors = test.errors(change(load_model(str(folder))[0].float().eval()))
                reference = errors if reference is None else reference
                added, low, high = paired_bootstrap(errors, reference, words)
                row = {"ratio": ratio, "format": name, "wer": 100 * float(errors.sum()) / words.sum()}
                rows.append({**row, "added": added, "low": low, "high": high})
                print(f"{ratio}  {name:24}{row['wer']:8.2f} %  added {added:.2f} ({low:.2f} to {high:.2f})", flush=True)
    if arguments.json:
        write_results(rows, arguments.json, UNITS)


if __name__ == "__main__":
    main()
