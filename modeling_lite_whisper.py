# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""Whisper whose encoder projections are low-rank pairs (LiteASR, Kamahori et al., EMNLP 2025)."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import (
    WhisperDecoder,
    WhisperEncoder,
    WhisperEncoderLayer,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from .configuration_lite_whisper import LiteWhisperConfig


class LowRankLinear(nn.Module):
    """
    A linear layer of limited rank: y = (x weight1) weight2 + bias.

    weight1 : torch.Tensor, shape = (in_features, rank)
    weight2 : torch.Tensor, shape = (rank, out_features)
    bias : torch.Tensor, shape = (out_features,)
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight1 = nn.Parameter(torch.empty(in_features, rank))
        self.weight2 = nn.Parameter(torch.empty(rank, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters(in_features**-0.5)

    def reset_parameters(self, std: float) -> None:
        """Draws factors whose product has entries of standard deviation `std`: its variance is rank * var1 * var2."""
        for weight in (self.weight1, self.weight2):
            nn.init.normal_(weight, std=std**0.5 / self.rank**0.25)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X : torch.Tensor, shape = (..., in_features); returns shape = (..., out_features)"""
        return F.linear(F.linear(x, self.weight1.t()), self.weight2.t(), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LiteWhisperEncoderLayer(WhisperEncoderLayer):
    """A Whisper encoder layer in which the projections named in `ranks` are `LowRankLinear`."""

    def __init__(self, config: LiteWhisperConfig, ranks: dict[str, int]) -> None:
        super().__init__(config)
        for projection, rank in ranks.items():
            parent = self if projection in ("fc1", "fc2") else self.self_attn
            dense = getattr(parent, projection)
            setattr(parent, projection, LowRankLinear(dense.in_features, dense.out_features, rank))


class LiteWhisperEncoder(WhisperEncoder):
    """The Whisper encoder with `LiteWhisperEncoderLayer`s; exactly Whisper's where `low_rank_config` is None."""

    _no_split_modules = ["LiteWhisperEncoderLayer"]

    def __init__(self, config: LiteWhisperConfig) -> None:
        # Whisper's encoder is built without its layers, so that they never exist in their dense form all at once.
        encoder_layers, config.encoder_layers = config.encoder_layers, 0
        try:
            super().__init__(config)
        finally:
            config.encoder_layers = encoder_layers
        self.layers = nn.ModuleList(
            LiteWhisperEncoderLayer(config, ranks) for ranks in config.low_rank_config or [{}] * encoder_layers
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers initialises every module through its nearest PreTrainedModel, which is the encoder for these.
        if isinstance(module, LowRankLinear):
            module.reset_parameters(self.config.init_std)
        else:
            super()._init_weights(module)


class LiteWhisperModel(WhisperModel):
    """`WhisperModel` with a `LiteWhisperEncoder`."""

    config_class = LiteWhisperConfig
    _auto_class = "AutoModel"
    _no_split_modules = ["LiteWhisperEncoderLayer", "WhisperDecoderLayer"]

    def __init__(self, config: LiteWhisperConfig) -> None:
        super(WhisperModel, self).__init__(config)  # past WhisperModel's own, which would build the dense encoder
        self.encoder = LiteWhisperEncoder(config)
        self.decoder = WhisperDecoder(config)
        self.post_init()


class LiteWhisperForConditionalGeneration(WhisperForConditionalGeneration):
    """`WhisperForConditionalGeneration` with a `LiteWhisperEncoder`."""

    config_class = LiteWhisperConfig
    _auto_class = "AutoModelForSpeechSeq2Seq"  # makes save_pretrained copy this file, however the class was imported
    _no_split_modules = ["LiteWhisperEncoderLayer", "WhisperDecoderLayer"]

    def __init__(self, config: LiteWhisperConfig) -> None:
        super(WhisperForConditionalGeneration, self).__init__(config)  # for the same reason as in LiteWhisperModel
        self.model = LiteWhisperModel(config)
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.max_target_positions = config.max_target_positions
        self.post_init()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """
        As in transformers, with the ranks of the layers as they are: merging an adapter may have changed them.

        Raises:
            ValueError: a compressed projection is of a type that has no place in the file format.
        """
        peft = getattr(self, "_hf_peft_config_loaded", False)  # then the adapter alone is saved
        for index, ranks in enumerate([] if peft else self.config.low_rank_config or []):
            layer = self.model.encoder.layers[index]
            for projection in ranks:
                module = getattr(layer if projection in ("fc1", "fc2") else layer.self_attn, projection)
                if not isinstance(module, LowRankLinear):
                    raise ValueError(
                        f"layer {index} {projection} is a {type(module).__name__}; turn it back into a LowRankLinear "
                        "(from_linear_pairs) before saving"
                    )
                ranks[projection] = module.rank
        return super().save_pretrained(*args, **kwargs)

    @torch.no_grad()
    def to_whisper(self) -> WhisperForConditionalGeneration:
        """
        Multiplies every pair out, for programs that know no low-rank layer.

        Returns:
            A stock Whisper with the same outputs, in the same dtype, on the same device; no memory is shared. The bias
            of a compressed `k_proj` is dropped, since Whisper has none there: it adds the same number to a query's
            score of every key, which cancels in the softmax.
        """
        ours = ("architectures", "auto_map", "low_rank_config", "model_type")
        config = WhisperConfig(**{name: value for name, value in self.config.to_dict().items() if name not in ours})
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        for name, pair in self.named_modules():
            if isinstance(pair, LowRankLinear):
                del state[f"{name}.weight1"], state[f"{name}.weight2"]
                weight = (pair.weight1.float() @ pair.weight2.float()).t()
                state[f"{name}.weight"] = weight.to(pair.weight1).contiguous()
                if name.endswith("k_proj"):
                    del state[f"{name}.bias"]
        with torch.device("meta"):
            stock = WhisperForConditionalGeneration(config)
        stock.load_state_dict(state, assign=True)
        stock.tie_weights()
        stock.generation_config = copy.deepcopy(self.generation_config)
        return stock.train(self.training)
