"""Loads a model of vLLM without its engine; run as a program, it is one rank of tensor parallelism."""

import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn


def vllm_model(
    folder: Path, rank: int = 0, ranks: int = 1, store: str | None = None, quant_config: Any = None, **options: Any
) -> Any:
    """Loads a model folder with vLLM, in float32 on the CPU; `options` are command line options of vLLM."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    options |= {"model": str(folder), "dtype": "float32", "enforce_eager": True, "tensor_parallel_size": ranks}
    config = EngineArgs(**options).create_engine_config()
    if quant_config is not None:
        config.quant_config = quant_config
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            store = store or f"{tempfile.mkdtemp()}/store"
            init_distributed_environment(ranks, rank, f"file://{store}", local_rank=rank, backend="gloo")
        ensure_model_parallel_initialized(ranks, 1)
        with mock.patch("torch.accelerator.empty_cache"):  # as the CPU worker of vLLM does
            return get_model(vllm_config=config)


@torch.no_grad()
def encode(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """The encoder's output, through the method that vLLM calls."""
    return torch.stack(list(model.embed_multimodal(input_features=features)))


def main(folder: str, work: str, rank: str, ranks: str) -> None:
    """Saves the encoder output of this rank and the sizes of some of its factors."""
    model = vllm_model(Path(folder), int(rank), int(ranks), f"{work}/store")
    states = encode(model, torch.load(f"{work}/features"))
    layer = model.model.encoder.layers[0]
    queries, out = layer.self_attn.qkv_proj, layer.mlp.fc2
    sizes = {
        "first of q, k and v": queries.first.output_size_per_partition,
        "second of q": queries.second["q"].output_size_per_partition,
        "first of fc2": out.first.input_size_per_partition,
        "second of fc2": out.second.output_size,
    }
    torch.save({"states": states, **sizes}, f"{work}/states-{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
