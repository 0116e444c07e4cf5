"""
Compares fine-tuning of compressed models with fine-tuning of the uncompressed model: same program, steps and seeds.

    python benchmarks/finetuning.py [--digits FOLDER] [--ratios 0.14 0.2] [--seeds 3] [--json FILE] [OPTIONS]

FOLDER holds calibration/, newvoice_train/ and newvoice_test/; the voices of the last two are new to the miniature. The
miniature is compressed to each ratio, and examples/finetune.py trains every model once per seed. OPTIONS of
`Seq2SeqTrainingArguments` override the ones below. "fall" is the decrease in word error rate through fine-tuning in
points, over all seeds; "more" is the difference to the decrease of the uncompressed model, with the 95 % interval of a
paired bootstrap over strings.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from digits_quality import RANK_MULTIPLE, Test
from record import write_results

from lite_whisper.audio import AudioDataset
from lite_whisper.conversion import ConversionSettings, convert
from lite_whisper.evaluation.significance import paired_bootstrap
from lite_whisper.evaluation.word_error_rate import text_normalizer
from lite_whisper.models.folders import load_model

ROOT = Path(__file__).parents[1]
MINIATURE = ROOT / "examples/whisper-digits"
OPTIONS = ["--max_steps", "60", "--learning_rate", "1e-4", "--warmup_steps", "6", "--per_device_train_batch_size", "8"]
UNITS = {
    "ratio": "1",
    "before": "%",
    "after": "%",
    "fall": "points",
    "more": "points",
    "low": "points",
    "high": "points",
}


def compress_miniature(digits: Path, ratio: float, folder: Path) -> Path:
    """Compresses the miniature to a ratio of its encoder's parameters and returns the folder."""
    dataset = [str(digits / "calibration")]
    settings = ConversionSettings(str(MINIATURE), folder, dataset, ratio=ratio, rank_multiple=RANK_MULTIPLE)
    return convert(settings).folder


def fine_tune(model: Path, digits: Path, folder: Path, options: list[str]) -> Path:
    """Fine-tunes a model with `examples/finetune.py` and returns the folder."""
    command = [sys.executable, ROOT / "examples/finetune.py", model, "--output_dir", folder, "--language", "en"]
    command += ["--train", digits / "newvoice_train", "--test", digits / "newvoice_test", "--save_strategy", "no"]
    subprocess.run([str(word) for word in [*command, *options]], check=True)
    return folder


def main() -> None:
    """Prints the results and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, default=ROOT / "examples/digits")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.14, 0.2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    arguments, options = parser.parse_known_args()

    clips = list(AudioDataset([str(arguments.digits / "newvoice_test")], need_text=True))
    processor = load_model(str(MINIATURE))[1]
    test = Test(clips, len(clips), processor, text_normalizer("basic", processor.tokenizer))

    def errors(folder: Path) -> np.ndarray:
        return test.errors(load_model(str(folder))[0].eval())

    words = test.words * arguments.seeds
    rows = []
    base_fall = np.zeros_like(words)
    with tempfile.TemporaryDirectory() as work:
        for ratio in (1.0, *arguments.ratios):
            start = MINIATURE if ratio == 1 else compress_miniature(arguments.digits, ratio, Path(work) / f"{ratio}")
            before, after = errors(start) * arguments.seeds, np.zeros_like(words)
            for seed in range(arguments.seeds):
                folder = Path(work) / f"{ratio}-{seed}"
                after += errors(fine_tune(start, arguments.digits, folder, [*OPTIONS, "--seed", str(seed), *options]))
            if ratio == 1:
                base_fall = before - after
            more, low, high = paired_bootstrap(before - after, base_fall, words)
            row: dict[str, float] = {"ratio": ratio}
            figures = {"before": before.sum(), "after": after.sum(), "fall": (before - after).sum()}
            row |= {name: 100 * float(count) / words.sum() for name, count in figures.items()}
            rows.append({**row, "more": more, "low": low, "high": high})
            print("  ".join(f"{name} {value:.2f}" for name, value in rows[-1].items()), flush=True)
    if arguments.json:
        write_results(rows, arguments.json, UNITS)


if __name__ == "__main__":
    main()
