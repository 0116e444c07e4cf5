"""
Compares the speed of the encoder, and of whole transcriptions: Whisper, its low-rank form and other programs.

    python benchmarks/encoder_speed.py [--shapes turbo] [--sizes acc plain fast] [--contenders published ours ...]
        [--end-to-end turbo] [--batch-sizes 1] [--repetitions 5] [--warm-up 1] [--threads 2]
        [--device cpu] [--dtype float32] [--output build/encoder-speed]

On a GPU: --device cuda --batch-sizes 1 8 32, with --dtype float16 and with --dtype bfloat16.

All weights are random; the ranks reproduce the sizes of the published checkpoints (see `published_ranks`). Each
repetition runs every contender of a shape, size and batch size once, in rotating order; medians and quartiles are over
repetitions. Contenders that are not installed are skipped with a message. "limit" is the time that the encoder's
multiply-adds would take at the rate of a large square matrix product of the same dtype, in the fastest library that
torch has for it; these products run in turn with the contenders. "end to end" is the greedy transcription of each
window into 60 tokens by transformers. Writes encoder_speed.json and encoder_speed.png.
"""

import argparse
import copy
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
import transformers
from matplotlib import pyplot
from record import write_results
from torch import nn
from torch.utils import mkldnn
from tqdm import tqdm
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lite_whisper.configuration_lite_whisper import PROJECTIONS, LiteWhisperConfig, projection_shape
from lite_whisper.lowrank.allocation import Ranks
from lite_whisper.modeling_lite_whisper import LiteWhisperEncoder, LowRankLinear
from lite_whisper.training.linear_pairs import to_linear_pairs

ROOT = Path(__file__).parents[1]
SHAPES = {  # num_mel_bins, d_model, encoder_layers, decoder_layers
    "tiny": (80, 384, 4, 4),
    "base": (80, 512, 6, 6),
    "small": (80, 768, 12, 12),
    "medium": (80, 1024, 24, 24),
    "large-v3": (128, 1280, 32, 32),
    "turbo": (128, 1280, 32, 4),
}
SIZES = ("acc", "plain", "fast")
RANK_MULTIPLE = 16
FRAMES = 3000
NEW_TOKENS = 60
END_OF_TEXT = 50257
UNITS = {
    **{"threads": "1", "repetitions": "1", "batch": "windows", "encoder_parameters": "1", "relative_to_stock": "1"},
    **dict.fromkeys(("median_ms", "lower_quartile_ms", "upper_quartile_ms"), "ms"),
}

Shares = list[dict[str, float]]
"""One dict per encoder layer that maps projections to rank / d_model."""

Run = Callable[[], Any]
"""One pass over a given batch."""

Prepare = Callable[[torch.Tensor], Run]
"""Converts features of shape `(batch, num_mel_bins, 3000)` to a contender's input and returns the pass over them."""

Builder = Callable[[WhisperEncoder, Path], nn.Module | Prepare]
"""Builds a contender from an encoder and a folder for its files. Contenders that are modules also run end to end."""


class UnavailableError(Exception):
    """Raised if a contender cannot run on this machine."""


def whisper_arguments(shape: str) -> dict[str, Any]:
    """Returns the arguments of the `WhisperConfig` of a published shape."""
    num_mel_bins, d_model, encoder_layers, decoder_layers = SHAPES[shape]
    return {
        "num_mel_bins": num_mel_bins,
        "d_model": d_model,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "encoder_attention_heads": d_model // 64,
        "decoder_attention_heads": d_model // 64,
        "encoder_ffn_dim": 4 * d_model,
        "decoder_ffn_dim": 4 * d_model,
        "vocab_size": 51866 if num_mel_bins == 128 else 51865,
        "attn_implementation": "sdpa",
    }


def projection_weights(config: WhisperConfig, ranks: Ranks) -> int:
    """Counts the weights of all encoder projections; each is one multiply-add per position."""
    total = 0
    for layer_ranks in ranks:
        for projection in PROJECTIONS:
            in_features, out_features = projection_shape(config, projection)
            rank = layer_ranks.get(projection)
            total += in_features * out_features if rank is None else rank * (in_features + out_features)
    return total


