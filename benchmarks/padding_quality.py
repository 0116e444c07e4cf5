"""
What a model loses by taking padding for constant: its transcripts with it against those without.

    python benchmarks/padding_quality.py MODEL... --test SET... [--gains 0 -20 6] [--noise 10] [--normalizer english]
        [--batch-size 8] [--csv FILE]

MODEL is a folder of `lite-whisper pad`, SET a folder with transcripts. Every model transcribes every set greedily at
each gain in dB, and with white noise at each --noise in dB, with all positions computed and with constant padding.
"same" is the percentage of transcripts that are identical to the letter, "wer" the word error rate without and with,
"low" and "high" the 95 % interval of their difference (paired bootstrap over the clips). "long" counts outputs of more
than twice the words of the reference, "retried" clips that looked broken and were decoded again with all positions.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality import write_table
from transformers import WhisperProcessor

from lite_whisper.audio import AudioDataset, Clip
from lite_whisper.audio.windows import with_noise
from lite_whisper.evaluation.decoding import Transcripts, transcribe
from lite_whisper.evaluation.significance import paired_bootstrap
from lite_whisper.evaluation.word_error_rate import text_normalizer, word_errors
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.models.folders import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--test", nargs="+", type=Path, required=True, metavar="SET")
    parser.add_argument("--gains", nargs="*", type=float, default=[0.0])
    parser.add_argument("--noise", nargs="*", type=float, default=[])
    parser.add_argument("--normalizer", default="english")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    rows = []
    for folder in arguments.models:
        model, processor = load_model(str(folder))
        assert isinstance(model, LiteWhisperForConditionalGeneration)
        model.float().eval()
        for test in arguments.test:
            clips = list(AudioDataset([str(test)], need_text=True))
            for condition, changed in conditions(clips, arguments.gains, arguments.noise):
                whole, known = (
                    transcribe(model.use_constant_padding(enabled), processor, changed, arguments.batch_size)
                    for enabled in (False, True)
                )
                names = {"model": folder.name, "test": f"{test.parent.name}/{test.name}", "condition": condition}
                rows.append(names | compared(changed, whole, known, processor, arguments.normalizer))
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if arguments.csv:
        write_table(rows, arguments.csv)


def conditions(
    clips: Sequence[Clip], gains: Sequence[float], noises: Sequence[float]
) -> Iterator[tuple[str, list[Clip]]]:
    """The clips at each gain, cut off at full scale, and with noise, each clip with its own."""
    for gain in gains:
        scale = np.float32(10 ** (gain / 20))
        yield f"{gain:+.0f} dB", [Clip(c.name, (c.samples * scale).clip(-1, 1), c.text) for c in clips]
    for noise in noises:
        generator = np.random.default_rng(0)
        noisy = (with_noise(clip.samples, noise, generator).clip(-1, 1) for clip in clips)
        yield (
            f"noise at {noise:.0f} dB",
            [Clip(c.name, samples, c.text) for c, samples in zip(clips, noisy, strict=True)],
        )


def compared(
    clips: Sequence[Clip], whole: Transcripts, known: Transcripts, processor: WhisperProcessor, normalizer: str
) -> dict[str, Any]:
    """A row of the table."""
    normalize = text_normalizer(normalizer, processor.tokenizer)
    references = [normalize(clip.text or "") for clip in clips]
    lengths = np.array([len(reference.split()) for reference in references])
    row: dict[str, Any] = {"clips": len(clips)}
    row["same"] = round(100 * np.mean([one == other for one, other in zip(whole.texts, known.texts, strict=True)]), 1)
    errors, longer = [], []
    for transcripts in (whole, known):
        texts = [normalize(text) for text in transcripts.texts]
        errors.append(np.array([word_errors(r, text) for r, text in zip(references, texts, strict=True)]))
        longer.append(int((np.array([len(text.split()) for text in texts]) > 2 * lengths).sum()))
    rates = [round(100 * of.sum() / lengths.sum(), 2) for of in errors]
    difference = paired_bootstrap(errors[1], errors[0], lengths)
    return row | {
        "wer without": rates[0],
        "wer with": rates[1],
        "low": round(difference.low, 2),
        "high": round(difference.high, 2),
        "long without": longer[0],
        "long with": longer[1],
        "retried": known.retried,
        "times as fast": round(whole.encoder_time.seconds / known.encoder_time.seconds, 2),
    }


if __name__ == "__main__":
    main()
