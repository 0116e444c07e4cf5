"""vLLM's Whisper with the encoder of a LiteWhisper: its projections as low-rank pairs."""

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

logger = init_logger(f"vllm.{__name__}")  # vLLM prints what is logged below its own name

Weights = Iterable[tuple[str, torch.Tensor]]

STACKED = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}  # by the names that vLLM has for the parts of its stack
QUANTIZED_MULTIPLE = 16  # of which the kernels of quantised products want their sizes


def load(parameter: Any, tensor: torch.Tensor, *shard: int) -> None:
    """Loads a parameter of a linear layer of vLLM, or a shard of it; the layer takes the part of its own rank."""
    parameter.weight_loader(parameter, tensor, *shard)


class LowRankPair(nn.Module):
    """
    A `LowRankLinear` as two linear layers of vLLM.

    Under tensor parallelism, where the input is whole (fc1) every rank has the first factor, and the second is split by
    its outputs. Where the input is split (out_proj, fc2) the first is split by its inputs, its output is summed over
    the ranks, and each has the second. So there are as many sums as in Whisper, each as wide as the pair's rank.
    """

    def __init__(self, first: LinearBase, second: LinearBase) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Takes x of shape `(..., in_features)`, gives `(..., out_features)` and no bias, as vLLM's layers do."""
        return self.second(self.first(x)[0])

    def load_weights(self, weights: Weights) -> Iterator[str]:
        """Loads `weight1`, `weight2` and `bias`, and names the parameters."""
        for name, tensor in weights:
            part, kind = ("first" if name == "weight1" else "second"), ("bias" if name == "bias" else "weight")
            load(getattr(getattr(self, part), kind), tensor.t())
            yield f"{part}.{kind}"


class LowRankQKV(nn.Module):
    """
    Queries, keys and values side by side, from pairs, in the place of vLLM's `QKVParallelLinear`.

    The first factors, which have the same input, are one product, whatever their ranks. Of the three, those that are
    not compressed are dense layers. Under tensor parallelism every rank has the first factors, and what follows is
    split by heads.
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
        """Takes x of shape `(..., d_model)`, gives `(..., 3 * d_model)`, or this rank's part of it, and no bias."""
        reduced = dict(zip(self.ranks, self.first(x)[0].split([*self.ranks.values()], dim=-1), strict=True))
        return torch.cat([second(reduced.get(shard, x))[0] for shard, second in self.second.items()], dim=-1), None

    def load_weights(self, weights: Weights) -> Iterator[str]:
        """Loads what vLLM's mapper has stacked, and marked with its part of the stack; names the parameters."""
        for name, tensor in weights:
            shard = tensor.shard_id  # type: ignore[attr-defined]
            if name == "weight1":
                load(self.first.weight, tensor.t(), [*self.ranks].index(shard))
                yield "first.weight"
            else:
                kind = "bias" if name == "bias" else "weight"
                # A dense weight lies in the file as (out, in), a second factor as (rank, out).
                load(getattr(self.second[shard], kind), tensor if name == "weight" else tensor.t())
                yield f"second.{shard}.{kind}"


def put_pairs(layer: WhisperEncoderLayer, ranks: dict[str, int], config: Any, quant_config: Any, prefix: str) -> None:
    """Puts pairs in the place of the projections of an encoder layer that are named in `ranks`."""

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
    """vLLM's encoder layer, whose attention may see padding that is known and not computed."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, coefficients: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As in Whisper; with `coefficients` as in `layer_with_padding`."""
        if coefficients is None:
            return super().forward(hidden_states, *args)
        attention, x = self.self_attn, self.self_attn_layer_norm(hidden_states)
        inputs, mixing, bias = self.padding_states(x, coefficients)
        query, key, value = attention.qkv_proj(inputs)[0].chunk(3, dim=-1)
        rows = query[:, : x.shape[1]], followed_by_padding(key, mixing), followed_by_padding(value, mixing)
        heads = (of.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for of in rows)
        mixed = F.scaled_dot_product_attention(*heads, bias)  # type: ignore[call-arg]
        hidden_states = hidden_states + attention.out_proj(mixed.transpose(1, 2).flatten(2))[0]
        return clamp_to_float16(hidden_states + self.mlp(self.final_layer_norm(hidden_states)))


