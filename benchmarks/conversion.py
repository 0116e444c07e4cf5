"""
Memory and time of a whole conversion at the shapes of published Whispers (random weights), stage by stage.

    python benchmarks/conversion.py [--shapes large-v3 ...] [--windows 16] [--threads 2] [--batch-size 4] [--ratio 0.6]
        [--dtype float32] [--json FILE]

Random weights would decode random lengths, so every window is given 100 tokens of text. As in a conversion, what a
stage has found is written to a file and mapped into memory from there; such pages are counted, though the system may
drop them. "minutes" are those of a conversion with its 64 windows: moments and sensitivities take as long for each.
Each shape runs in a process of its own, whose memory holds nothing else.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from encoder_speed import SHAPES, whisper_arguments
from record import write_results
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from lite_whisper.common.memory import PeakMemory
from lite_whisper.lowrank import (
    budget_ranks,
    collect_moments,
    collect_sensitivities,
    compress,
    encoder_spectra,
    load_calibration,
    save_calibration,
)

TEXT_TOKENS = 100
END_OF_TEXT = 50257
OF_WINDOWS = ("moments", "sensitivities")
STAGES = (*OF_WINDOWS, "spectra and ranks", "factors", "writing")
UNITS = {"windows": "windows", **dict.fromkeys(STAGES, "s"), "peak": "GB", "minutes": "minutes"}
WINDOWS = 64  # that a conversion takes


def random_model(shape: str, dtype: torch.dtype) -> WhisperForConditionalGeneration:
    """A published shape, decoder included."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # so that there is never a larger copy
    model = WhisperForConditionalGeneration(WhisperConfig(**whisper_arguments(shape))).eval()
    torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=50258,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
        is_multilingual=True,
        lang_to_id={"<|en|>": 50259},
        task_to_id={"transcribe": 50360},
        no_timestamps_token_id=50364,
        suppress_tokens=list(range(END_OF_TEXT, model.config.vocab_size)),
        max_new_tokens=TEXT_TOKENS,
    )
    return model


def measure(shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every stage, and the resident memory at the most; prints both as it goes."""
    torch.set_num_threads(arguments.threads)
    setting = f"{arguments.dtype}, {arguments.windows} windows, {arguments.batch_size} at once"
    print(f"shape of {shape}, {setting}, {arguments.threads} threads", flush=True)
    model = random_model(shape, getattr(torch, arguments.dtype))
    print(f"model: {model.dtype.itemsize * model.num_parameters() / 1e9:.1f} GB", flush=True)
    batches = list(torch.randn(arguments.windows, model.config.num_mel_bins, 3000).split(arguments.batch_size))
    row: dict[str, Any] = {"shape": shape, "dtype": arguments.dtype, "windows": arguments.windows, "peak": 0.0}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        with PeakMemory() as memory:
            yield
        row[name] = time.perf_counter() - start
        row["peak"] = max(row["peak"], memory.peak / 1e9)
        print(f"{name}: {row[name]:.0f} s, peak {memory.peak / 1e9:.2f} GB resident in all", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "moments.safetensors"
        with stage("moments"):
            save_calibration(collect_moments(model, batches), kept, {})
        moments, *_ = load_calibration(kept)
        with stage("sensitivities"):
            save_calibration(moments, kept, {}, collect_sensitivities(model, batches))
        moments, sensitivities, _ = load_calibration(kept)
        with stage("spectra and ranks"):
            spectra = encoder_spectra(model, moments, sensitivities)
            dense = sum(spectrum.dense_parameters for of_layer in spectra for spectrum in of_layer.values())
            ranks = budget_ranks(spectra, arguments.ratio * dense)
        with stage("factors"):
            lite = compress(model, moments, ranks, sensitivities)
        with stage("writing"):
            lite.save_pretrained(folder)
    times = {name: WINDOWS / arguments.windows if name in OF_WINDOWS else 1 for name in STAGES}
    row["minutes"] = sum(times[name] * row[name] for name in STAGES) / 60
    print(f"with {WINDOWS} windows: {row['minutes']:.1f} minutes", flush=True)
    return row


def main() -> None:
    """Prints seconds and resident memory of every stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["large-v3"])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    rows = []
    for shape in arguments.shapes:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            rows.append(fresh.submit(measure, shape, arguments).result())
    if arguments.json:
        write_results(rows, arguments.json, UNITS)


if __name__ == "__main__":
    main()
