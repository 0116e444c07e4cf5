"""
Measures the time and word error rate of whole transcriptions in every runtime, with a stock and a compressed Whisper.

    python benchmarks/runtimes.py --stock openai/whisper-base --compressed FOLDER --recordings FOLDER
        [--num-clips 12] [--joined] [--language en] [--runtimes RUNTIME ...] [--repetitions 3] [--threads 2]
        [--max-new-tokens 200] [--output build/runtimes]

Every runtime decodes greedily, one clip at a time, with the language set and without timestamps. With --joined, the
clips form one long recording: faster-whisper ("batched") splits it by its own voice activity detection and decodes
batches of 8, and lite-whisper splits it as `lite-whisper transcribe --backend ctranslate2` does. Exported models are
kept in the output folder. Each pass runs in its own process, which loads the model and transcribes two clips before the
clock starts; the order of the contenders rotates. Seconds are medians over passes.

"times" is the speed-up over faster-whisper with the stock model in the same precision. "wer" is the word error rate in
per cent. "same" counts the transcripts identical to those of transformers with the same model in float32, and "points"
is the difference in word error rate to them, with the 95 % interval from "low" to "high"; both need transformers among
the --runtimes. Recordings need transcripts. Writes passes.json with a row per pass, runtimes.json and runtimes.png.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from quality import compare_words
from record import write_results

from lite_whisper.audio import SAMPLING_RATE, AudioDataset, Clip, Entry
from lite_whisper.common.files import temporary_name
from lite_whisper.evaluation.significance import paired_bootstrap
from lite_whisper.evaluation.word_error_rate import text_normalizer
from lite_whisper.export import ExportSettings, export
from lite_whisper.export.faster_whisper_folder import write_ctranslate2
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.models.folders import load_model

Recognizer = Callable[[np.ndarray], str]
WARM_UP = 2  # clips
MAX_WARM_UP_SECONDS = 60  # of each clip
BATCH_SIZE = 8  # pieces of a long recording
UNITS = {
    **{"repetition": "1", "seconds": "s", "seconds of audio a second": "s/s", "times": "times", "wer": "%"},
    **{"points": "points", "low": "points", "high": "points", "same": "clips"},
}


def load_transformers(model: str, folder: Path, arguments: argparse.Namespace) -> Recognizer:
    """Loads a model into transformers; LiteWhisper models run with optimised inference."""
    import torch

    torch.set_num_threads(arguments.threads)
    loaded, processor = load_model(model)
    loaded.float().eval()
    if isinstance(loaded, LiteWhisperForConditionalGeneration):
        with torch.no_grad():
            loaded.optimize_for_inference()
    options = {"language": arguments.language, "task": "transcribe", "max_new_tokens": arguments.max_new_tokens}

    def recognize(samples: np.ndarray) -> str:
        features = processor.feature_extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        return processor.tokenizer.decode(loaded.generate(features, **options)[0], skip_special_tokens=True)

    return recognize


def onnx_asr_loader(quantization: str | None) -> Callable[..., Recognizer]:
    """Returns a loader for onnx-asr, which runs the whole model in ONNX Runtime."""

    def load(model: str, folder: Path, arguments: argparse.Namespace) -> Recognizer:
        import onnx_asr
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        asr: Any = onnx_asr.load_model(
            "whisper", folder, quantization=quantization, providers=["CPUExecutionProvider"], sess_options=options
        )
        return lambda samples: asr.recognize(samples, sample_rate=SAMPLING_RATE, language=arguments.language)

    return load


def faster_whisper_loader(compute_type: str, torch_encoder: bool, batched: bool = False) -> Callable[..., Recognizer]:
    """Returns a loader for faster-whisper, which runs the encoder in torch or the whole model in CTranslate2."""

    def load(model: str, folder: Path, arguments: argparse.Namespace) -> Recognizer:
        import faster_whisper

        from lite_whisper.integrations.faster_whisper import LiteWhisperModel

        kind = LiteWhisperModel if torch_encoder else faster_whisper.WhisperModel
        recognizer = kind(str(folder), device="cpu", compute_type=compute_type, cpu_threads=arguments.threads)
        options = {
            "language": arguments.language,
            "beam_size": 1,
            "temperature": 0,
            "without_timestamps": batched or not arguments.joined,
            "max_new_tokens": arguments.max_new_tokens,
        }
        if batched:
            recognizer, options["batch_size"] = faster_whisper.BatchedInferencePipeline(recognizer), BATCH_SIZE
        elif arguments.joined:
            options["condition_on_previous_text"] = False
        return lambda samples: "".join(segment.text for segment in recognizer.transcribe(samples, **options)[0])

    return load


def lite_whisper_loader(dtype: str) -> Callable[..., Recognizer]:
    """Returns a loader for the recognizer of `lite-whisper transcribe --backend ctranslate2`."""

    def load(model: str, folder: Path, arguments: argparse.Namespace) -> Recognizer:
        import torch

        from lite_whisper.transcription.recognizers import ComputeSettings, load_recognizer
        from lite_whisper.transcription.transcriber import Transcriber, pipeline_options

        torch.set_num_threads(arguments.threads)
        batch_size = BATCH_SIZE if arguments.joined else 1
        generate_kwargs = {"language": arguments.language, "task": "transcribe", "num_beams": 1}
        options = pipeline_options("none", generate_kwargs)
        compute_settings = ComputeSettings("ctranslate2", dtype, "cpu", batch_size)
        recognizer, _ = load_recognizer(*load_model(model), compute_settings, lambda: None, options)
        transcriber = Transcriber(recognizer, batch_size, options)

        def recognize(samples: np.ndarray) -> str:
            file = io.BytesIO()
            soundfile.write(file, samples, SAMPLING_RATE, format="WAV", subtype="FLOAT")
            entry = Entry("", lambda: io.BytesIO(file.getvalue()), None, "")
            (transcript,) = itertools.chain.from_iterable(transcriber.transcripts(transcriber.read([(0, entry)])))
            return transcript.text

        return recognize

    return load


def openvino_loader(**properties: str) -> Callable[..., Recognizer]:
    """Returns a loader for openvino-genai, which runs the whole model in OpenVINO."""

    def load(model: str, folder: Path, arguments: argparse.Namespace) -> Recognizer:
        import openvino_genai

        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": arguments.threads, **properties}
        recognizer = openvino_genai.WhisperPipeline(str(folder), "CPU", **settings)
        limit = arguments.max_new_tokens
        options = {"language": f"<|{arguments.language}|>", "task": "transcribe", "max_new_tokens": limit}
        return lambda samples: str(recognizer.generate(samples, **options))

    return load


@dataclass(frozen=True)
class Runtime:
    """A runtime: its precision, the function that loads a model, and the export that it needs."""

    precision: str
    load: Callable[[str, Path, argparse.Namespace], Recognizer]
    format: str | None = None
    dtype: str = "float32"

    def prepare(self, model: str, output: Path) -> None:
        """Exports a model to the output folder, unless the folder exists."""
        if self.format is None or output.exists():
            return
        if self.format != "ctranslate2":
            export(ExportSettings(model, output, self.format, (self.dtype,)))
            return
        with temporary_name(output) as folder:
            folder.mkdir()
            write_ctranslate2(*load_model(model), self.dtype, folder)


# The own encoder of faster-whisper has no low-rank layers, so it runs only the stock model. It is the baseline.
OWN = "faster-whisper, own encoder,"
RUNTIMES = {
    f"{OWN} float32": Runtime("float32", faster_whisper_loader("float32", torch_encoder=False), "ctranslate2"),
    f"{OWN} int8": Runtime("int8", faster_whisper_loader("int8", torch_encoder=False), "ctranslate2", "int8"),
    f"{OWN} int8, batched": Runtime(
        "int8", faster_whisper_loader("int8", torch_encoder=False, batched=True), "ctranslate2", "int8"
    ),
    "lite-whisper float32": Runtime("float32", lite_whisper_loader("float32")),
    "lite-whisper int8": Runtime("int8", lite_whisper_loader("int8")),
    "transformers": Runtime("float32", load_transformers),
    "onnx-asr float32": Runtime("float32", onnx_asr_loader(None), "onnx"),
    "onnx-asr int8": Runtime("int8", onnx_asr_loader("quantized"), "onnx", "int8"),
    "faster-whisper float32": Runtime(
        "float32", faster_whisper_loader("float32", torch_encoder=True), "faster-whisper"
    ),
    "faster-whisper int8": Runtime("int8", faster_whisper_loader("int8", torch_encoder=True), "faster-whisper", "int8"),
    # By default, OpenVINO computes in bfloat16 if the processor supports it.
    "openvino-genai float32": Runtime("float32", openvino_loader(INFERENCE_PRECISION_HINT="f32"), "openvino"),
    "openvino-genai int8": Runtime("int8", openvino_loader(), "openvino", "int8"),
}


def transcribe(
    runtime: str, model: str, folder: Path, arguments: argparse.Namespace, clips: Sequence[Clip]
) -> tuple[float, list[str]]:
    """Transcribes the clips after a warm-up; returns the seconds and the texts."""
    recognize = RUNTIMES[runtime].load(model, folder, arguments)
    for clip in clips[:WARM_UP]:
        recognize(clip.samples[: MAX_WARM_UP_SECONDS * SAMPLING_RATE])
    start = time.perf_counter()
    texts = [recognize(clip.samples).strip() for clip in clips]
    return time.perf_counter() - start, texts


def transcribe_in_new_process(*arguments: Any) -> tuple[float, list[str]]:
    """Calls `transcribe` in a new process, so that runtimes share neither memory nor thread pools."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(transcribe, *arguments).result()


