"""
The first table of the README: real-time factor and word error rate of whole transcriptions with whisper-base.

    python benchmarks/first_table.py --stock openai/whisper-base --padded FOLDER --compressed FOLDER
        --short FOLDER --long FOLDER --references FOLDER --other-voices FOLDER
        [--clips 16] [--repetitions 3] [--threads 2] [--language en] [--output build/first-table]

`--padded` is the stock model with precomputed padding, `--compressed` a compressed model with precomputed padding.
Every contender transcribes greedily, one clip at a time, with the language set and without timestamps.

Speed: from `--short` and `--long` the `--clips` clips whose durations are closest to 3 s and 12 s. Every pass runs in
a new process, which loads the model and transcribes two clips before the clock starts. The order of the contenders
rotates; figures are medians over `--repetitions`. Nothing else should run on the machine.
Accuracy: word error rate on `--references` (audio with transcripts, like the calibration audio), and on
`--other-voices` (audio unlike it, without transcripts) against the transcripts of transformers with the stock model in
float32; clips on which that model itself falls into a hallucination loop are left out. Each difference to stock
transformers has a 95 % interval by paired bootstrap.

Transcripts for the accuracy figures are kept in the output folder: run the same command again to resume; a folder of
another commit or other models is refused. Writes
first-table.json.
"""

import argparse
import hashlib
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quality import compare_words
from record import commit, write_results
from runtimes import OWN, RUNTIMES, transcribe_in_new_process

from lite_whisper.audio import SAMPLING_RATE, AudioDataset, Clip
from lite_whisper.common.files import record_origin, temporary_name
from lite_whisper.evaluation.significance import paired_bootstrap
from lite_whisper.evaluation.word_error_rate import text_normalizer
from lite_whisper.models.fallback import MAX_COMPRESSION_RATIO, compression_ratio
from lite_whisper.models.folders import fingerprint, load_model, load_processor

DURATIONS = {"short": 3, "long": 12}  # seconds


@dataclass(frozen=True)
class Contender:
    """A row of the table: its label, the runtime (a key of `RUNTIMES`) and the model (an option of the command)."""

    label: str
    runtime: str
    model: str


CONTENDERS = (
    Contender("transformers, stock", "transformers", "stock"),
    Contender("faster-whisper int8, stock", f"{OWN} int8", "stock"),
    Contender("lite-whisper int8, uncompressed", "lite-whisper int8", "padded"),
    Contender("lite-whisper int8, compressed", "lite-whisper int8", "compressed"),
    Contender("OpenVINO int8, uncompressed", "openvino-genai int8", "padded"),
    Contender("OpenVINO int8, compressed", "openvino-genai int8", "compressed"),
)
BASELINE = CONTENDERS[0]
UNITS = {
    **{f"{clips} audio per second": "s of audio per s" for clips in DURATIONS},
    **{f"{clips} seconds": "s" for clips in DURATIONS},
    **dict.fromkeys(("wer", "other voices"), "%"),
    **{f"{rate} {end}": "points" for rate in ("wer", "other voices") for end in ("added", "low", "high")},
}