class Encoder(WhisperEncoder):
    """vLLM's encoder, which may take padding for constant."""

    # The names of the parts are the same.
    known_padding, with_padding = LiteWhisperEncoder.known_padding, LiteWhisperEncoder.with_padding

    def forward(self, input_features: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """As in Whisper; where the features of all clips end in padding, that is not computed but known."""
        if self.padding_states is not None:
            batch = torch.stack([*input_features])
            if (known := self.known_padding(batch)) is not None:
                return self.with_padding(batch, *known)
        return super().forward(input_features)


def merged(weights: Weights, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a file, with the product in the place of the factors of the projections with these names."""
    waiting: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in weights:
        projection, _, kind = name.rpartition(".")
        if projection not in names or kind == "bias":
            yield name, tensor
            continue
        factors = waiting.setdefault(projection, {})
        factors[kind] = tensor
        if len(factors) == 2:
            product = factors["weight1"].float() @ factors["weight2"].float()
            yield f"{projection}.weight", product.t().to(tensor.dtype).contiguous()
            del waiting[projection]


class AsWritten(WhisperMultiModalProcessor):
    """Whisper's processor, but the decoder's tokens are as written; vLLM would start a prompt with a start token."""

    skip_decoder_start_token = True


@MULTIMODAL_REGISTRY.register_processor(AsWritten, info=WhisperProcessingInfo, dummy_inputs=WhisperDummyInputsBuilder)
class LiteWhisperForConditionalGeneration(WhisperForConditionalGeneration):
    """
    vLLM's Whisper in which the encoder's projections that `low_rank_config` names are pairs.

    Where the model knows its padding, and takes it for constant, that is not computed; there is no second try at what
    looks broken. With quantisation, pairs whose rank its kernels cannot take are multiplied out, which is logged.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config, quant_config = vllm_config.model_config.hf_config, vllm_config.quant_config
        # Whisper is built without its encoder's layers, so that they never exist in their dense form all at once.
        encoder_layers, config.encoder_layers = config.encoder_layers, 0
        try:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            encoder = Encoder(vllm_config=vllm_config, prefix=f"{prefix}.encoder")
        finally:
            config.encoder_layers = encoder_layers
        self.model.encoder, encoder.config = encoder, config
        known = config.constant_padding and config.constant_padding["enabled"]
        encoder.padding_states = PaddingStates(config, NUM_DIRECTIONS) if known else None
        self.factors: set[str] = set()
        self.dense: set[str] = set()
        for index, ranks in enumerate(config.low_rank_config or [{}] * encoder_layers):
            names = {name: f"model.encoder.layers.{index}.{path(name)}" for name in ranks}
            refused = {name for name, rank in ranks.items() if quant_config and rank % QUANTIZED_MULTIPLE}
            self.factors |= {f"{name}.weight{factor}" for name in names.values() for factor in (1, 2)}
            self.dense |= {names[name] for name in refused}
            of_layer = f"{prefix}.encoder.layers.{index}"
            layer = EncoderLayer(vllm_config=vllm_config, prefix=of_layer)
            pairs = {name: rank for name, rank in ranks.items() if name not in refused}
            put_pairs(layer, pairs, config, quant_config, of_layer)
            layer.padding_states = PaddingStates(config) if known else None
            encoder.layers.append(layer)
        encoder.end_layer = encoder_layers
        if self.dense:
            logger.warning(
                "%d pairs are multiplied out, as their ranks are no multiples of %d, which quantisation wants: %s",
                len(self.dense),
                QUANTIZED_MULTIPLE,
                ", ".join(sorted(self.dense)),
            )

    @classmethod
    def get_generation_prompt(cls, stt_params: SpeechToTextParams) -> Any:
        """As in vLLM, but a prompt follows `<|startofprev|>` and a space; vLLM writes `<|prev|>`, which is no token."""
        prompt: Any = super().get_generation_prompt(stt_params)
        if text := (stt_params.request_prompt or "").strip():
            decoder = prompt["decoder_prompt"]
            _, start, rest = decoder["prompt"].rpartition("<|startoftranscript|>")
            decoder["prompt"] = f"<|startofprev|> {text}{start}{rest}"
        return prompt

    def load_weights(self, weights: Weights) -> set[str]:
        """Loads the weights of a model folder; `ValueError` where factors are missing."""
        missing = set(self.factors)

        def noted() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                missing.discard(name)
                if ".padding_states." not in name or self.model.encoder.padding_states is not None:
                    yield name, tensor

        loaded = super().load_weights(merged(noted(), self.dense))
        if missing:  # vLLM would not notice a factor that is a part of a larger parameter
            raise ValueError(f"weights are missing from the file: {len(missing)}, the first being {min(missing)}")
        return loaded


def path(projection: str) -> str:
    """Where a projection lies in a layer of the file."""
    return projection if projection in ("fc1", "fc2") else f"self_attn.{projection}"
