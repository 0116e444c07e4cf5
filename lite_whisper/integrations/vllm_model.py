"""vLLM's Whisper with low-rank pairs in the encoder."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from vllm.config import VllmConfig
from vllm.config.speech_to_text import SpeechToTextParams
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.models.whisper import (
    WhisperDummyInputsBuilder,
    WhisperEncoder,
    WhisperEncoderLayer,
    WhisperForConditionalGeneration,
    WhisperMultiModalProcessor,
    WhisperProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..configuration_lite_whisper import projection_shape
from ..kernels_lite_whisper import clamp_to_float16
from ..modeling_lite_whisper import LiteWhisperEncoder
from ..padding_lite_whisper import NUM_DIRECTIONS, PaddingStates, followed_by_padding

logger = init_logger(f"vllm.{__name__}")  # vLLM only prints loggers below its own name

Weights = Iterable[tuple[str, torch.Tensor]]

STACKED = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}  # by the shard ids of vLLM
QUANTIZED_MULTIPLE = 16  # the kernels of quantised products require sizes divisible by this


def load_parameter(parameter: Any, tensor: torch.Tensor, *shard: int) -> None:
    """Loads a parameter, or one shard of it, into a linear layer of vLLM, which selects the part of its own rank."""
    parameter.weight_loader(parameter, tensor, *shard)


class LowRankPair(nn.Module):
    """
    A low-rank pair made of two linear layers of vLLM.

    Under tensor parallelism there are two cases. If the input is not split (fc1), the first factor is replicated and
    the second is split along its outputs. If the input is split (out_proj, fc2), the first factor is split along its
    inputs, its output is summed over the processes, and the second is replicated. So there are as many reductions as in
    a stock Whisper, each as wide as the rank of the pair.
    """

    def __init__(self, first: LinearBase, second: LinearBase) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Maps x of shape `(..., in_features)` to `(..., out_features)`; returns no bias, like vLLM's layers."""
        return self.second(self.first(x)[0])

    def load_weights(self, weights: Weights) -> Iterator[str]:
        """Loads `weight1`, `weight2` and `bias`; yields the names of the loaded parameters."""
        for name, tensor in weights:
            layer, kind = ("first" if name == "weight1" else "second"), ("bias" if name == "bias" else "weight")
            load_parameter(getattr(getattr(self, layer), kind), tensor.t())
            yield f"{layer}.{kind}"


