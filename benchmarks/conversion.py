"""
Memory and time of a whole conversion at the shape of large-v3 (random weights), stage by stage.

    python benchmarks/conversion.py [--windows 16] [--threads 2] [--batch-size 4] [--ratio 0.6] [--dtype float32]
        [--json FILE]

Random weights would decode random lengths, so every window is given 100 tokens of text. As in a conversion, what a
stage has found is written to a file and mapped into memory from there; such pages are counted, though the system may
drop them.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from calibration import LARGE_V3
from record import write_results
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from lite_whisper.common.memory import PeakMemory
from lite_whisper.lowrank import (
    budget_ranks,
    collect_moments,
    collect_sensitivities,
    compress,
    encoder_spectra,
    load_moments,
    save_moments,
)

TEXT_TOKENS = 100
END_OF_TEXT = 50257
UNITS = {"seconds": "s", "peak": "GB"}


def large_v3(dtype: torch.dtype) -> WhisperForConditionalGeneration:
    """The shape of large-v3, decoder included."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # so that there is never a larger copy
    model = WhisperForConditionalGeneration(WhisperConfig(**{**LARGE_V3, "decoder_layers": 32})).eval()
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


def main() -> None:
    """Prints seconds and resident memory of every stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = f"{arguments.dtype}, {arguments.windows} windows, {arguments.batch_size} at once"
    print(f"shape of large-v3, {setting}, {arguments.threads} threads", flush=True)
    model = large_v3(getattr(torch, arguments.dtype))
    print(f"model: {model.dtype.itemsize * model.num_parameters() / 1e9:.1f} GB", flush=True)
    batches = list(torch.randn(arguments.windows, 128, 3000).split(arguments.batch_size))
    rows: list[dict[str, Any]] = []

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        with PeakMemory() as memory:
            yield
        rows.append({"stage": name, "seconds": time.perf_counter() - start, "peak": memory.peak / 1e9})
        print("{stage}: {seconds:.0f} s, peak {peak:.2f} GB resident in all".format(**rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "moments.safetensors"
        with stage("moments"):
            save_moments(collect_moments(model, batches), kept, {})
        moments, *_ = load_moments(kept)
        with stage("sensitivities"):
            save_moments(moments, kept, {}, collect_sensitivities(model, batches))
        moments, sensitivities, _ = load_moments(kept)
        with stage("spectra and ranks"):
            spectra = encoder_spectra(model, moments, sensitivities)
            dense = sum(spectrum.dense_parameters for of_layer in spectra for spectrum in of_layer.values())
            ranks = budget_ranks(spectra, arguments.ratio * dense)
        with stage("factors"):
            lite = compress(model, moments, ranks, sensitivities)
        with stage("writing"):
            lite.save_pretrained(folder)
    print(f"in all: {sum(row['seconds'] for row in rows):.0f} s")
    if arguments.json:
        write_results(rows, arguments.json, UNITS)


if __name__ == "__main__":
    main()