def encoder_parameters(config: WhisperConfig, ranks: Ranks) -> int:
    """Counts the parameters of an encoder without the fixed position embeddings, as the published sizes do."""
    width = config.d_model
    convolutions = 3 * width * (config.num_mel_bins + width) + 2 * width
    vectors = (
        len(ranks) * (8 * width + config.encoder_ffn_dim) + 2 * width
    )  # layer norms, and all biases except that of k_proj
    key_biases = width * sum("k_proj" in layer for layer in ranks)  # only a low-rank k_proj has a bias
    return convolutions + vectors + key_biases + projection_weights(config, ranks)


def encoder_multiply_adds(config: WhisperConfig, ranks: Ranks) -> int:
    """Counts the multiply-adds for one window: convolutions, projections, attention scores and weighted values."""
    width, positions = config.d_model, config.max_source_positions
    convolutions = 3 * width * (FRAMES * config.num_mel_bins + positions * width)
    attention = 2 * positions**2 * width * len(ranks)
    return convolutions + attention + positions * projection_weights(config, ranks)


def to_ranks(config: WhisperConfig, shares: Shares) -> Ranks:
    """Converts shares to ranks that are multiples of 16; a projection stays dense if a pair would be no smaller."""
    ranks: Ranks = [{} for _ in shares]
    for layer, layer_shares in enumerate(shares):
        for projection, share in layer_shares.items():
            in_features, out_features = projection_shape(config, projection)
            rank = RANK_MULTIPLE * max(1, round(share * config.d_model / RANK_MULTIPLE))
            if rank * (in_features + out_features) < in_features * out_features:
                ranks[layer][projection] = rank
    return ranks


def fit(shares: Callable[[float], Shares], config: WhisperConfig, parameters: float) -> Shares:
    """
    Finds the shares whose ranks give an encoder with the requested number of parameters, by bisection.

    Args:
        shares (`Callable[[float], Shares]`): shares as a function of a number; they grow with it.
        config (`WhisperConfig`): shape of the encoder.
        parameters (`float`): number of parameters to reach.

    Raises:
        ValueError: the closest number of parameters is off by more than 0.5 %.
    """
    low, high = 0.0, 64.0
    for _ in range(50):
        middle = (low + high) / 2
        too_small = encoder_parameters(config, to_ranks(config, shares(middle))) < parameters
        low, high = (middle, high) if too_small else (low, middle)
    reached = encoder_parameters(config, to_ranks(config, shares(high)))
    if abs(reached / parameters - 1) > 0.005:
        raise ValueError(f"no ranks give {parameters / 1e6:.2f} M parameters; the closest give {reached / 1e6:.2f} M")
    return shares(high)


def published_ranks(shape: str, size: str) -> Ranks:
    """
    Returns ranks that give an encoder the size of a published checkpoint; its real ranks are not all known.

    The ranks of the first layers of two checkpoints are known. In later layers, the rank of each projection grows
    linearly from its mean over the last three known layers, at the same relative rate for all projections, chosen so
    that the total matches the published size. The other checkpoints take these ranks (turbo from turbo, the others from
    large-v3) as shares of d_model at the same relative depth, times a factor that gives the published size.

    Args:
        shape (`str`): one of `SHAPES`.
        size (`str`): one of `SIZES`.

    Raises:
        ValueError: the size is off by more than 0.5 %.
    """
    facts = json.loads((ROOT / "tests/data/published_checkpoints.json").read_text())
    known_ranks = {key.split()[0]: ranks for key, ranks in facts["known_ranks"].items()}
    reference = next(name for name in known_ranks if ("turbo" in name) == (shape == "turbo"))
    checkpoint = "lite-whisper-" + shape.replace("turbo", "large-v3-turbo") + ("" if size == "plain" else f"-{size}")
    config, large = (WhisperConfig(**whisper_arguments(each)) for each in (shape, "large-v3"))
    known = [{name: rank / large.d_model for name, rank in ranks.items()} for ranks in known_ranks[reference]]
    level = {projection: sum(layer[projection] for layer in known[-3:]) / 3 for projection in PROJECTIONS}

    def continued(growth: float) -> Shares:
        steps = range(1, large.encoder_layers - len(known) + 1)
        return known + [{name: share * (1 + growth * step) for name, share in level.items()} for step in steps]

    shares = fit(continued, large, 1e6 * facts["checkpoints"][reference]["encoder"])
    if checkpoint == reference:
        return to_ranks(large, shares)
    spacing = (len(shares) - 1) / (config.encoder_layers - 1)
    template = [shares[round(layer * spacing)] for layer in range(config.encoder_layers)]

    def scaled(factor: float) -> Shares:
        return [{name: factor * share for name, share in layer.items()} for layer in template]

    return to_ranks(config, fit(scaled, config, 1e6 * facts["checkpoints"][checkpoint]["encoder"]))


