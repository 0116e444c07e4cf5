"""
Where the time goes: parts of the encoder, and of a transcription, at the shapes and sizes of the published checkpoints.

    python benchmarks/time_breakdown.py [--shapes turbo large-v3] [--sizes fast] [--batch-size 1] [--repetitions 3]
        [--threads 2] [--device cpu] [--dtype float32] [--output build/time-breakdown]

Three encoders with random weights take turns: stock Whisper, LiteWhisper as it is, and in its inference mode. Each part
is timed inside a whole pass, with the device idle at both ends of it, so the parts add up to the pass; medians of
milliseconds per pass. "rest" is what lies between the parts: residual sums, copies, Python. In the inference mode the
first factors of q, k and v are one product, "q, k, v first", and GELU is part of fc1's. Then a transcription of 60
tokens: log-mel features, encoder, the decoder's first step with the keys and values of its cross-attention, its other
steps, and what `generate()` does beside them. Writes time_breakdown.json and time_breakdown.png.
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
    low_rank_encoder,
    now,
    published_ranks,
    transcribe,
    transcriber,
    twin_of,
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
    """Adds up the time of parts; what a part contains counts for the inner part alone."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.open: list[float] = []  # of every part that is open: its start, and the time of the parts in it
        self.undo: list[Callable[[], None]] = []

    def start(self) -> None:
        """Begins a part."""
        self.open += [now(self.device), 0.0]

    def stop(self, name: str) -> None:
        """Ends the part that began last."""
        inner, begun = self.open.pop(), self.open.pop()
        duration = now(self.device) - begun
        self.seconds[name] += duration - inner
        if self.open:
            self.open[-1] += duration

    def module(self, module: nn.Module, name: str | Callable[..., str]) -> None:
        """Times a module, under a name that may depend on its arguments."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.stop(name if isinstance(name, str) else name(*args, **kwargs))

        hooks = [
            module.register_forward_pre_hook(lambda *_: self.start()),
            module.register_forward_hook(stop, with_kwargs=True),
        ]
        self.undo += [hook.remove for hook in hooks]

    def wrapped(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.start()
            try:
                return function(*args, **kwargs)
            finally:
                self.stop(name)

        return timed

    def attributes(self, owner: Any, names: dict[str, str]) -> None:
        """Times what an object calls by attributes, under the given names."""
        for attribute, name in names.items():
            before = vars(owner).get(attribute)
            setattr(owner, attribute, self.wrapped(getattr(owner, attribute), name))
            self.undo.append(
                partial(delattr, owner, attribute) if before is None else partial(setattr, owner, attribute, before)
            )

    def items(self, functions: dict[str, Any]) -> None:
        """Times the functions of a dict, under their keys."""
        self.undo.append(partial(functions.update, dict(functions)))
        functions.update({name: self.wrapped(function, name) for name, function in functions.items()})

    @contextmanager
    def running(self) -> Iterator[None]:
        """While it lasts the parts are timed; afterwards nothing of that is left."""
        try:
            yield
        finally:
            while self.undo:
                self.undo.pop()()


def watch_encoder(watch: Stopwatch, encoder: WhisperEncoder) -> None:
    """Times the parts of an encoder."""
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
        watch.attributes(fast, {"attention": "attention"} | ({"first": "q, k, v first"} if fast.shared else {}))
        watch.items(fast.products)


def encoder_times(encoder: WhisperEncoder, features: torch.Tensor, device: str) -> Times:
    """One pass of the encoder, part by part."""
    watch = Stopwatch(device)
    watch_encoder(watch, encoder)
    with watch.running():
        watch.wrapped(encoder, "rest")(features)
    return dict(watch.seconds)


def transcription_times(encoder: WhisperEncoder, shape: str, audio: list[np.ndarray], device: str) -> Times:
    """One transcription of the audio, part by part."""
    watch = Stopwatch(device)
    extractor = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
    model = transcriber(encoder, SHAPES[shape][3])
    steps = itertools.chain(["decoder, first step"], itertools.repeat("decoder, other steps"))
    watch.module(encoder, "encoder")
    watch.module(model.model.decoder, lambda *_, **__: next(steps))
    watch.module(model.proj_out, "decoder, vocabulary")

    def run() -> None:
        features = watch.wrapped(extractor, "log-mel")(audio, sampling_rate=16_000, return_tensors="pt").input_features
        transcribe(model, encoder, features.to(encoder.device, encoder.dtype))

    with watch.running():
        watch.wrapped(run, "generate() beside them")()
    return dict(watch.seconds)


def medians(repetitions: list[Times]) -> Times:
    """The median of each part, in milliseconds."""
    return {name: 1e3 * float(np.median([times.get(name, 0.0) for times in repetitions])) for name in repetitions[0]}


def table(of_encoders: dict[str, Times], title: str) -> list[dict[str, Any]]:
    """Prints parts and their sum, a column for each encoder; returns the rows."""
    names = list(dict.fromkeys(name for times in of_encoders.values() for name in times))
    rows = [
        {"part": name, **{encoder: times.get(name, 0.0) for encoder, times in of_encoders.items()}} for name in names
    ]
    rows.append({"part": "sum", **{encoder: sum(times.values()) for encoder, times in of_encoders.items()}})
    first, width = max(map(len, names)) + 1, max(map(len, [12 * " ", *of_encoders])) + 2
    print(f"\n{title}, ms\n{'':{first}}" + "".join(f"{encoder:>{width}}" for encoder in of_encoders))
    for row in rows:
        print(f"{row['part']:{first}}" + "".join(f"{row[encoder]:{width}.1f}" for encoder in of_encoders), flush=True)
    return [{"measure": title, **row} for row in rows]


def milliseconds(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The units of what `table` returns."""
    return dict.fromkeys((key for key in rows[0] if key not in ("measure", "part")), "ms")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the parts of each encoder on top of one another, a panel for each measure."""
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
    fast = twin_of(plain).optimize_for_inference(batch_size=arguments.batch_size)
    encoders = {"stock": stock, "plain": plain, "optimized": fast}
    features = torch.randn(arguments.batch_size, stock.num_mel_bins, FRAMES, device=device, dtype=dtype)
    audio = [0.1 * np.random.default_rng(index).standard_normal(480_000) for index in range(arguments.batch_size)]
    measures: dict[str, Callable[[WhisperEncoder], Times]] = {
        "encoder": lambda encoder: encoder_times(encoder, features, device),
        "transcription": lambda encoder: transcription_times(encoder, shape, audio, device),
    }
    rows = []
    for measure, times_of in measures.items():
        repetitions: dict[str, list[Times]] = {name: [] for name in encoders}
        for repetition in tqdm(range(-1, arguments.repetitions), desc=f"{shape} {size}, {measure}"):
            for name, encoder in encoders.items():
                times = times_of(encoder)
                if repetition >= 0:  # the first warms up
                    repetitions[name].append(times)
        title = f"{shape} {size}, batch size {arguments.batch_size}, {measure}"
        rows += table({name: medians(of_encoder) for name, of_encoder in repetitions.items()}, title)
    return rows


def main() -> None:
    """Measures shape by shape, writing table and plot anew after each size."""
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
    transformers.logging.set_verbosity_error()  # it warns at every call that max_new_tokens overrides a default
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for shape, size in itertools.product(arguments.shapes, arguments.sizes):
        rows += breakdown(shape, size, arguments)
        write_results(rows, arguments.output / "time_breakdown.json", milliseconds(rows))
        plot(rows, arguments.output / "time_breakdown.png")


if __name__ == "__main__":
    main()
