"""
Measures one encoder layer at the shape of large-v3 (random weights): its forms, attention, and pairs by rank.

    python benchmarks/layer_speed.py [--batch-size 1] [--repetitions 5] [--threads 2] [--device cpu] [--dtype float32]
        [--json FILE]

The first table compares a layer of stock Whisper with low-rank layers whose projections all keep the same share of
their parameters: in the published form, in LiteWhisper as loaded, and with optimised inference. The second compares
attention, including its projections, on heads as in Whisper with attention in the reduced dimension; "chosen" is the
form that optimised inference uses. The third shows the rate of pairs by rank, and so whether rounding ranks to
multiples pays. All times are medians of interleaved runs.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_speed import Run, measure, published_form, whisper_arguments
from record import write_results
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lite_whisper import LiteWhisperConfig, inference_lite_whisper
from lite_whisper.configuration_lite_whisper import PROJECTIONS, projection_shape
from lite_whisper.inference_lite_whisper import (
    InferenceLayer,
    Product,
    Reduction,
    choose_reduction,
    product,
    projections,
)
from lite_whisper.modeling_lite_whisper import LiteWhisperEncoder

SHAPE = {**whisper_arguments("large-v3"), "encoder_layers": 1}
Row = dict[str, Any]

POSITIONS = 1500
RANK_MULTIPLE = 16
PASSES_PER_TURN = 10
SHARES = (0.2, 0.37, 0.5, 0.75)
ATTENTION_RANKS = ((16, 16), (32, 32), (48, 48), (64, 64), (32, 64), (32, 160), (64, 160))
UNITS = {
    **{"share": "1", "rank": "1", "value rank": "1", "rate": "G multiply-adds/s"},
    **dict.fromkeys(("stock", "published", "plain", "optimized", "heads", "reduced", "pair"), "ms"),
}
RANKS = (187, 188, 184, 176, 160, 192, 48, 52, 56, 64)


def milliseconds(runs: dict[str, Run], arguments: argparse.Namespace, description: str) -> dict[str, float]:
    """Returns the median milliseconds per pass of each run; a turn has several passes, as the first one is slow."""

    def turn(run: Run) -> None:
        for _ in range(PASSES_PER_TURN):
            run()

    seconds = measure({name: partial(turn, run) for name, run in runs.items()}, arguments, description)
    return {name: 1e3 * float(np.median(times)) / PASSES_PER_TURN for name, times in seconds.items()}


def one_layer_encoder(ranks: dict[str, int], arguments: argparse.Namespace) -> LiteWhisperEncoder:
    """Returns an encoder with one layer of these ranks."""
    with torch.device(arguments.device):
        encoder = LiteWhisperEncoder(LiteWhisperConfig(low_rank_config=[ranks], **SHAPE))
    return encoder.eval().to(getattr(torch, arguments.dtype))


def layer_forms(x: torch.Tensor, arguments: argparse.Namespace) -> Iterator[Row]:
    """Times each form of the layer at each share; prints and yields the rows."""
    with torch.device(x.device):
        stock = WhisperEncoder(WhisperConfig(**SHAPE)).eval().to(x.dtype)
    print(f"\nlayer, ms\n{'share':8}{'stock':>10}{'published':>10}{'plain':>10}{'optimized':>10}")
    for share in SHARES:
        ranks = {}
        for projection in PROJECTIONS:
            inputs, outputs = projection_shape(stock.config, projection)
            ranks[projection] = RANK_MULTIPLE * round(share * inputs * outputs / (inputs + outputs) / RANK_MULTIPLE)
        plain = one_layer_encoder(ranks, arguments)
        published = published_form(plain)
        fast = one_layer_encoder(ranks, arguments).optimize_for_inference(batch_size=arguments.batch_size)
        encoders = {"stock": stock, "published": published, "plain": plain, "optimized": fast}
        runs = {name: partial(encoder.layers[0], x, None) for name, encoder in encoders.items()}
        times = milliseconds(runs, arguments, f"share {share}")
        print(f"{share:<8}" + "".join(f"{time:10.1f}" for time in times.values()), flush=True)
        yield {"measure": "layer", "share": share, **times}


def attention_forms(x: torch.Tensor, arguments: argparse.Namespace) -> Iterator[Row]:
    """Times attention with its projections in both forms at each pair of ranks; prints and yields the rows."""
    print(f"\nattention with its projections, ms\n{'q, k':>6}{'v, out':>8}{'heads':>10}{'reduced':>10}  chosen")
    for rank, value_rank in ATTENTION_RANKS:
        ranks = {"q_proj": rank, "k_proj": rank, "v_proj": value_rank, "out_proj": value_rank}
        layer: Any = one_layer_encoder(ranks, arguments).layers[0]
        head_dim = layer.self_attn.head_dim
        forms = {"heads": Reduction(False, False, head_dim)}
        keys_only = value_rank > head_dim
        forms["reduced"] = Reduction(True, not keys_only, head_dim if keys_only else max(rank, value_rank))
        runs: dict[str, Run] = {}
        for name, form in forms.items():
            inference_lite_whisper.choose_reduction = lambda *_, form=form: form
            runs[name] = partial(InferenceLayer(layer, (), POSITIONS).attention, layer, x, None)
        inference_lite_whisper.choose_reduction = choose_reduction
        products = {name: product(projection) for name, projection in projections(layer).items()}
        chosen = choose_reduction(products, layer.self_attn.num_heads, POSITIONS)
        times = milliseconds(runs, arguments, f"ranks {rank}, {value_rank}")
        name = "heads" if chosen == forms["heads"] else "keys" if not chosen.values else "keys and values"
        print(f"{rank:6}{value_rank:8}" + "".join(f"{time:10.1f}" for time in times.values()) + f"  {name}", flush=True)
        yield {"measure": "attention", "rank": rank, "value rank": value_rank, **times, "chosen": name}


def pair_rates(x: torch.Tensor, arguments: argparse.Namespace) -> Iterator[Row]:
    """Measures the rate of pairs from 1280 to 5120 dimensions by rank; prints and yields the rows."""
    runs: dict[str, Run] = {}
    for rank in RANKS:
        weights = tuple(x.new_empty(shape).normal_(std=0.01) for shape in ((1280, rank), (rank, 5120)))
        runs[f"{rank}"] = partial(Product(weights).__call__, x)
    times = milliseconds(runs, arguments, "ranks")
    print("\n1280 -> rank -> 5120\n  rank        ms  G multiply-adds/s")
    for rank in RANKS:
        rate = x.shape[0] * POSITIONS * rank * 6400 / times[f"{rank}"] / 1e6
        print(f"{rank:6}{times[f'{rank}']:10.2f}{rate:19.1f}")
        yield {"measure": "pairs", "rank": rank, "pair": times[f"{rank}"], "rate": rate}


@torch.no_grad()
def main() -> None:
    """Measures the three tables and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="repetitions that are not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = (arguments.batch_size, POSITIONS, SHAPE["d_model"])
    x = torch.randn(shape, device=arguments.device, dtype=getattr(torch, arguments.dtype))
    rows = [row for table in (layer_forms, attention_forms, pair_rates) for row in table(x, arguments)]
    if arguments.json:
        write_results(rows, arguments.json, UNITS)


if __name__ == "__main__":
    main()