class PublishedPair(nn.Module):
    """
    The published form of the low-rank layer: y = (x weight1) weight2 + bias in three operations.

    It shares the tensors of the `LowRankLinear` it is built from.
    """

    def __init__(self, pair: LowRankLinear) -> None:
        super().__init__()
        self.weight1, self.weight2, self.bias = pair.weight1, pair.weight2, pair.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x of shape `(..., in_features)` to y of shape `(..., out_features)`."""
        return (x @ self.weight1) @ self.weight2 + self.bias


def copy_sharing_weights(encoder: WhisperEncoder) -> Any:
    """Copies an encoder; the copy shares all parameters."""
    return copy.deepcopy(encoder, {id(parameter): parameter for parameter in encoder.parameters()})


def published_form(encoder: WhisperEncoder) -> nn.Module:
    """Copies an encoder and replaces each `LowRankLinear` by a `PublishedPair`; the copy shares all parameters."""
    published = copy_sharing_weights(encoder)
    for parent in list(published.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(parent, name, PublishedPair(child))
    return published


def compiled(encoder: nn.Module) -> nn.Module:
    """Compiles an encoder with torch.compile, once per batch size."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UnavailableError(f"torch.compile needs a C++ compiler, but {compiler} is not installed")
    torch._dynamo.config.recompile_limit = 64  # the limit on graphs of all encoders and batch sizes together
    return torch.compile(encoder, dynamic=False, fullgraph=True)  # type: ignore[return-value]


def openai_whisper(encoder: WhisperEncoder, folder: Path) -> Prepare:
    """Builds an encoder of openai-whisper with the same shape."""
    from whisper.model import AudioEncoder

    config = encoder.config
    dimensions = (config.max_source_positions, config.d_model, config.encoder_attention_heads, config.encoder_layers)
    openai = AudioEncoder(config.num_mel_bins, *dimensions).to(encoder.device, encoder.dtype).eval()
    return lambda features: partial(openai, features)


def faster_whisper(encoder: WhisperEncoder, folder: Path, int8: bool = False) -> Prepare:
    """Converts the encoder to CTranslate2, the engine of faster-whisper; features come from the CPU in float32."""
    import ctranslate2

    device, dtype = encoder.device, str(encoder.dtype).removeprefix("torch.")
    compute_type = f"int8_{dtype}" if int8 else dtype
    if compute_type not in ctranslate2.get_supported_compute_types(device.type, device.index or 0):
        raise UnavailableError(f"ctranslate2 does not support {compute_type} on {device.type}")
    converted = folder / "ctranslate2"
    if not converted.exists():
        with_decoder(encoder, decoder_layers=1).save_pretrained(folder / "transformers")
        WhisperTokenizer.from_pretrained(ROOT / "examples/whisper-digits").save_pretrained(folder / "transformers")
        ctranslate2.converters.TransformersConverter(str(folder / "transformers")).convert(str(converted))
    model = ctranslate2.models.Whisper(
        str(converted),
        device=device.type,
        device_index=device.index or 0,
        compute_type=compute_type,
        intra_threads=torch.get_num_threads(),
    )

    def prepare(features: torch.Tensor) -> Run:
        return partial(model.encode, ctranslate2.StorageView.from_array(features.float().cpu().numpy()))

    return prepare


def onnx_runtime(encoder: WhisperEncoder, folder: Path) -> Prepare:
    """Exports the encoder to ONNX for ONNX Runtime."""
    import onnx  # noqa: F401  (the export imports it, and onnxscript)
    import onnxruntime
    import onnxscript  # noqa: F401

    device = encoder.device
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device.type]
    if provider not in onnxruntime.get_available_providers():
        raise UnavailableError(f"onnxruntime was built without {provider}")
    if encoder.dtype == torch.bfloat16:
        raise UnavailableError("ONNX Runtime takes features as NumPy arrays, which do not support bfloat16")
    path = Path(tempfile.mkdtemp(dir=folder)) / "encoder.onnx"
    example = torch.zeros(2, encoder.config.num_mel_bins, FRAMES, device=device, dtype=encoder.dtype)
    torch.onnx.export(encoder, (example,), path, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=[provider])

    def prepare(features: torch.Tensor) -> Run:
        binding = session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(features.cpu().numpy(), device.type, device.index or 0)
        binding.bind_ortvalue_input(session.get_inputs()[0].name, value)
        binding.bind_output(session.get_outputs()[0].name, device.type, device.index or 0)
        return partial(session.run_with_iobinding, binding)

    return prepare


