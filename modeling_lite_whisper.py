# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""Whisper whose encoder projections are low-rank pairs (LiteASR, Kamahori et al., EMNLP 2025)."""

import copy
import itertools
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
    sinusoids,
)

from .configuration_lite_whisper import LiteWhisperConfig
from .inference_lite_whisper import InferenceLayer, break_even_ranks, projections


class LowRankLinear(nn.Module):
    """
    A linear layer of limited rank: y = (x weight1) weight2 + bias.

    `weight1` has the shape `(in_features, rank)`, `weight2` `(rank, out_features)` and `bias` `(out_features,)`.

    Args:
        in_features (`int`): of the projection.
        out_features (`int`): of the projection.
        rank (`int`): at most the smaller of the two.
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
        """Takes x of shape `(..., in_features)`, gives y of shape `(..., out_features)`."""
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
        self.inference: InferenceLayer | None = None  # see LiteWhisperEncoder.optimize_for_inference
        self.register_load_state_dict_post_hook(_derive_after_loading)

    def derive(self) -> None:
        """Derives from the weights as they are now what inference computes with, where it can."""
        if self.inference is not None:
            self.inference = self.inference.renewed(self)

    def _apply(self, *args: Any, **kwargs: Any) -> "LiteWhisperEncoderLayer":  # what .to(), .half() and the like call
        super()._apply(*args, **kwargs)
        self.derive()
        return self

    def train(self, mode: bool = True) -> "LiteWhisperEncoderLayer":
        """As in torch. Training uses the plain layer; what it has changed counts in inference from then on."""
        trained = self.training and not mode
        super().train(mode)
        if trained:
            self.derive()
        return self

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in Whisper; by `InferenceLayer` where there is one and it can do what is asked."""
        masked = attention_mask is not None or kwargs.get("layer_head_mask") is not None
        asked = masked or kwargs.get("output_attentions") or not self.uses_sdpa
        plain = self.training or torch.is_grad_enabled() or asked
        if not plain and self.inference is not None:
            self.inference = self.inference.current(self)
        if plain or self.inference is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)  # type: ignore[arg-type]
        hidden_states = self.inference.forward(self, hidden_states)
        return (hidden_states, None) if "layer_head_mask" in kwargs else hidden_states  # a tuple up to transformers 4

    @property
    def uses_sdpa(self) -> bool:
        """Whether attention is torch's; others, such as eager attention, may be asked for what that does not return."""
        return self.self_attn.config is not None and self.self_attn.config._attn_implementation == "sdpa"


def _derive_after_loading(layer: LiteWhisperEncoderLayer, _: object) -> None:
    layer.derive()


class CompleteWeights:
    """For models that are loaded with all their weights or not at all."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """
        As in transformers, but a model with random weights in the place of missing ones is not returned.

        Raises:
            ValueError: weights are missing.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        if missing := sorted(loaded[1]["missing_keys"]):
            raise ValueError(f"weights are missing from the file: {len(missing)}, the first being {missing[0]}")
        return loaded if output_loading_info else loaded[0]


class LiteWhisperEncoder(CompleteWeights, WhisperEncoder):
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

    def optimize_for_inference(self, enabled: bool = True, batch_size: int = 1) -> "LiteWhisperEncoder":
        """
        Makes the encoder faster without changing its outputs by more than rounding.

        The weights, and what is saved, stay as they are. Beside them there are then the first factors of q, k and v
        once more, what attention in the reduced dimension needs, and the dense products of those pairs that take longer
        than these on this device at this batch size, which is measured (a few seconds). All of this follows the model
        to other devices and dtypes, through training, `load_state_dict` and changes of weights in place. The plain
        layers compute in training, outside `torch.no_grad()` and where weights have been replaced; so merge adapters
        first. What torch does not count as a change of a weight is not noticed: one through `.data`, one of a weight
        made in `torch.inference_mode()`, and one under a compiled encoder; so call this again after such a change.

        Args:
            enabled (`bool`, *optional*, defaults to `True`): `False` undoes it.
            batch_size (`int`, *optional*, defaults to 1): windows that will run at once.

        Returns:
            `LiteWhisperEncoder`: this one.

        Raises:
            ValueError: a projection is neither a linear layer nor a low-rank pair, or its weights are not in memory.
        """
        shapes = {
            pair: (pair.in_features, pair.out_features) for pair in self.modules() if isinstance(pair, LowRankLinear)
        }
        positions = self.config.max_source_positions
        inference: list[InferenceLayer] = []
        if enabled:
            x = self.conv1.weight.new_empty(batch_size, positions)
            break_even = break_even_ranks({(i, pair.rank, o) for pair, (i, o) in shapes.items()}, x)
            slower = {pair for pair, shape in shapes.items() if pair.rank >= break_even[shape]}
            for layer in self.layers:
                names = [name for name, projection in projections(layer).items() if projection in slower]
                inference.append(InferenceLayer(layer, names, positions))  # type: ignore[arg-type]
        for layer, of_layer in itertools.zip_longest(self.layers, inference):
            layer.inference = of_layer
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers initialises every module through its nearest PreTrainedModel, which is the encoder for these.
        if isinstance(module, LowRankLinear):
            module.reset_parameters(self.config.init_std)
        elif module is self.embed_positions:
            # Whisper does it where it comes to the encoder, which transformers 5 passes over in custom code: it sees no
            # parameters of the encoder's own.
            self.embed_positions.weight.copy_(sinusoids(*self.embed_positions.weight.shape))
        else:
            super()._init_weights(module)


class LiteWhisperModel(CompleteWeights, WhisperModel):
    """`WhisperModel` with a `LiteWhisperEncoder`."""

    config_class = LiteWhisperConfig
    _auto_class = "AutoModel"
    _no_split_modules = ["LiteWhisperEncoderLayer", "WhisperDecoderLayer"]

    def __init__(self, config: LiteWhisperConfig) -> None:
        super(WhisperModel, self).__init__(config)  # past WhisperModel's own, which would build the dense encoder
        self.encoder = LiteWhisperEncoder(config)
        self.decoder = WhisperDecoder(config)
        self.post_init()


class LiteWhisperForConditionalGeneration(CompleteWeights, WhisperForConditionalGeneration):
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

    def optimize_for_inference(
        self, enabled: bool = True, batch_size: int = 1
    ) -> "LiteWhisperForConditionalGeneration":
        """See `LiteWhisperEncoder.optimize_for_inference`; returns the model."""
        self.model.encoder.optimize_for_inference(enabled, batch_size)
        return self

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

        The bias of a compressed `k_proj` is dropped, since Whisper has none there: it adds the same number to a query's
        score of every key, which cancels in the softmax.

        Returns:
            `WhisperForConditionalGeneration`: a stock Whisper with the same outputs, in the same dtype, on the same
            device; no memory is shared.
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
