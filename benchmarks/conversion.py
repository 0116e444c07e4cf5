"""
Measures memory and time of each stage of a conversion at the shapes of published Whisper models (random weights).

    python benchmarks/conversion.py [--shapes large-v3 ...] [--num-windows 16] [--threads 2] [--batch-size 4]
        [--ratio 0.6] [--dtype float32] [--json FILE]

Models with random weights would decode texts of random length, so every window gets 100 tokens of text. As in a real
conversion, the results of each stage are written to a file and memory-mapped from there; mapped pages count towards the
peak, although the system may drop them. "minutes" is the estimated duration with the default of 64 windows: the time
for moments and sensitivities is proportional to the number of windows. Each shape runs in its own process, so the
memory of one does not count towards the other.
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
STAGES_PER_WINDOW = ("moments", "sensitivities")
STAGES = (*STAGES_PER_WINDOW, "spectra and ranks", "factors", "writing")
UNITS = {"windows": "windows", **dict.fromkeys(STAGES, "s"), "peak": "GB", "minutes": "minutes"}
DEFAULT_WINDOWS = 64  # of a conversion


def random_model(shape: str, dtype: torch.dtype) -> WhisperForConditionalGeneration:
    """Returns a model of a published shape with random weights, including the decoder."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # avoids a temporary float32 copy
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
    """Runs all stages; prints and returns the seconds of each and the peak resident memory in GB."""
    torch.set_num_threads(arguments.threads)
    setting = f"{arguments.dtype}, {arguments.num_windows} windows, batch size {arguments.batch_size}"
    print(f"shape of {shape}, {setting}, {arguments.threads} threads", flush=True)
    model = random_model(shape, getattr(torch, arguments.dtype))
    print(f"model: {model.dtype.itemsize * model.num_parameters() / 1e9:.1f} GB", flush=True)
    batches = list(torch.randn(arguments.num_windows, model.config.num_mel_bins, 3000).split(arguments.batch_size))
    row: dict[str, Any] = {"shape": shape, "dtype": arguments.dtype, "windows": arguments.num_windows, "peak": 0.0}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        with PeakMemory() as memory:
            yield
        row[name] = time.perf_counter() - start
        row["peak"] = max(row["peak"], memory.peak / 1e9)
        print(f"{name}: {row[name]:.0f} s, peak {memory.peak / 1e9:.2f} GB resident", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        calibration_file = Path(folder) / "calibration.safetensors"
        with stage("moments"):
            save_calibration(collect_moments(model, batches), calibration_file, {})
        moments, *_ = load_calibration(calibration_file)
        with stage("sensitivities"):
            save_calibration(moments, calibration_file, {}, collect_sensitivities(model, batches))
        moments, sensitivities, _ = load_calibration(calibration_file)
        with stage("spectra and ranks"):
            spectra = encoder_spectra(model, moments, sensitivities)
            dense = sum(spectrum.dense_parameters for layer in spectra for spectrum in layer.values())
            ranks = budget_ranks(spectra, arguments.ratio * dense)
        with stage("factors"):
            lite = compress(model, moments, ranks, sensitivities)
        with stage("writing"):
            lite.save_pretrained(folder)
    factors = {name: DEFAULT_WINDOWS / arguments.num_windows if name in STAGES_PER_WINDOW else 1 for name in STAGES}
    row["minutes"] = sum(factors[name] * row[name] for name in STAGES) / 60
    print(f"with {DEFAULT_WINDOWS} windows: {row['minutes']:.1f} minutes", flush=True)
    return row


def main() -> None:
    """Measures the given shapes one by one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["large-v3"])
    parser.add_argument("--num-windows", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    arguments = parser.parse_args()
    rows = []
    for shape in arguments.shapes:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            rows.append(executor.submit(measure, shape, arguments).result())
    if arguments.json:
        write_results(rows, arguments.json, UNITS)


if __name__ == "__main__":
    main()