DENSE: dict[str, Builder] = {
    "stock": lambda encoder, folder: encoder,
    "stock-compiled": lambda encoder, folder: compiled(encoder),
    "openai-whisper": openai_whisper,
    "faster-whisper": faster_whisper,
    "faster-whisper-int8": partial(faster_whisper, int8=True),
    "onnxruntime": onnx_runtime,
}


def int8(encoder: WhisperEncoder) -> nn.Module:
    """Quantises an encoder's factors and dense projections to int8, with dynamically quantised activations."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantized = copy.deepcopy(encoder)
    to_linear_pairs(quantized)
    quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
    return quantized


LOW_RANK: dict[str, Builder] = {
    "published": lambda encoder, folder: published_form(encoder),
    "published-compiled": lambda encoder, folder: compiled(published_form(encoder)),
    "ours": lambda encoder, folder: encoder,
    "ours-compiled": lambda encoder, folder: compiled(encoder),
    "ours-optimized": lambda encoder, folder: copy_sharing_weights(
        encoder
    ),  # `benchmark` optimises it for each batch size
    "ours-optimized-int8": lambda encoder, folder: copy_sharing_weights(encoder),
    "ours-int8": lambda encoder, folder: int8(encoder),
    "ours-int8-compiled": lambda encoder, folder: compiled(int8(encoder)),
    "ours-onnxruntime": onnx_runtime,
}


def build(
    builders: dict[str, Builder], chosen: Collection[str], encoder: WhisperEncoder, folder: Path
) -> dict[str, nn.Module | Prepare]:
    """Builds stock and the chosen contenders; skips those that are not installed with a message on stderr."""
    contenders = {}
    for name in [name for name in builders if name in ("stock", *chosen)]:
        try:
            contenders[name] = builders[name](encoder, folder)
        except (ImportError, UnavailableError) as reason:
            print(f"skipping {name}: {reason}", file=sys.stderr)
    return contenders


def low_rank_encoder(shape: str, ranks: Ranks, device: str, dtype: torch.dtype) -> LiteWhisperEncoder:
    """
    Returns LiteWhisper's encoder with random weights, after comparing it with the published form in float32.

    Raises:
        RuntimeError: the outputs differ by more than rounding errors.
    """
    config = LiteWhisperConfig(low_rank_config=ranks, **whisper_arguments(shape))
    with torch.device(device):
        encoder = LiteWhisperEncoder(config).eval()
        features = torch.randn(1, config.num_mel_bins, FRAMES)
    for module in encoder.modules():
        if isinstance(module, LowRankLinear):
            nn.init.normal_(module.bias, std=config.init_std)
    ours, published = encoder(features)[0], published_form(encoder)(features)[0]
    difference = ((ours - published).abs().max() / published.abs().max()).item()
    if not difference < 1e-4:
        raise RuntimeError(
            f"at shape {shape}, the encoder differs from the published form by {difference:.1e} of the largest output; "
            "expected less than 1e-4"
        )
    return encoder.to(dtype)


def with_decoder(encoder: WhisperEncoder, decoder_layers: int) -> WhisperForConditionalGeneration:
    """Combines an encoder, without copying it, with a decoder with random weights."""
    config = copy.deepcopy(encoder.config)
    config.encoder_layers, config.decoder_layers = 0, decoder_layers
    with torch.device(encoder.device):
        model = WhisperForConditionalGeneration(config).eval().to(dtype=encoder.dtype)  # type: ignore[call-arg]
    config.encoder_layers, model.model.encoder = len(encoder.layers), encoder
    return model


def transcriber(encoder: WhisperEncoder, decoder_layers: int) -> WhisperForConditionalGeneration:
    """Returns a Whisper with this encoder and a random decoder that writes 60 tokens per window, greedily."""
    model = with_decoder(encoder, decoder_layers)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=50258,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
    )
    return model


def transcribe(model: WhisperForConditionalGeneration, encoder: nn.Module, features: torch.Tensor) -> None:
    """Transcribes features after replacing the model's encoder."""
    model.model.encoder = encoder
    tokens = model.generate(features)
    if tokens.shape[1] != NEW_TOKENS:
        raise RuntimeError(f"transformers generated {tokens.shape[1]} tokens instead of {NEW_TOKENS}")


