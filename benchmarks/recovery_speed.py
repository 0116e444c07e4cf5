"""
Measures recovery steps per second at the shapes of the published checkpoints (random weights and training data).

    python benchmarks/recovery_speed.py [--shapes turbo large-v3] [--size fast] [--batch-size 8] [--steps 20]
        [--device cuda] [--dtype bfloat16] [--threads 2]

A step consists of reading distillation data from files, forward and backward pass, and the optimizer step. The first
two steps are not counted. Each example has 100 tokens of text. Memory is the peak on the device or, on the CPU, the
peak resident memory of the process.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from encoder_speed import FRAMES, SHAPES, SIZES, published_ranks, whisper_arguments
from safetensors.torch import save_file
from transformers import TrainerCallback

from lite_whisper import LiteWhisperConfig, LiteWhisperForConditionalGeneration
from lite_whisper.common.memory import PeakMemory
from lite_whisper.common.timing import now
from lite_whisper.training.distillation_data import DistillationDataset, Recovery, compared_layers
from lite_whisper.training.recovery import freeze
from lite_whisper.training.trainer import RecoveryTrainer, training_arguments

TEXT_TOKENS = 100
WARM_UP = 2


class Clock(TrainerCallback):
    """Records when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, *_: Any, **__: Any) -> None:
        """Called by the Trainer after each step."""
        self.times.append(now(args.device))


def random_distillation_data(config: LiteWhisperConfig, count: int, folder: Path) -> DistillationDataset:
    """Writes random examples in the format of `write_distillation_data`."""
    frames = (config.max_source_positions, config.d_model)
    example = {
        "features": torch.randn(1, config.num_mel_bins, FRAMES),
        "layers": torch.randn(1, len(compared_layers(config.encoder_layers)), *frames).half(),
        "states": torch.randn(1, *frames).half(),
        "decoder_states": torch.randn(1, TEXT_TOKENS, config.d_model).half(),
        "tokens": torch.randint(config.vocab_size, (1, TEXT_TOKENS)),
        "predicted": torch.ones(1, TEXT_TOKENS, dtype=torch.bool),
    }
    files = [folder / f"{index}.safetensors" for index in range(count)]
    for file in files:
        save_file(example, file)
    return DistillationDataset(files)


def main() -> None:
    """Measures the given shapes and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["turbo", "large-v3"])
    parser.add_argument("--size", choices=SIZES, default="fast")
    parser.add_argument("--batch-size", type=int, default=Recovery.batch_size)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {arguments.threads} threads"
    for shape in arguments.shapes:
        config = LiteWhisperConfig(low_rank_config=published_ranks(shape, arguments.size), **whisper_arguments(shape))
        torch.manual_seed(0)
        with torch.device(device):
            student = LiteWhisperForConditionalGeneration(config)
        freeze(student)
        settings = Recovery(batch_size=arguments.batch_size)
        clock = Clock()
        with tempfile.TemporaryDirectory() as work, PeakMemory(device) as memory:
            options = training_arguments(settings, arguments.steps, 1e-4, Path(work), arguments.dtype, device)
            options.eval_strategy = options.save_strategy = "no"
            options.load_best_model_at_end = options.eval_on_start = False
            distillation_data = random_distillation_data(config, 2 * arguments.batch_size, Path(work))
            RecoveryTrainer(student, settings, options, train_dataset=distillation_data, callbacks=[clock]).train()
        rate = (len(clock.times) - WARM_UP) / (clock.times[-1] - clock.times[WARM_UP - 1])
        print(
            f"{shape} {arguments.size}, batch {arguments.batch_size}, {arguments.dtype}, {name}: "
            f"{rate:.3f} steps/s, {rate * arguments.batch_size:.2f} windows/s, peak {memory.peak / 1e9:.1f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