def read_clips(arguments: argparse.Namespace) -> list[Clip]:
    """Reads the first clips of the recordings, joined with half a second of silence after each if requested."""
    clips = list(itertools.islice(AudioDataset([str(arguments.recordings)], need_text=True), arguments.num_clips))
    if not arguments.joined:
        return clips
    silence = np.zeros(SAMPLING_RATE // 2, np.float32)
    samples = np.concatenate([part for clip in clips for part in (clip.samples, silence)])
    return [Clip("joined", samples, " ".join(clip.text or "" for clip in clips))]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots the real-time factor of each contender as a bar."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.35 * len(rows) + 1.2), layout="constrained")
    names = [f"{row['runtime']} · {row['model']}" for row in rows]
    bars = axes.barh(names, [row["seconds of audio a second"] for row in rows])
    for bar, row in zip(bars, rows, strict=True):
        bar.set_color("tab:blue" if row["model"] == "stock" else "tab:orange")
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.set_xlabel("real-time factor (seconds of audio per second)")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measures all contenders and writes the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", required=True)
    parser.add_argument("--compressed", required=True)
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--num-clips", type=int, default=12)
    parser.add_argument("--joined", action="store_true", help="join all clips to one long recording")
    parser.add_argument("--language", default="en")
    parser.add_argument("--normalizer", default="english")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), metavar="RUNTIME")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=200, help="not supported by onnx-asr")
    parser.add_argument("--output", type=Path, default=Path("build/runtimes"))
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # inherited by the processes of the passes
    contenders = [
        (runtime, model)
        for runtime in arguments.runtimes
        for model in ("stock", "compressed")
        if model == "stock" or not runtime.startswith(OWN)
    ]
    folders = {}
    for runtime, model in contenders:
        folders[runtime, model] = arguments.output / f"{runtime}, {model}"
        RUNTIMES[runtime].prepare(getattr(arguments, model), folders[runtime, model])
    clips = read_clips(arguments)
    passes: list[dict[str, Any]] = []
    texts: dict[tuple[str, str], list[str]] = {}
    for repetition in range(arguments.repetitions):
        turn = repetition * len(contenders) // arguments.repetitions
        for contender in contenders[turn:] + contenders[:turn]:
            runtime, model = contender
            seconds, texts[contender] = transcribe_in_new_process(
                runtime, getattr(arguments, model), folders[contender], arguments, clips
            )
            passes.append({"runtime": runtime, "model": model, "repetition": repetition, "seconds": seconds})
            print(f"{runtime}, {model}: {seconds:.1f} s", flush=True)
    write_results(passes, arguments.output / "passes.json", UNITS)
    report(contenders, passes, texts, arguments)


