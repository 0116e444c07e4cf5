"""Benchmarks a Whisper encoder and its low-rank layers on this machine."""

import platform
from pathlib import Path

import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm
from transformers import WhisperConfig

from ..common.files import check_output_file, temporary_name
from ..common.plots import saved_figure
from ..common.processes import available_device
from ..configuration_lite_whisper import PROJECTIONS, LiteWhisperConfig, projection_shape
from ..kernels_lite_whisper import product_seconds
from ..lowrank.time_cost import DENSE, TimeTable
from ..modeling_lite_whisper import LiteWhisperEncoder
from ..models.folders import base_model_files

RANK_FRACTIONS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""The ranks to measure, as fractions of the full rank."""


@torch.no_grad()
def measure_time_table(config: WhisperConfig, batch_size: int, device: str, dtype: torch.dtype) -> TimeTable:
    """
    Measures a Whisper encoder with and without optimised inference, and its matrix products at several ranks.

    Weights are random, since times do not depend on them; memory use equals the encoder's. Attention is timed at full
    dimension, although at very small ranks it can run faster in the reduced dimension.

    Args:
        config (`WhisperConfig`): configuration of the Whisper.
        batch_size (`int`): windows per batch.
        device (`str`): device to run on.
        dtype (`torch.dtype`): data type to compute in.
    """
    shapes = {projection: projection_shape(config, projection) for projection in PROJECTIONS}
    with torch.device(device):
        encoder = LiteWhisperEncoder(LiteWhisperConfig(**config.to_dict())).eval().to(dtype)
        features = torch.randn(batch_size, config.num_mel_bins, 2 * config.max_source_positions, dtype=dtype)
    x = features.new_empty(batch_size, config.max_source_positions)
    measured = list(dict.fromkeys(shapes.values()))
    products: dict[tuple[int, int], dict[int | str, float]] = {shape: {} for shape in measured}
    full_ranks = {shape: [max(1, round(fraction * min(shape))) for fraction in RANK_FRACTIONS] for shape in measured}
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


def _plot_times(table: TimeTable, path: Path) -> None:
    """Plots the time of the products of each shape against the rank, with a dotted line for the dense product."""
    with saved_figure(path) as (_, axes):
        for index, ((inputs, outputs), times) in enumerate(table.products.items()):
            ranks = sorted(rank for rank in times if isinstance(rank, int))
            color = f"C{index}"
            axes.plot(
                ranks, [times[rank] / 1e3 for rank in ranks], marker="o", color=color, label=f"{inputs} → {outputs}"
            )
            axes.axhline(times[DENSE] / 1e3, color=color, linestyle=":")
        axes.set(xlabel="rank (dotted: dense)", ylabel="milliseconds per window", xlim=(0, None), ylim=(0, None))
        axes.legend()


def profile(
    model: str, output: Path, batch_size: int = 1, device: str | None = None, dtype: str = "float32"
) -> tuple[TimeTable, Path]:
    """
    Benchmarks a Whisper on this machine and writes the table, with a plot next to it.

    Args:
        model (`str`): Hub id or folder of the base model.
        output (`Path`): the JSON file to write.
        batch_size (`int`): windows per batch.
        device (`str`, *optional*): device to run on; default: cuda if there is a GPU.
        dtype (`str`): data type to compute in.

    Returns:
        The table, and the path of the plot.

    Raises:
        InputError: the output is a folder, or the model does not exist.
    """
    check_output_file(output)
    files, _ = base_model_files(model)
    config = WhisperConfig.from_pretrained(files)
    table = measure_time_table(config, batch_size, available_device(device), getattr(torch, dtype))
    table.save(output)
    image = output.with_suffix(".png")
    with temporary_name(image) as temporary:
        _plot_times(table, temporary)
    return table, image
