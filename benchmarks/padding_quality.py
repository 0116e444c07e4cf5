"""
Measures how constant padding changes a model's transcripts.

    python benchmarks/padding_quality.py MODEL... --test SET... [--gains 0 -20 6] [--noise 10] [--normalizer english]
        [--batch-size 8] [--json FILE]

MODEL is a folder written by `lite-whisper precompute-padding`, SET a folder with transcripts. Every model transcribes
every set greedily at each gain in dB and in white noise at each signal-to-noise ratio in dB, with all positions
computed and with constant padding. "same" is the percentage of transcripts that are identical, "wer without" and "wer
with" are the word error rates, and "low" and "high" the 95 % interval of their difference (paired bootstrap over
clips). "long" counts transcripts with more than twice as many words as the reference, "fallbacks" the clips that were
decoded again with all positions because the output looked broken. For comparison, "same louder" is the percentage of
transcripts that stay identical without constant padding if the audio is one decibel louder.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quality import amplified, compare_words, in_noise
from record import write_results
from transformers import WhisperProcessor

from lite_whisper.audio import AudioDataset, Clip
from lite_whisper.evaluation.decoding import Transcripts, transcribe
from lite_whisper.evaluation.significance import paired_bootstrap
from lite_whisper.evaluation.word_error_rate import text_normalizer
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.models.folders import load_model

LOUDER = 1.0  # dB
UNITS = {
    **{"clips": "clips", "same": "%", "same louder": "%", "wer without": "%", "wer with": "%", "low": "points"},
    **{"high": "points", "long without": "clips", "long with": "clips", "fallbacks": "clips", "times as fast": "times"},
}


def main() -> None:
    """Measures all models on all sets and conditions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--test", nargs="+", type=Path, required=True, metavar="SET")
    parser.add_argument("--gains", nargs="*", type=float, default=[0.0])
    parser.add_argument("--noise", nargs="*", type=float, default=[])
    parser.add_argument("--normalizer", default="english")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    arguments = parser.parse_args()
    rows = []
    for folder in arguments.models:
        model, processor = load_model(str(folder))
        assert isinstance(model, LiteWhisperForConditionalGeneration)
        model.float().eval()
        for test in arguments.test:
            clips = list(AudioDataset([str(test)], need_text=True))
            for condition, changed in conditions(clips, arguments.gains, arguments.noise):
                constant, full = (
                    transcribe(model.use_constant_padding(enabled), processor, changed, arguments.batch_size)
                    for enabled in (True, False)
                )
                louder = transcribe(model, processor, amplified(changed, LOUDER), arguments.batch_size)
                names = {"model": folder.name, "test": f"{test.parent.name}/{test.name}", "condition": condition}
                rows.append(names | comparison(changed, full, constant, louder, processor, arguments.normalizer))
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if arguments.json:
        write_results(rows, arguments.json, UNITS)


def conditions(
    clips: Sequence[Clip], gains: Sequence[float], noises: Sequence[float]
) -> Iterator[tuple[str, list[Clip]]]:
    """Yields the clips at each gain and in each noise, with a name for the condition."""
    yield from ((f"{gain:+.0f} dB", amplified(clips, gain)) for gain in gains)
    yield from ((f"noise at {noise:.0f} dB", in_noise(clips, noise)) for noise in noises)


def comparison(
    clips: Sequence[Clip],
    full: Transcripts,
    constant: Transcripts,
    louder: Transcripts,
    processor: WhisperProcessor,
    normalizer: str,
) -> dict[str, Any]:
    """Returns a row of the table."""
    normalize = text_normalizer(normalizer, processor.tokenizer)
    references = [clip.text or "" for clip in clips]
    without, with_ = (compare_words(references, transcripts.texts, normalize) for transcripts in (full, constant))
    difference = paired_bootstrap(with_.errors, without.errors, without.counts)

    def same(texts: Sequence[str]) -> float:
        return round(100 * sum(one == other for one, other in zip(full.texts, texts, strict=True)) / len(clips), 1)

    return {
        "clips": len(clips),
        "same": same(constant.texts),
        "same louder": same(louder.texts),
        "wer without": round(without.rate, 2),
        "wer with": round(with_.rate, 2),
        "low": round(difference.low, 2),
        "high": round(difference.high, 2),
        "long without": without.long,
        "long with": with_.long,
        "fallbacks": constant.fallbacks,
        "times as fast": round(full.encoder_time.seconds / constant.encoder_time.seconds, 2),
    }


if __name__ == "__main__":
    main()
