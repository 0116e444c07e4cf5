"""
Where the time of whole transcriptions goes: features, encoder, the parts of the decoder, and what lies between.

    python benchmarks/transcription_profile.py --stock FOLDER --compressed FOLDER --recordings FOLDER
        [--clips 8] [--batch-sizes 1 8] [--language en] [--repetitions 3] [--threads 2]
        [--output build/transcription-profile]

The same clips go through `lite-whisper transcribe`'s two backends without timestamps, greedily, the language told: each
model by transformers in fp32 and, compressed, in int8, and by CTranslate2 in both. Clips are sorted by length, so
batches are of like length. Each part is timed inside whole transcriptions, so parts add up; medians of milliseconds for
a clip. Of CTranslate2's decoder the first step, with keys and values of the cross-attention, is a call of its own for
one token, and "other steps" are what a whole call takes longer. The first pass warms up. Writes
transcription_profile.json and transcription_profile.png, a panel for each batch size.
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
REST = "between them"


def watch_transformers(watch: Stopwatch, recognizer: Any) -> None:
    """Times the parts of the pipeline of transformers."""
    model = recognizer.model
    watch.module(model.get_encoder(), "encoder")
    decoder = model.model.decoder
    # The first step begins where the encoder ended, so it is the one of several tokens, the prompt.
    watch.module(decoder, lambda *_, **inputs: f"decoder, {_step(inputs['input_ids'])}")
    for layer in decoder.layers:
        for projection in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj):
            watch.module(projection, "decoder, cross-attention k and v")
    watch.module(model.proj_out, "decoder, vocabulary")
    watch_features(watch, recognizer)


def _step(tokens: torch.Tensor) -> str:
    return "first step" if tokens.shape[1] > 1 else "other steps"


def watch_ctranslate2(watch: Stopwatch, recognizer: Any) -> None:
    """Times the parts of the recognizer whose decoder is that of CTranslate2."""
    watch.module(recognizer.model.get_encoder(), "encoder")
    watch.attributes(recognizer, {"_decoded": "decoder, other steps"})
    watch_features(watch, recognizer)


def watch_features(watch: Stopwatch, recognizer: Any) -> None:
    """Times the spectrogram, as transformers computes it where there is torch."""
    watch.attributes(recognizer.feature_extractor, {"_torch_extract_fbank_features": "log-mel"})


def first_step(watch: Stopwatch, recognizer: Any, inputs: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """Moves what CTranslate2 takes for one token from the other steps to the first."""
    config = recognizer.model.config
    states = recognizer._encoded([each["raw"] for each in inputs])
    languages = [options["generate_kwargs"]["language"]] * len(inputs)
    prompts = recognizer._prompts(states, languages, "transcribe", False)
    longest, config.max_target_positions = config.max_target_positions, len(prompts[0]) + 1
    try:
        watch.start()
        recognizer._decoded(states, prompts, 1)
        watch.stop("decoder, first step")
    finally:
        config.max_target_positions = longest
    watch.seconds["decoder, other steps"] -= watch.seconds["decoder, first step"]


def times(recognizer: Any, backend: Backend, clips: list[Clip], batch_size: int, options: dict[str, Any]) -> Times:
    """One transcription of the clips, part by part, in seconds for a clip."""
    total: Times = {}
    for places in batches_by_length(clips, recognizer.feature_extractor, batch_size):
        inputs = [{"raw": clips[place].samples, "sampling_rate": SAMPLING_RATE} for place in places]
        watch = Stopwatch("cpu")
        (watch_ctranslate2 if backend == "ctranslate2" else watch_transformers)(watch, recognizer)
        with watch.running():
            # The pipeline takes its inputs apart.
            watch.wrapped(recognizer, REST)([dict(each) for each in inputs], batch_size=batch_size, **options)
        if backend == "ctranslate2":
            first_step(watch, recognizer, inputs, options)
        for name, seconds in watch.seconds.items():
            total[name] = total.get(name, 0.0) + seconds / len(clips)
    return total


def main() -> None:
    """Measures one batch size after the other, writing table and plot anew after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", required=True)
    parser.add_argument("--compressed", required=True)
    parser.add_argument("--recordings", required=True)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--language", default="en")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/transcription-profile"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    arguments.output.mkdir(parents=True, exist_ok=True)
    clips = list(itertools.islice(AudioDataset([arguments.recordings]), arguments.clips))
    length = sum(len(clip.samples) for clip in clips) / SAMPLING_RATE / len(clips)
    generate_kwargs = {"language": arguments.language, "task": "transcribe", "num_beams": 1}
    options = pipeline_options("none", generate_kwargs)
    rows: list[dict[str, Any]] = []
    for batch_size in arguments.batch_sizes:
        measured: dict[str, list[Times]] = {name: [] for name in CONTENDERS}
        recognizers = {}
        for name, (model, backend, dtype) in CONTENDERS.items():
            computing = ComputeSettings(backend, dtype, "cpu", batch_size)
            recognizers[name], _ = load_recognizer(
                *load_model(getattr(arguments, model)), computing, lambda: None, options
            )
        for repetition in tqdm(range(-1, arguments.repetitions), desc=f"batch size {batch_size}"):
            for name, (_, backend, _) in CONTENDERS.items():
                parts = times(recognizers[name], backend, clips, batch_size, options)
                if repetition >= 0:  # the first warms up
                    measured[name].append(parts)
        title = f"{len(clips)} clips of {length:.1f} s in the mean, batch size {batch_size}"
        rows += table({name: medians(of_one) for name, of_one in measured.items()}, title)
        write_results(rows, arguments.output / "transcription_profile.json", milliseconds(rows))
        plot(rows, arguments.output / "transcription_profile.png")


if __name__ == "__main__":
    main()
