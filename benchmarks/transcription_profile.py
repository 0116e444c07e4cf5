"""
Measures the time of each part of whole transcriptions: features, encoder, decoder, and the rest.

    python benchmarks/transcription_profile.py --stock FOLDER --compressed FOLDER --recordings FOLDER
        [--num-clips 8] [--batch-sizes 1 8] [--language en] [--repetitions 3] [--threads 2]
        [--output build/transcription-profile]

The two backends of `lite-whisper transcribe` process the same clips with greedy decoding, the language set and no
timestamps: transformers in float32 with both models and in int8 with the compressed model, CTranslate2 in float32 with
the compressed model and in int8 with both. Batches hold clips of similar length. Parts are timed inside whole
transcriptions, so they add up; figures are median milliseconds per clip. In CTranslate2, the first step of the decoder
(including keys and values of cross-attention) is measured by a separate call that writes one token, and "other steps"
is the rest of a whole call. The first pass is the warm-up. Writes transcription_profile.json and
transcription_profile.png, with a panel per batch size.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
import transformers
from record import write_results
from time_breakdown import Stopwatch, Times, medians, milliseconds, plot, table
from tqdm import tqdm

from lite_whisper.audio import SAMPLING_RATE, AudioDataset, Clip
from lite_whisper.audio.windows import batches_by_length
from lite_whisper.models.folders import load_model
from lite_whisper.transcription.recognizers import Backend, ComputeSettings, load_recognizer
from lite_whisper.transcription.transcriber import pipeline_options

CONTENDERS: dict[str, tuple[str, Backend, str]] = {  # model, backend, dtype
    "stock": ("stock", "transformers", "float32"),
    "compressed": ("compressed", "transformers", "float32"),
    "int8": ("compressed", "transformers", "int8"),
    "ctranslate2": ("compressed", "ctranslate2", "float32"),
    "ctranslate2 int8": ("compressed", "ctranslate2", "int8"),
    "stock ct2 int8": ("stock", "ctranslate2", "int8"),
}
REST = "rest"


def watch_transformers(watch: Stopwatch, recognizer: Any) -> None:
    """Adds the parts of the transformers pipeline to a stopwatch."""
    model = recognizer.model
    watch.module(model.get_encoder(), "encoder")
    decoder = model.model.decoder
    # The first step processes the whole prompt, later steps a single token.
    watch.module(decoder, lambda *_, **inputs: f"decoder, {_step(inputs['input_ids'])}")
    for layer in decoder.layers:
        for projection in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj):
            watch.module(projection, "decoder, cross-attention k and v")
    watch.module(model.proj_out, "decoder, vocabulary")
    watch_features(watch, recognizer)


def _step(tokens: torch.Tensor) -> str:
    return "first step" if tokens.shape[1] > 1 else "other steps"


def watch_ctranslate2(watch: Stopwatch, recognizer: Any) -> None:
    """Adds the parts of the recognizer with the CTranslate2 decoder to a stopwatch."""
    watch.module(recognizer.model.get_encoder(), "encoder")
    watch.attributes(recognizer, {"_decode": "decoder, other steps"})
    watch_features(watch, recognizer)


def watch_features(watch: Stopwatch, recognizer: Any) -> None:
    """Adds the log-mel features, which transformers computes with torch, to a stopwatch."""
    watch.attributes(recognizer.feature_extractor, {"_torch_extract_fbank_features": "log-mel"})


def first_step(watch: Stopwatch, recognizer: Any, inputs: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """Moves the time that CTranslate2 needs for one token from the other steps to the first."""
    config = recognizer.model.config
    states = recognizer._encode([each["raw"] for each in inputs])
    languages = [options["generate_kwargs"]["language"]] * len(inputs)
    prompts = recognizer._prompts(states, languages, "transcribe", False)
    max_positions, config.max_target_positions = config.max_target_positions, len(prompts[0]) + 1
    try:
        watch.start()
        recognizer._decode(states, prompts, 1)
        watch.stop("decoder, first step")
    finally:
        config.max_target_positions = max_positions
    watch.seconds["decoder, other steps"] -= watch.seconds["decoder, first step"]


def times(recognizer: Any, backend: Backend, clips: list[Clip], batch_size: int, options: dict[str, Any]) -> Times:
    """Transcribes the clips; returns the seconds per clip of each part."""
    total: Times = {}
    for indices in batches_by_length(clips, recognizer.feature_extractor, batch_size):
        inputs = [{"raw": clips[index].samples, "sampling_rate": SAMPLING_RATE} for index in indices]
        watch = Stopwatch("cpu")
        (watch_ctranslate2 if backend == "ctranslate2" else watch_transformers)(watch, recognizer)
        with watch.running():
            # Copies, because the pipeline empties its inputs.
            watch.wrap(recognizer, REST)([dict(each) for each in inputs], batch_size=batch_size, **options)
        if backend == "ctranslate2":
            first_step(watch, recognizer, inputs, options)
        for name, seconds in watch.seconds.items():
            total[name] = total.get(name, 0.0) + seconds / len(clips)
    return total


def main() -> None:
    """Measures all batch sizes; rewrites the table and the plot after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", required=True)
    parser.add_argument("--compressed", required=True)
    parser.add_argument("--recordings", required=True)
    parser.add_argument("--num-clips", type=int, default=8)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--language", default="en")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/transcription-profile"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    arguments.output.mkdir(parents=True, exist_ok=True)
    clips = list(itertools.islice(AudioDataset([arguments.recordings]), arguments.num_clips))
    length = sum(len(clip.samples) for clip in clips) / SAMPLING_RATE / len(clips)
    generate_kwargs = {"language": arguments.language, "task": "transcribe", "num_beams": 1}
    options = pipeline_options("none", generate_kwargs)
    rows: list[dict[str, Any]] = []
    for batch_size in arguments.batch_sizes:
        measured: dict[str, list[Times]] = {name: [] for name in CONTENDERS}
        recognizers = {}
        for name, (model, backend, dtype) in CONTENDERS.items():
            compute_settings = ComputeSettings(backend, dtype, "cpu", batch_size)
            recognizers[name], _ = load_recognizer(
                *load_model(getattr(arguments, model)), compute_settings, lambda: None, options
            )
        for repetition in tqdm(range(-1, arguments.repetitions), desc=f"batch size {batch_size}"):
            for name, (_, backend, _) in CONTENDERS.items():
                parts = times(recognizers[name], backend, clips, batch_size, options)
                if repetition >= 0:  # the first one is the warm-up
                    measured[name].append(parts)
        title = f"{len(clips)} clips of {length:.1f} s on average, batch size {batch_size}"
        rows += table({name: medians(repetitions) for name, repetitions in measured.items()}, title)
        write_results(rows, arguments.output / "transcription_profile.json", milliseconds(rows))
        plot(rows, arguments.output / "transcription_profile.png")


if __name__ == "__main__":
    main()