def square_products(side: int, device: torch.device, dtype: torch.dtype) -> dict[str, Run]:
    """Returns the product of two square matrices in each library of torch; their rates can differ twofold."""
    square = torch.randn(side, side, device=device, dtype=dtype)
    products: dict[str, Run] = {"torch.mm": partial(torch.mm, square, square)}
    if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        layer = mkldnn.to_mkldnn(nn.Linear(side, side, bias=False).eval())
        products["oneDNN"] = partial(layer, square.to_mkldnn())
    return products


def measure(runs: dict[str, Run], arguments: argparse.Namespace, description: str) -> dict[str, list[float]]:
    """Runs everything in rotating order; returns the seconds of each run in each repetition after the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for repetition in tqdm(range(-arguments.warm_up, arguments.repetitions), desc=description):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            if arguments.device == "cpu":
                time.sleep(0.25)  # threads of another runtime spin for up to 0.2 s after a run
            start = now(arguments.device)
            runs[name]()
            stop = now(arguments.device)
            if repetition >= 0:
                seconds[name].append(stop - start)
    return seconds


def now(device: str) -> float:
    """Returns the time in seconds after all work on the device has finished."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def report(seconds: dict[str, list[float]], parameters: dict[str, int], common: dict[str, Any]) -> list[dict[str, Any]]:
    """
    Prints a table of the contenders that were measured together and returns its rows.

    Args:
        seconds (`dict[str, list[float]]`): seconds of each contender, including "stock", in each repetition.
        parameters (`dict[str, int]`): encoder parameters of each contender.
        common (`dict[str, Any]`): columns with the same value in all rows.
    """
    print("\n" + ", ".join(f"{name} {value}" for name, value in common.items()))
    print(f"{'contender':22}{'parameters':>12}{'median':>12}{'quartiles':>22}{'of stock':>10}")
    stock = 1000 * np.median(seconds["stock"])
    rows = []
    for name, times in seconds.items():
        lower, median, upper = 1000 * np.percentile(times, [25, 50, 75])
        print(
            f"{name:22}{parameters[name] / 1e6:10.2f} M{median:9.1f} ms"
            f"{lower:10.1f} to{upper:9.1f}{median / stock:10.3f}",
            flush=True,
        )
        row = {"contender": name, "encoder_parameters": parameters[name], "median_ms": round(median, 3)}
        row |= {"lower_quartile_ms": round(lower, 3), "upper_quartile_ms": round(upper, 3)}
        rows.append({**common, **row, "relative_to_stock": round(median / stock, 4)})
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots times relative to stock, with quartiles, by size; one panel per shape, measure and batch size."""
    panels = list(dict.fromkeys((row["shape"], row["measure"], row["batch"]) for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    colors = pyplot.get_cmap("tab20")
    figure, grid = pyplot.subplots(len(panels), squeeze=False, figsize=(11, 4 * len(panels)), layout="constrained")
    for panel, axes in zip(panels, grid[:, 0], strict=True):
        for index, name in enumerate(names):
            bars = [r for r in rows if (r["shape"], r["measure"], r["batch"]) == panel and r["contender"] == name]
            heights = np.array([row["relative_to_stock"] for row in bars])
            median, lower, upper = (
                np.array([row[f"{column}_ms"] for row in bars])
                for column in ("median", "lower_quartile", "upper_quartile")
            )
            axes.bar(
                [sizes.index(row["size"]) + (index + 0.5) / (len(names) + 1) - 0.5 for row in bars],
                heights,
                width=0.9 / (len(names) + 1),
                yerr=heights * [median - lower, upper - median] / median,
                color=colors(index),
                label=name,
            )
        axes.axhline(1, color="black", linestyle=":", linewidth=1)
        axes.set_xticks(range(len(sizes)), sizes)
        axes.set(ylabel="time relative to stock", title="{}, {}, batch size {}".format(*panel))
    grid[0, 0].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


@torch.no_grad()
def benchmark(
    shape: str, size: str, dense: dict[str, nn.Module | Prepare], folder: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measures the dense and low-rank contenders of a shape and size; returns the rows of the table."""
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    ranks = published_ranks(shape, size)
    encoder = low_rank_encoder(shape, ranks, device, dtype)
    contenders = {**dense, **build(LOW_RANK, arguments.contenders, encoder, folder)}
    modules = {name: contender for name, contender in contenders.items() if isinstance(contender, nn.Module)}
    ranks_by_name: dict[str, Ranks] = {"limit-dense": [{} for _ in ranks], "limit": ranks}
    ranks_by_name |= {name: ranks_by_name["limit" if name in LOW_RANK else "limit-dense"] for name in contenders}
    parameters = {name: encoder_parameters(encoder.config, its_ranks) for name, its_ranks in ranks_by_name.items()}
    side = 8192 if encoder.device.type == "cuda" else 2048
    products = square_products(side, encoder.device, dtype)
    common = {"device": device, "dtype": arguments.dtype, "threads": arguments.threads}
    common |= {"repetitions": arguments.repetitions, "shape": shape, "size": size}
    rows = []
    for batch in arguments.batch_sizes:
        for name, precision in (("ours-optimized", None), ("ours-optimized-int8", "int8")):
            if name in modules:
                optimized = cast(LiteWhisperEncoder, modules[name])
                optimized.optimize_for_inference(batch_size=batch, dtype=precision)
        features = torch.randn(batch, encoder.num_mel_bins, FRAMES, device=device, dtype=dtype)
        runs = {name: partial(c, features) if name in modules else c(features) for name, c in contenders.items()}
        seconds = measure({**runs, **products}, arguments, f"{shape} {size}, batch size {batch}")
        product_seconds = {library: seconds.pop(library) for library in products}
        for library, times in product_seconds.items():
            print(
                f"\nsquare matrix product, {library}: {side**3 / np.median(times) / 1e9:.1f} G multiply-adds/s", end=""
            )
        fastest = min(product_seconds.values(), key=np.median)
        for name in ("limit-dense", "limit"):
            multiply_adds = batch * encoder_multiply_adds(encoder.config, ranks_by_name[name])
            seconds[name] = [multiply_adds / side**3 * duration for duration in fastest]
        rows += report(seconds, parameters, {**common, "batch": batch, "measure": "encoder"})
        if shape in arguments.end_to_end:
            model = transcriber(encoder, SHAPES[shape][3])
            runs = {name: partial(transcribe, model, module, features) for name, module in modules.items()}
            seconds = measure(runs, arguments, f"{shape} {size}, batch size {batch}, end to end")
            rows += report(seconds, parameters, {**common, "batch": batch, "measure": "end to end"})
    return rows