class LowRankQKV(nn.Module):
    """
    Query, key and value projections from low-rank pairs; replaces vLLM's `QKVParallelLinear`.

    The first factors share their input and are computed as one product. Projections that are not compressed are dense
    layers. Under tensor parallelism the first factors are replicated, and the second factors are split by heads.
    """

    def __init__(self, width: int, ranks: dict[str, int], quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.ranks = {shard: ranks[name] for shard, name in STACKED.items() if name in ranks}
        self.first = MergedColumnParallelLinear(
            width,
            [*self.ranks.values()],
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.first",
            disable_tp=True,
        )
        self.second = nn.ModuleDict()
        for shard in STACKED:
            self.second[shard] = ColumnParallelLinear(
                self.ranks.get(shard, width), width, quant_config=quant_config, prefix=f"{prefix}.second.{shard}"
            )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Maps x of shape `(..., d_model)` to `(..., 3 * d_model)`, or this process's part of it; returns no bias."""
        reduced = dict(zip(self.ranks, self.first(x)[0].split([*self.ranks.values()], dim=-1), strict=True))
        return torch.cat([second(reduced.get(shard, x))[0] for shard, second in self.second.items()], dim=-1), None

    def load_weights(self, weights: Weights) -> Iterator[str]:
        """Loads weights that vLLM's mapper has marked with a `shard_id`; yields the names of the loaded parameters."""
        for name, tensor in weights:
            shard = tensor.shard_id  # type: ignore[attr-defined]
            if name == "weight1":
                load_parameter(self.first.weight, tensor.t(), [*self.ranks].index(shard))
                yield "first.weight"
            else:
                kind = "bias" if name == "bias" else "weight"
                # Dense weights are stored as (out, in), second factors as (rank, out).
                load_parameter(getattr(self.second[shard], kind), tensor if name == "weight" else tensor.t())
                yield f"second.{shard}.{kind}"


def replace_projections(
    layer: WhisperEncoderLayer, ranks: dict[str, int], config: Any, quant_config: Any, prefix: str
) -> None:
    """Replaces the projections of an encoder layer that are named in `ranks` by low-rank pairs."""

    def pair(name: str, first: type[LinearBase], second: type[LinearBase]) -> LowRankPair:
        inputs, outputs = projection_shape(config, name)
        options = {"quant_config": quant_config, "prefix": f"{prefix}.{name}"}
        return LowRankPair(
            first(inputs, ranks[name], bias=False, **options), second(ranks[name], outputs, bias=True, **options)
        )

    if ranks.keys() & STACKED.values():
        layer.self_attn.qkv_proj = LowRankQKV(config.d_model, ranks, quant_config, f"{prefix}.qkv_proj")
    if "out_proj" in ranks:
        layer.self_attn.out_proj = pair("out_proj", RowParallelLinear, ReplicatedLinear)
    if "fc1" in ranks:
        layer.mlp.fc1 = pair("fc1", ReplicatedLinear, ColumnParallelLinear)
    if "fc2" in ranks:
        layer.mlp.fc2 = pair("fc2", RowParallelLinear, ReplicatedLinear)


class EncoderLayer(WhisperEncoderLayer):
    """vLLM's encoder layer with support for constant padding."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, coefficients: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Runs the layer; with `coefficients`, attention includes constant padding as in `layer_with_padding`."""
        if coefficients is None:
            return super().forward(hidden_states, *args)
        attention, x = self.self_attn, self.self_attn_layer_norm(hidden_states)
        inputs, mixing, bias = self.padding_states(x, coefficients)
        query, key, value = attention.qkv_proj(inputs)[0].chunk(3, dim=-1)
        rows = query[:, : x.shape[1]], followed_by_padding(key, mixing), followed_by_padding(value, mixing)
        heads = (states.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for states in rows)
        mixed = F.scaled_dot_product_attention(*heads, bias)  # type: ignore[call-arg]
        hidden_states = hidden_states + attention.out_proj(mixed.transpose(1, 2).flatten(2))[0]
        return clamp_to_float16(hidden_states + self.mlp(self.final_layer_norm(hidden_states)))


class Encoder(WhisperEncoder):
    """vLLM's encoder with support for constant padding."""

    # These methods only use submodules that have the same names in vLLM.
    known_padding, with_padding = LiteWhisperEncoder.known_padding, LiteWhisperEncoder.with_padding

    def forward(self, input_features: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """Encodes a batch; with constant padding, skips the padding at the end of all clips."""
        if self.padding_states is not None:
            batch = torch.stack([*input_features])
            if (known := self.known_padding(batch)) is not None:
                return self.with_padding(batch, *known)
        return super().forward(input_features)


def merge_factors(weights: Weights, projections: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterates over weights, with the factors of the named projections merged."""
    pending: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in weights:
        projection, _, kind = name.rpartition(".")
        if projection not in projections or kind == "bias":
            yield name, tensor
            continue
        factors = pending.setdefault(projection, {})
        factors[kind] = tensor
        if len(factors) == 2:
            product = factors["weight1"].float() @ factors["weight2"].float()
            yield f"{projection}.weight", product.t().to(tensor.dtype).contiguous()
            del pending[projection]


class PromptProcessor(WhisperMultiModalProcessor):
    """Whisper's processor, which keeps the decoder prompt as given; vLLM would prepend a start token."""

    skip_decoder_start_token = True


@MULTIMODAL_REGISTRY.register_processor(
    PromptProcessor, info=WhisperProcessingInfo, dummy_inputs=WhisperDummyInputsBuilder
)
class LiteWhisperForConditionalGeneration(WhisperForConditionalGeneration):
    """
    vLLM's Whisper with the low-rank pairs of `low_rank_config` in the encoder.

    Constant padding is used if the model has it enabled, without fallback. With quantisation, pairs whose rank the
    kernels do not support are merged, and a warning is logged.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config, quant_config = vllm_config.model_config.hf_config, vllm_config.quant_config
        # Built without encoder layers, so that the dense layers never exist all at once.
        encoder_layers, config.encoder_layers = config.encoder_layers, 0
        try:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            encoder = Encoder(vllm_config=vllm_config, prefix=f"{prefix}.encoder")
        finally:
            config.encoder_layers = encoder_layers
        self.model.encoder, encoder.config = encoder, config
        uses_padding = config.constant_padding and config.constant_padding["enabled"]
        encoder.padding_states = PaddingStates(config, NUM_DIRECTIONS) if uses_padding else None
        self.factors: set[str] = set()
        self.merged: set[str] = set()
        for index, ranks in enumerate(config.low_rank_config or [{}] * encoder_layers):
            names = {name: f"model.encoder.layers.{index}.{layer_path(name)}" for name in ranks}
            unsupported = {name for name, rank in ranks.items() if quant_config and rank % QUANTIZED_MULTIPLE}
            self.factors |= {f"{name}.weight{factor}" for name in names.values() for factor in (1, 2)}
            self.merged |= {names[name] for name in unsupported}
            layer_prefix = f"{prefix}.encoder.layers.{index}"
            layer = EncoderLayer(vllm_config=vllm_config, prefix=layer_prefix)
            pairs = {name: rank for name, rank in ranks.items() if name not in unsupported}
            replace_projections(layer, pairs, config, quant_config, layer_prefix)
            layer.padding_states = PaddingStates(config) if uses_padding else None
            encoder.layers.append(layer)
        encoder.end_layer = encoder_layers
        if self.merged:
            logger.warning(
                "merged %d low-rank pairs, since quantisation requires ranks that are multiples of %d: %s",
                len(self.merged),
                QUANTIZED_MULTIPLE,
                ", ".join(sorted(self.merged)),
            )

    @classmethod
    def get_generation_prompt(cls, stt_params: SpeechToTextParams) -> Any:
        """As in vLLM, but prompts start with `<|startofprev|>` and a space, not `<|prev|>`, which is not a token."""
        prompt: Any = super().get_generation_prompt(stt_params)
        if text := (stt_params.request_prompt or "").strip():
            decoder = prompt["decoder_prompt"]
            _, start, rest = decoder["prompt"].rpartition("<|startoftranscript|>")
            decoder["prompt"] = f"<|startofprev|> {text}{start}{rest}"
        return prompt

    def load_weights(self, weights: Weights) -> set[str]:
        """Loads the weights of a model folder; raises `ValueError` if factors are missing."""
        missing = set(self.factors)

        def read_weights() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                missing.discard(name)
                if ".padding_states." not in name or self.model.encoder.padding_states is not None:
                    yield name, tensor

        loaded = super().load_weights(merge_factors(read_weights(), self.merged))
        if missing:  # vLLM does not notice a missing factor that is part of a larger parameter
            raise ValueError(f"factors missing from the file: {len(missing)}, e.g. {min(missing)}")
        return loaded


def layer_path(projection: str) -> str:
    """Path of a projection within an encoder layer."""
    return projection if projection in ("fc1", "fc2") else f"self_attn.{projection}"
