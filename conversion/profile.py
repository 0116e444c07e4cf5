"""The command `lite-whisper profile`: what the encoder of a Whisper and low-rank pairs in it take on this machine."""

import argparse
import logging
import platform
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import WhisperConfig

matplotlib.use("Agg")
from matplotlib import pyplot

from ..arguments import device_name, positive
from ..common.errors import InputError, exit_code
from ..common.files import temporary_name
from ..configuration_lite_whisper import PROJECTIONS, LiteWhisperConfig, projection_shape
from ..inference_lite_whisper import product_seconds
from ..lowrank.time_cost import DENSE, TimeTable
from ..modeling_lite_whisper import LiteWhisperEncoder
from ..models.folders import base_model_files

SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""The ranks that are measured, as shares of the full rank."""


@torch.no_grad()
def measure_time_table(config: WhisperConfig, batch_size: int, device: str, dtype: torch.dtype) -> TimeTable:
    """
    Measures a Whisper's encoder, as it is and in the inference mode, and its products at several ranks.

    The weights are random, since times do not depend on them; the memory is that of the encoder. Attention counts as
    in Whisper, though at very small ranks it may run in the reduced dimension and take less.

    Args:
        config (`WhisperConfig`): of the Whisper.
        batch_size (`int`): windows that run at once.
        device (`str`): to run on.
        dtype (`torch.dtype`): to compute in.
    """
    shapes = {projection: projection_shape(config, projection) for projection in PROJECTIONS}
    with torch.device(device):
        encoder = LiteWhisperEncoder(LiteWhisperConfig(**config.to_dict())).eval().to(dtype)
        features = torch.randn(batch_size, config.num_mel_bins, 2 * config.max_source_positions, dtype=dtype)
    x = features.new_empty(batch_size, config.max_source_positions)
    measured = list(dict.fromkeys(shapes.values()))
    products: dict[tuple[int, int], dict[int | str, float]] = {shape: {} for shape in measured}
    full_ranks = {shape: [max(1, round(share * min(shape))) for share in SHARES] for shape in measured}
    with tqdm(desc="profile", total=2 + sum(1 + len(set(ranks)) for ranks in full_ranks.values())) as progress:

        def microseconds_per_window(seconds: float) -> float:
            progress.update()
            return round(1e6 * seconds / batch_size, 3)

        def encoder_seconds() -> float:
            names = {"encoder": encoder, "features": features}
            timer = Timer("encoder(features)", globals=names, num_threads=torch.get_num_threads())
            return timer.blocked_autorange(min_run_time=2).median

        stock = microseconds_per_window(encoder_seconds())
        encoder.optimize_for_inference()
        optimized = microseconds_per_window(encoder_seconds())
        for (inputs, outputs), ranks in full_ranks.items():
            times = products[inputs, outputs]
            times[DENSE] = microseconds_per_window(product_seconds(x, inputs, outputs))
            for rank in sorted(set(ranks)):
                times[rank] = microseconds_per_window(product_seconds(x, inputs, rank, outputs))
    projections = config.encoder_layers * sum(products[shape][DENSE] for shape in shapes.values())
    machine = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return TimeTable(machine, stock, max(0.0, round(optimized - projections, 3)), products)


def plot_times(table: TimeTable, path: Path) -> None:
    """Draws the time of the products of each size against the rank, and the level of the dense product."""
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for index, ((inputs, outputs), times) in enumerate(table.products.items()):
        ranks = sorted(rank for rank in times if isinstance(rank, int))
        color = f"C{index}"
        axes.plot(ranks, [times[rank] / 1e3 for rank in ranks], marker="o", color=color, label=f"{inputs} → {outputs}")
        axes.axhline(times[DENSE] / 1e3, color=color, linestyle=":")
    axes.set(xlabel="rank (dotted: dense)", ylabel="milliseconds per window", xlim=(0, None), ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)


def run(arguments: argparse.Namespace) -> None:
    """Measures, writes table and plot, and prints the table."""
    if arguments.output.is_dir():
        raise InputError(f"{arguments.output} is a folder; give the name of a JSON file")
    files, _ = base_model_files(arguments.model)
    config = WhisperConfig.from_pretrained(files)
    table = measure_time_table(config, arguments.batch_size, arguments.device, getattr(torch, arguments.dtype))
    table.save(arguments.output)
    image = arguments.output.with_suffix(".png")
    with temporary_name(image) as temporary:
        plot_times(table, temporary)
    print(", ".join(f"{name} {value}" for name, value in table.machine.items()))
    print(f"encoder of stock Whisper {table.stock / 1e3:.2f} ms per window, without its projections ", end="")
    print(f"{table.rest / 1e3:.2f} ms in the inference mode")
    for (inputs, outputs), times in table.products.items():
        print(f"\n{inputs} -> {outputs}")
        for rank, time in times.items():
            print(f"{rank:>8}{time / 1e3:12.3f} ms{time / times[DENSE]:9.1%}")
    print(f"\nwritten to {arguments.output} and {image}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper profile") -> int:
    """Runs `lite-whisper profile`; returns the exit code."""
    logging.basicConfig(format="%(message)s")
    parser = argparse.ArgumentParser(
        prog=program,
        description="Measure what the encoder of a Whisper takes on this machine, dense and at several ranks, for "
        "lite-whisper convert --target-speedup. Run it where the compressed model will run.",
    )
    parser.add_argument("model", help="Hub id or folder of the Whisper that will be compressed")
    parser.add_argument("--output", type=Path, default=Path("profile.json"), help="the table (default profile.json)")
    parser.add_argument("--batch-size", type=positive, default=1, help="windows that will run at once (default 1)")
    parser.add_argument("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    arguments = parser.parse_args(argv)
    with logging_redirect_tqdm():
        return exit_code(lambda: run(arguments))
