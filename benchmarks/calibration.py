"""
Measures the peak memory of calibration and the time of all factorisations at the shape of large-v3 (random weights).

    python benchmarks/calibration.py [--threads 2] [--batch-size 2]

Calibration uses only the encoder, so the decoder has a single layer. Each number of windows runs in its own process.
"""

import argparse
import multiprocessing
import time

import torch
from encoder_speed import whisper_arguments
from transformers import WhisperConfig, WhisperForConditionalGeneration

from lite_whisper.common.memory import PeakMemory
from lite_whisper.lowrank.compression import compress, encoder_spectra
from lite_whisper.lowrank.moments import EncoderMoments, collect_moments


def calibrate(
    windows: int, batch_size: int, threads: int
) -> tuple[WhisperForConditionalGeneration, EncoderMoments, float, float]:
    """
    Builds a model and calibrates it on random features.

    Returns:
        `tuple`: the model, its moments, the peak memory in bytes, and the seconds that calibration took.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = whisper_arguments("large-v3") | {"decoder_layers": 1}
    model = WhisperForConditionalGeneration(WhisperConfig(**shape)).eval()
    batches = (torch.randn(batch_size, 128, 3000) for _ in range(0, windows, batch_size))
    start = time.perf_counter()
    with PeakMemory() as memory:
        moments = collect_moments(model, batches, windows)
    return model, moments, memory.above_start, time.perf_counter() - start


def measure(windows: int, factorise: bool, arguments: argparse.Namespace) -> None:
    """Calibrates on a number of windows and prints peak memory and times."""
    model, moments, peak, seconds = calibrate(windows, arguments.batch_size, arguments.threads)
    print(f"{windows} windows: peak {peak / 1e9:.2f} GB in addition to the model, {seconds:.0f} s", flush=True)
    if factorise:
        start = time.perf_counter()
        spectra = encoder_spectra(model, moments)
        spectra_done = time.perf_counter()
        compress(model, moments, [dict.fromkeys(layer_spectra, 320) for layer_spectra in spectra])
        done = time.perf_counter()
        count = sum(map(len, spectra))
        print(f"{count} spectra: {spectra_done - start:.0f} s, {count} factorisations: {done - spectra_done:.0f} s")


def main() -> None:
    """Measures calibration on 2 and on 6 windows, and the factorisations once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2)
    arguments = parser.parse_args()
    print(f"shape of large-v3, float32, batch size {arguments.batch_size}, {arguments.threads} threads")
    context = multiprocessing.get_context("spawn")
    for windows, factorise in ((2, False), (6, True)):
        process = context.Process(target=measure, args=(windows, factorise, arguments))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