def benchmark_shape(shape: str, arguments: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Measures the sizes of a shape one by one; yields the rows of each."""
    with torch.device(arguments.device):
        encoder = WhisperEncoder(WhisperConfig(**whisper_arguments(shape)))
    encoder.eval().to(getattr(torch, arguments.dtype))
    with tempfile.TemporaryDirectory() as folder:
        dense = build(DENSE, arguments.contenders, encoder, Path(folder))
        for size in arguments.sizes:
            yield benchmark(shape, size, dense, Path(folder), arguments)
            gc.collect()  # encoders are in reference cycles, and the next ones need the memory
    torch.compiler.reset()


def main() -> None:
    """Measures all shapes and sizes; rewrites the table and the plot after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in (*DENSE, *LOW_RANK) if name != "stock"]
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["turbo"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument(
        "--contenders", nargs="*", choices=names, default=names, help="in addition to stock (default: all)"
    )
    parser.add_argument("--end-to-end", nargs="*", choices=SHAPES, default=["turbo"], metavar="SHAPE")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--warm-up", type=int, default=1, help="repetitions that are not counted; the first one compiles"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, default=Path("build/encoder-speed"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()  # otherwise every call warns that max_new_tokens overrides a default
    device = torch.device(arguments.device)
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{arguments.threads} CPU threads"
    print(f"{processor}, {arguments.dtype}, torch {torch.__version__}, transformers {transformers.__version__}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for shape in arguments.shapes:
        for size_rows in benchmark_shape(shape, arguments):
            rows += size_rows
            write_results(rows, arguments.output / "encoder_speed.json", UNITS)
            plot(rows, arguments.output / "encoder_speed.png")


if __name__ == "__main__":
    main()