def report(
    contenders: list[tuple[str, str]],
    passes: list[dict[str, Any]],
    texts: dict[tuple[str, str], list[str]],
    arguments: argparse.Namespace,
) -> None:
    """Prints, writes and plots the medians of the passes."""
    clips = read_clips(arguments)
    references = [clip.text or "" for clip in clips]
    normalize = text_normalizer(arguments.normalizer, load_model(arguments.stock)[1].tokenizer)
    audio = sum(len(clip.samples) for clip in clips) / SAMPLING_RATE
    print(f"\n{len(clips)} clips, {audio:.0f} s of audio, {arguments.threads} threads")
    medians = {
        contender: statistics.median(row["seconds"] for row in passes if (row["runtime"], row["model"]) == contender)
        for contender in contenders
    }
    rows = []
    for runtime, model in contenders:
        seconds, baseline = medians[runtime, model], medians.get((f"{OWN} {RUNTIMES[runtime].precision}", "stock"))
        found, theirs = texts[runtime, model], texts.get(("transformers", model))
        words = compare_words(references, found, normalize)
        row: dict[str, Any] = {
            "runtime": runtime,
            "model": model,
            "seconds": round(seconds, 2),
            "seconds of audio a second": round(audio / seconds, 2),
            "times": round(baseline / seconds, 2) if baseline else None,
            "wer": round(words.rate, 2),
        }
        if theirs:
            added = paired_bootstrap(words.errors, compare_words(references, theirs, normalize).errors, words.counts)
            row |= {name: round(getattr(added, name), 2) for name in ("points", "low", "high")}
            row["same"] = sum(one == other for one, other in zip(found, theirs, strict=True))
        print(" | ".join(map(str, row.values())))
        rows.append(row)
    write_results(rows, arguments.output / "runtimes.json", UNITS)
    plot(rows, arguments.output / "runtimes.png")


if __name__ == "__main__":
    main()
