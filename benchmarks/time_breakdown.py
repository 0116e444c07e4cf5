"""
Measures the time of each part of the encoder, and of a transcription, at published shapes and sizes (random weights).

    python benchmarks/time_breakdown.py [--shapes turbo large-v3] [--sizes fast] [--batch-size 1] [--repetitions 3]
        [--threads 2] [--device cpu] [--dtype float32] [--output build/time-breakdown]

Three encoders run in turn: stock Whisper, LiteWhisper as loaded, and LiteWhisper with optimised inference. Parts are
timed inside a whole pass, with the device idle before and after each part, so they add up to the pass. Figures are
median milliseconds per pass. "rest" covers everything between the parts: residual sums, copies, Python. In optimised
inference, the first factors of q, k and v are one product ("q, k, v first"), and fc1 includes GELU. A transcription of
60 tokens consists of log-mel features, encoder, the decoder's first step (which computes keys and values of
cross-attention), its other steps, and the rest of `generate()`. Writes time_breakdown.json and time_breakdown.png.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from encoder_speed import (
    FRAMES,
    SHAPES,
    SIZES,
    copy_sharing_weights,
    low_rank_encoder,
    now,
    published_ranks,
    transcribe,
    transcriber,
    whisper_arguments,
)
from matplotlib import pyplot
from record import write_results
from torch import nn
from tqdm import tqdm
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lite_whisper.inference_lite_whisper import projections

Times = dict[str, float]
"""Seconds of each part in one pass."""


class Stopwatch:
    """Adds up the time of parts; the time of a nested part counts only for the inner part."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.running_parts: list[float] = []  # for each running part: its start and the time of the parts inside
        self.undo: list[Callable[[], None]] = []

    def start(self) -> None:
        """Starts a part."""
        self.running_parts += [now(self.device), 0.0]

    def stop(self, name: str) -> None:
        """Stops the part that was started last and adds its time under a name."""
        inner, start = self.running_parts.pop(), self.running_parts.pop()
        duration = now(self.device) - start
        self.seconds[name] += duration - inner
        if self.running_parts:
            self.running_parts[-1] += duration

    def module(self, module: nn.Module, name: str | Callable[..., str]) -> None:
        """Times a module, under a name that can depend on its arguments."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.stop(name if isinstance(name, str) else name(*args, **kwargs))

        hooks = [
            module.register_forward_pre_hook(lambda *_: self.start()),
            module.register_forward_hook(stop, with_kwargs=True),
        ]
        self.undo += [hook.remove for hook in hooks]

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Returns the function with its time measured under a name."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.start()
            try:
                return function(*args, **kwargs)
            finally:
                self.stop(name)

        return timed

    def attributes(self, owner: Any, names: dict[str, str]) -> None:
        """Times the functions in attributes of an object, under the given names."""
        for attribute, name in names.items():
            before = vars(owner).get(attribute)
            setattr(owner, attribute, self.wrap(getattr(owner, attribute), name))
            self.undo.append(
                partial(delattr, owner, attribute) if before is None else partial(setattr, owner, attribute, before)
            )

    def items(self, functions: dict[str, Any]) -> None:
        """Times the functions in a dict, under their keys."""
        self.undo.append(partial(functions.update, dict(functions)))
        functions.update({name: self.wrap(function, name) for name, function in functions.items()})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Times the parts while the context is open, then removes all hooks and wrappers."""
        try:
            yield
        finally:
            while self.undo:
                self.undo.pop()()


def watch_encoder(watch: Stopwatch, encoder: WhisperEncoder) -> None:
    """Adds the parts of an encoder to a stopwatch."""
    for convolution in (encoder.conv1, encoder.conv2):
        watch.module(convolution, "convolutions")
    watch.module(encoder.layer_norm, "layer norms")
    layers: Iterable[Any] = encoder.layers
    for layer in layers:
        for norm in (layer.self_attn_layer_norm, layer.final_layer_norm):
            watch.module(norm, "layer norms")
        fast = getattr(layer, "inference", None)
        if fast is None:
            watch.module(layer.self_attn, "attention")
            watch.module(layer.activation_fn, "GELU")
            for name, projection in projections(layer).items():
                watch.module(projection, name)
            continue
        watch.attributes(
            fast, {"attention": "attention"} | ({"shared_product": "q, k, v first"} if fast.shared else {})
        )
        watch.items(fast.products)


def encoder_times(encoder: WhisperEncoder, features: torch.Tensor, device: str) -> Times:
    """Returns the time of each part in one pass of the encoder."""
    watch = Stopwatch(device)
    watch_encoder(watch, encoder)
    with watch.running():
        watch.wrap(encoder, "rest")(features)
    return dict(watch.seconds)