class Benchmark:
    """The contenders with their exported models and the audio."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.folders = {each: arguments.output / f"{each.runtime}, {each.model}" for each in CONTENDERS}
        for each, folder in self.folders.items():
            RUNTIMES[each.runtime].prepare(getattr(arguments, each.model), folder)

    def transcribe(self, contender: Contender, clips: Sequence[Clip]) -> tuple[float, list[str]]:
        """Seconds and texts of one pass."""
        model = getattr(self.arguments, contender.model)
        return transcribe_in_new_process(contender.runtime, model, self.folders[contender], self.arguments, clips)

    def texts(self, contender: Contender, name: str, clips: Sequence[Clip]) -> list[str]:
        """The transcripts of a set of clips, from the output folder if they are there."""
        clip_names = json.dumps([clip.name for clip in clips])
        digest = hashlib.sha256(f"{contender} {clip_names}".encode()).hexdigest()[:12]
        path = self.arguments.output / f"{name}-{digest}.json"
        if not path.exists():
            _, texts = self.transcribe(contender, clips)
            with temporary_name(path) as temporary:
                temporary.write_text(json.dumps(texts, ensure_ascii=False, indent=1))
        return json.loads(path.read_text())

    def accuracy(self) -> dict[Contender, dict[str, float]]:
        """Word error rates and their differences to the baseline, in per cent and points."""
        normalize = text_normalizer("english", load_processor(Path(self.arguments.stock)).tokenizer)
        sets = {
            "wer": read_clips(self.arguments.references, True),
            "other voices": read_clips(self.arguments.other_voices),
        }
        result: dict[Contender, dict[str, float]] = {contender: {} for contender in CONTENDERS}
        for name, clips in sets.items():
            texts = {each: self.texts(each, name.replace(" ", "-"), clips) for each in CONTENDERS}
            references = [clip.text or "" for clip in clips] if name == "wer" else texts[BASELINE]
            whole = [i for i, text in enumerate(references) if compression_ratio(text) <= MAX_COMPRESSION_RATIO]
            references = [references[i] for i in whole]
            print(f"{name}: {len(clips) - len(whole)} clips left out", flush=True)
            words = {each: compare_words(references, [texts[each][i] for i in whole], normalize) for each in CONTENDERS}
            for each in CONTENDERS:
                added = paired_bootstrap(words[each].errors, words[BASELINE].errors, words[each].counts)
                figures = {"": words[each].rate, " added": added.points, " low": added.low, " high": added.high}
                result[each] |= {name + suffix: round(value, 2) for suffix, value in figures.items()}
                print(f"{each.label}: {name} {words[each].rate:.2f} %", flush=True)
        return result

    def speed(self) -> dict[Contender, dict[str, float]]:
        """Real-time factors at both clip lengths."""
        result: dict[Contender, dict[str, float]] = {contender: {} for contender in CONTENDERS}
        for name, duration in DURATIONS.items():
            clips = closest(read_clips(getattr(self.arguments, name), True), duration, self.arguments.clips)
            audio = sum(len(clip.samples) for clip in clips) / SAMPLING_RATE
            seconds: dict[Contender, list[float]] = {contender: [] for contender in CONTENDERS}
            for repetition in range(self.arguments.repetitions):
                turn = repetition * len(CONTENDERS) // self.arguments.repetitions
                for contender in CONTENDERS[turn:] + CONTENDERS[:turn]:
                    seconds[contender].append(self.transcribe(contender, clips)[0])
                    print(f"{contender.label}: {audio / seconds[contender][-1]:.2f} s of audio per s", flush=True)
            for contender in CONTENDERS:
                median = statistics.median(seconds[contender])
                result[contender] |= {
                    f"{name} audio per second": round(audio / median, 2),
                    f"{name} seconds": round(median, 2),
                }
        return result


def read_clips(source: Path, need_text: bool = False) -> list[Clip]:
    """All clips of a set."""
    return list(AudioDataset([str(source)], need_text=need_text))


def closest(clips: Sequence[Clip], seconds: float, count: int) -> list[Clip]:
    """The clips whose durations are closest to this one."""
    return sorted(clips, key=lambda clip: abs(len(clip.samples) / SAMPLING_RATE - seconds))[:count]


def main() -> None:
    """Measures accuracy, then speed, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for model in ("stock", "padded", "compressed"):
        parser.add_argument(f"--{model}", required=True)
    for source in ("short", "long", "references", "other-voices"):
        parser.add_argument(f"--{source}", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--language", default="en")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("build/first-table"))
    arguments = parser.parse_args()
    arguments.joined = False  # as in runtimes.py: one clip at a time
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    models = {
        model: fingerprint(load_model(getattr(arguments, model))[0]) for model in ("stock", "padded", "compressed")
    }
    record_origin(arguments.output, {"commit": commit(), "language": arguments.language, **models})
    benchmark = Benchmark(arguments)
    accuracy, speed = benchmark.accuracy(), benchmark.speed()
    rows = [{"contender": each.label, **speed[each], **accuracy[each]} for each in CONTENDERS]
    write_results(rows, arguments.output / "first-table.json", UNITS)


if __name__ == "__main__":
    main()