def transcription_times(encoder: WhisperEncoder, shape: str, audio: list[np.ndarray], device: str) -> Times:
    """Returns the time of each part in one transcription of the audio."""
    watch = Stopwatch(device)
    extractor = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
    model = transcriber(encoder, SHAPES[shape][3])
    steps = itertools.chain(["decoder, first step"], itertools.repeat("decoder, other steps"))
    watch.module(encoder, "encoder")
    watch.module(model.model.decoder, lambda *_, **__: next(steps))
    watch.module(model.proj_out, "decoder, vocabulary")

    def run() -> None:
        features = watch.wrap(extractor, "log-mel")(audio, sampling_rate=16_000, return_tensors="pt").input_features
        transcribe(model, encoder, features.to(encoder.device, encoder.dtype))

    with watch.running():
        watch.wrap(run, "rest of generate()")()
    return dict(watch.seconds)


def medians(repetitions: list[Times]) -> Times:
    """Returns the median of each part in milliseconds."""
    return {name: 1e3 * float(np.median([times.get(name, 0.0) for times in repetitions])) for name in repetitions[0]}


def table(encoder_times_by_name: dict[str, Times], title: str) -> list[dict[str, Any]]:
    """Prints the parts and their sum in one column per encoder; returns the rows."""
    names = list(dict.fromkeys(name for times in encoder_times_by_name.values() for name in times))
    rows = [
        {"part": name, **{encoder: times.get(name, 0.0) for encoder, times in encoder_times_by_name.items()}}
        for name in names
    ]
    rows.append({"part": "sum", **{encoder: sum(times.values()) for encoder, times in encoder_times_by_name.items()}})
    first, width = max(map(len, names)) + 1, max(map(len, [12 * " ", *encoder_times_by_name])) + 2
    print(f"\n{title}, ms\n{'':{first}}" + "".join(f"{encoder:>{width}}" for encoder in encoder_times_by_name))
    for row in rows:
        print(
            f"{row['part']:{first}}" + "".join(f"{row[encoder]:{width}.1f}" for encoder in encoder_times_by_name),
            flush=True,
        )
    return [{"measure": title, **row} for row in rows]


def milliseconds(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Returns the units of the rows of `table`."""
    return dict.fromkeys((key for key in rows[0] if key not in ("measure", "part")), "ms")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots the parts of each encoder as a stacked bar, in one panel per measure."""
    titles = list(dict.fromkeys(row["measure"] for row in rows))
    encoders = list(milliseconds(rows))
    figure, grid = pyplot.subplots(len(titles), squeeze=False, figsize=(8, 4 * len(titles)), layout="constrained")
    for title, axes in zip(titles, grid[:, 0], strict=True):
        bottom = np.zeros(len(encoders))
        for index, row in enumerate(row for row in rows if row["measure"] == title and row["part"] != "sum"):
            heights = np.array([row[encoder] for encoder in encoders])
            axes.bar(encoders, heights, bottom=bottom, color=pyplot.get_cmap("tab20")(index), label=row["part"])
            bottom += heights
        axes.set(title=title, ylabel="milliseconds")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


@torch.no_grad()
def breakdown(shape: str, size: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one shape and size; returns the rows of both tables."""
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    plain = low_rank_encoder(shape, published_ranks(shape, size), device, dtype)
    with torch.device(device):
        stock = WhisperEncoder(WhisperConfig(**whisper_arguments(shape))).eval().to(dtype)
    fast = copy_sharing_weights(plain).optimize_for_inference(batch_size=arguments.batch_size)
    encoders = {"stock": stock, "plain": plain, "optimized": fast}
    features = torch.randn(arguments.batch_size, stock.num_mel_bins, FRAMES, device=device, dtype=dtype)
    audio = [0.1 * np.random.default_rng(index).standard_normal(480_000) for index in range(arguments.batch_size)]
    measures: dict[str, Callable[[WhisperEncoder], Times]] = {
        "encoder": lambda encoder: encoder_times(encoder, features, device),
        "transcription": lambda encoder: transcription_times(encoder, shape, audio, device),
    }
    rows = []
    for measure, measure_times in measures.items():
        repetitions: dict[str, list[Times]] = {name: [] for name in encoders}
        for repetition in tqdm(range(-1, arguments.repetitions), desc=f"{shape} {size}, {measure}"):
            for name, encoder in encoders.items():
                times = measure_times(encoder)
                if repetition >= 0:  # the first one is the warm-up
                    repetitions[name].append(times)
        title = f"{shape} {size}, batch size {arguments.batch_size}, {measure}"
        rows += table({name: medians(encoder_repetitions) for name, encoder_repetitions in repetitions.items()}, title)
    return rows


def main() -> None:
    """Measures all shapes and sizes; rewrites the table and the plot after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["turbo", "large-v3"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["fast"])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, default=Path("build/time-breakdown"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()  # otherwise every call warns that max_new_tokens overrides a default
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for shape, size in itertools.product(arguments.shapes, arguments.sizes):
        rows += breakdown(shape, size, arguments)
        write_results(rows, arguments.output / "time_breakdown.json", milliseconds(rows))
        plot(rows, arguments.output / "time_breakdown.png")


if __name__ == "__main__":
    main()
