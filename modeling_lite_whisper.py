# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""Whisper whose encoder projections are low-rank pairs (LiteASR, Kamahori et al., EMNLP 2025)."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder, WhisperEncoderLayer, sinusoids

from .configuration_lite_whisper import LiteWhisperConfig
from .inference_lite_whisper import InferenceLayer, build_inference_layers, describe_layers
from .kernels_lite_whisper import has_int8
from .padding_lite_whisper import NUM_DIRECTIONS, PaddingStates, find_padding, followed_by_padding, layer_with_padding


class LowRankLinear(nn.Module):
    """
    A low-rank linear layer: y = (x weight1) weight2 + bias.

    Args:
        in_features (`int`): inputs; `weight1` has the shape `(in_features, rank)`.
        out_features (`int`): outputs; `weight2` has the shape `(rank, out_features)` and `bias` `(out_features,)`.
        rank (`int`): the inner dimension.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight1 = nn.Parameter(torch.empty(in_features, rank))
        self.weight2 = nn.Parameter(torch.empty(rank, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters(in_features**-0.5)

    def reset_parameters(self, std: float) -> None:
        """Initialises the factors so that entries of their product, of variance rank * var1 * var2, have this std."""
        for weight in (self.weight1, self.weight2):
            nn.init.normal_(weight, std=std**0.5 / self.rank**0.25)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x of shape `(..., in_features)` to shape `(..., out_features)`."""
        return F.linear(F.linear(x, self.weight1.t()), self.weight2.t(), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LiteWhisperEncoderLayer(WhisperEncoderLayer):
    """A Whisper encoder layer; the projections in `ranks` are `LowRankLinear` layers of these ranks."""

    def __init__(self, config: LiteWhisperConfig, ranks: dict[str, int]) -> None:
        super().__init__(config)
        for projection, rank in ranks.items():
            parent = self if projection in ("fc1", "fc2") else self.self_attn
            dense = getattr(parent, projection)
            setattr(parent, projection, LowRankLinear(dense.in_features, dense.out_features, rank))
        self.padding_states: Any = PaddingStates(config) if config.constant_padding else None
        self.inference: InferenceLayer | None = None  # see LiteWhisperEncoder.optimize_for_inference
        self.register_load_state_dict_post_hook(LiteWhisperEncoderLayer.rebuild_inference)

    def rebuild_inference(self, *_: Any) -> None:
        """Derives the tensors of optimised inference from the current weights."""
        if self.inference is not None:
            self.inference = self.inference.rebuilt(self)

    def _apply(self, *args: Any, **kwargs: Any) -> "LiteWhisperEncoderLayer":  # called by .to(), .half() and the like
        super()._apply(*args, **kwargs)
        self.rebuild_inference()
        return self

    def train(self, mode: bool = True) -> "LiteWhisperEncoderLayer":
        """Switches between training and evaluation; training uses the plain layer, evaluation the trained weights."""
        was_training = self.training
        super().train(mode)
        if was_training and not mode:
            self.rebuild_inference()
        return self

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        coefficients: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Runs the layer, optimised where possible; takes and returns what Whisper's layer does.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, positions, d_model)`): the layer's input.
            attention_mask (`torch.Tensor`, *optional*): as in Whisper.
            *args (`Any`): as in Whisper.
            coefficients (`torch.Tensor` of shape `(batch, 3)`, *optional*): of constant padding after the positions.
            **kwargs (`Any`): as in Whisper.
        """
        if self.can_optimize(attention_mask, kwargs) and self.inference is not None:
            self.inference = self.inference.up_to_date(self)
            if self.inference is not None:
                hidden_states = self.inference.forward(self, hidden_states, coefficients)
                # transformers 4 passes layer_head_mask and expects a tuple.
                return (hidden_states, None) if "layer_head_mask" in kwargs else hidden_states
        if coefficients is not None:
            return layer_with_padding(self, hidden_states, coefficients)
        return super().forward(hidden_states, attention_mask, *args, **kwargs)  # type: ignore[arg-type]

    def can_optimize(self, attention_mask: torch.Tensor | None, kwargs: dict[str, Any]) -> bool:
        """Whether a call needs nothing that `InferenceLayer` lacks: gradients, masks, attention weights."""
        masked = attention_mask is not None or kwargs.get("layer_head_mask") is not None
        # Callers of other implementations, such as eager attention, may ask for attention weights.
        uses_sdpa = getattr(self.self_attn.config, "_attn_implementation", None) == "sdpa"
        needs_weights = kwargs.get("output_attentions") or not uses_sdpa
        return not (self.training or torch.is_grad_enabled() or masked or needs_weights)


class CompleteWeights:
    """Mixin that rejects checkpoints with missing weights."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Loads a model as transformers does, but raises `ValueError` instead of initialising missing weights."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        if missing := sorted(loaded[1]["missing_keys"]):
            raise ValueError(f"weights are missing from the file: {len(missing)}, the first being {missing[0]}")
        return loaded if output_loading_info else loaded[0]


class LiteWhisperEncoder(CompleteWeights, WhisperEncoder):
    """The Whisper encoder with `LiteWhisperEncoderLayer`s; exactly Whisper's if `low_rank_config` is None."""

    _no_split_modules = ["LiteWhisperEncoderLayer"]

    def __init__(self, config: LiteWhisperConfig) -> None:
        # Whisper's encoder is built without layers, so that memory never holds all of them in dense form.
        encoder_layers, config.encoder_layers = config.encoder_layers, 0
        try:
            super().__init__(config)
        finally:
            config.encoder_layers = encoder_layers
        self.layers = nn.ModuleList(
            LiteWhisperEncoderLayer(config, ranks) for ranks in config.low_rank_config or [{}] * encoder_layers
        )
        self.padding_states: Any = PaddingStates(config, NUM_DIRECTIONS) if config.constant_padding else None
        self.break_even: dict[tuple[int, int], float] = {}  # see optimize_for_inference
        self.post_init()

    def forward(self, input_features: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Encodes log-mel features as Whisper does; padded positions may come from tables, see `PaddingStates`."""
        needs_all = any(
            kwargs.get(name, getattr(self.config, name, usual)) not in (None, usual)
            for name, usual in (("output_attentions", False), ("output_hidden_states", False), ("return_dict", True))
        )
        needs_all = needs_all or kwargs.get("head_mask") is not None or self.training
        padding = self.known_padding(input_features) if self.uses_constant_padding and not needs_all else None
        if padding is None:
            return super().forward(input_features, *args, **kwargs)
        return BaseModelOutput(self.with_padding(input_features, *padding))

    @torch.compiler.disable
    def known_padding(self, input_features: torch.Tensor) -> tuple[int, torch.Tensor] | None:
        """The positions to compute and the coefficients of the padding; None if all have to be computed."""
        return find_padding(input_features, self.max_source_positions, self.config.constant_padding["margin"])

    @property
    def uses_constant_padding(self) -> bool:
        """Whether constant padding is on in evaluation mode, see `use_constant_padding`."""
        return bool(self.config.constant_padding and self.config.constant_padding["enabled"])

    def use_constant_padding(self, enabled: bool = True) -> "LiteWhisperEncoder":
        """Switches constant padding in evaluation mode; raises `ValueError` if the model has no padding tables."""
        if self.config.constant_padding:
            self.config.constant_padding["enabled"] = enabled
        elif enabled:
            raise ValueError("the model has no padding tables; add them with lite-whisper precompute-padding")
        return self

    def with_padding(self, input_features: torch.Tensor, positions: int, coefficients: torch.Tensor) -> torch.Tensor:
        """
        Encodes the first positions and takes the others from the tables; has a gradient.

        Args:
            input_features (`torch.Tensor` of shape `(batch, mel_bins, mel_frames)`): log-mel features.
            positions (`int`): from `known_padding`.
            coefficients (`torch.Tensor` of shape `(batch, 3)`): from `known_padding`.

        Returns:
            `torch.Tensor` of shape `(batch, max_source_positions, d_model)`.
        """
        # conv2 sees 2 * positions + 1 outputs of conv1, which need one more frame.
        hidden_states = F.gelu(self.conv1(input_features[:, :, : 2 * positions + 2]))
        hidden_states = F.gelu(self.conv2(hidden_states))[:, :, :positions].transpose(1, 2)
        hidden_states = hidden_states + self.embed_positions(torch.arange(positions, device=hidden_states.device))
        for layer in self.layers:
            hidden_states = layer(hidden_states, coefficients=coefficients)
        output = self.layer_norm(hidden_states)
        output, mixing, _ = (part.to(output.device) for part in self.padding_states(output, coefficients))
        return followed_by_padding(output, mixing)

    def optimize_for_inference(
        self, enabled: bool = True, batch_size: int = 1, dtype: str | None = None
    ) -> "LiteWhisperEncoder":
        """
        Makes the encoder faster; its outputs change by no more than rounding, except in int8.

        The weights and saved files stay the same. Derived tensors are kept in addition: a copy of the first factors of
        q, k and v, the weights for attention in the reduced dimension, and the merged weights of low-rank pairs that
        are slower than a dense product on this device (measured, which takes a few seconds). They follow the model to
        other devices and dtypes, through training, `load_state_dict` and in-place changes of weights.

        The plain layers still run in training, outside `torch.no_grad()` and after weights have been replaced, so merge
        adapters first. Call this again after changes that torch does not count: through `.data`, to weights made in
        `torch.inference_mode()`, or under a compiled encoder.

        Args:
            enabled (`bool`, *optional*, defaults to `True`): `False` restores the plain layers.
            batch_size (`int`, *optional*, defaults to 1): the number of windows per batch to measure with.
            dtype (`str`, *optional*): `"int8"` computes the projections in int8, and attention in bfloat16 where that
                is faster. This changes the outputs by about one per cent and requires a float32 model on the CPU.

        Returns:
            `LiteWhisperEncoder`: itself.

        Raises:
            ValueError: int8 is not supported here, a projection is neither a linear layer nor a low-rank pair, or its
                weights are not in memory.
        """
        if dtype not in (None, "int8"):
            raise ValueError(f"dtype is {dtype!r}; pass 'int8', or None and convert the model to another dtype")
        if dtype and not has_int8(self.conv1.weight):
            raise ValueError("int8 requires a float32 model on the CPU and a torch build with quantized products")
        inference: list[Any] = [None] * len(self.layers)
        if enabled:
            inference, self.break_even = build_inference_layers(self, batch_size, dtype == "int8")
        for layer, optimized in zip(self.layers, inference, strict=True):
            layer.inference = optimized
        return self

    def inference_report(self) -> str:
        """The measurements of `optimize_for_inference` and its choices for each layer, one per line."""
        layers = [layer.inference for layer in self.layers if isinstance(layer, LiteWhisperEncoderLayer)]
        return "\n".join(describe_layers(layers, self.break_even, self.dtype))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers initialises a module through its nearest PreTrainedModel, here the encoder.
        if isinstance(module, LowRankLinear):
            module.reset_parameters(self.config.init_std)
        elif module is self.embed_positions:
            # Whisper initialises these at the encoder, which transformers 5 skips in custom code.
            self.embed_positions.weight.copy_(sinusoids(*self.embed_positions.weight.shape))
        else:
            super()._init_weights(module)


class LiteWhisperModel(CompleteWeights, WhisperModel):
    """`WhisperModel` with a `LiteWhisperEncoder`."""

    config_class = LiteWhisperConfig
    _auto_class = "AutoModel"
    _no_split_modules = ["LiteWhisperEncoderLayer", "WhisperDecoderLayer"]

    def __init__(self, config: LiteWhisperConfig) -> None:
        super(WhisperModel, self).__init__(config)  # skips WhisperModel, which would build the dense encoder
        self.encoder = LiteWhisperEncoder(config)
        self.decoder = WhisperDecoder(config)
        self.post_init()


class LiteWhisperForConditionalGeneration(CompleteWeights, WhisperForConditionalGeneration):
    """`WhisperForConditionalGeneration` with a `LiteWhisperEncoder`."""

    config_class = LiteWhisperConfig
    _auto_class = "AutoModelForSpeechSeq2Seq"  # makes save_pretrained copy this file in every case
    _no_split_modules = ["LiteWhisperEncoderLayer", "WhisperDecoderLayer"]

    def __init__(self, config: LiteWhisperConfig) -> None:
        super(WhisperForConditionalGeneration, self).__init__(config)  # as in LiteWhisperModel
        self.model = LiteWhisperModel(config)
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.max_target_positions = config.max_target_positions
        self.post_init()

    def optimize_for_inference(
        self, enabled: bool = True, batch_size: int = 1, dtype: str | None = None
    ) -> "LiteWhisperForConditionalGeneration":
        """Optimises the encoder, see `LiteWhisperEncoder.optimize_for_inference`; returns the model."""
        self.model.encoder.optimize_for_inference(enabled, batch_size, dtype)
        return self

    def inference_report(self) -> str:
        """Describes the optimised encoder, see `LiteWhisperEncoder.inference_report`."""
        return self.model.encoder.inference_report()

    def use_constant_padding(self, enabled: bool = True) -> "LiteWhisperForConditionalGeneration":
        """Switches constant padding, see `LiteWhisperEncoder.use_constant_padding`; returns the model."""
        self.model.encoder.use_constant_padding(enabled)
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """
        Saves the model as transformers does, with the current ranks, which merging an adapter may have changed.

        Raises:
            ValueError: a compressed projection has a type that the file format cannot hold.
        """
        saves_adapter_only = getattr(self, "_hf_peft_config_loaded", False)
        for index, ranks in enumerate([] if saves_adapter_only else self.config.low_rank_config or []):
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

    def generate_with_fallback(self, *args: Any, **kwargs: Any) -> Any:
        """Whisper's temperature fallback; with constant padding, the first fallback computes all positions instead."""
        encoder, temperatures, segments = self.model.encoder, kwargs["temperatures"], kwargs["segment_input"]
        if len(temperatures) < 2 or not encoder.uses_constant_padding or encoder.known_padding(segments) is None:
            return super().generate_with_fallback(*args, **kwargs)
        after_one_pass = encoder.register_forward_hook(lambda *_: encoder.use_constant_padding(False) and None)
        try:
            return super().generate_with_fallback(*args, **kwargs | {"temperatures": (temperatures[0], *temperatures)})
        finally:
            after_one_pass.remove()
            encoder.use_constant_padding()

    @torch.no_grad()
    def to_whisper(self) -> WhisperForConditionalGeneration:
        """
        Converts to stock Whisper, for programs without low-rank layers: merges every pair and drops padding tables.

        Outputs, dtype and device stay the same; no memory is shared. The bias of a compressed `k_proj` is dropped, as
        Whisper has none there: it adds the same number to all scores of a query, which cancels in the softmax.

        Returns:
            `WhisperForConditionalGeneration`: the merged model.
        """
        ours = ("architectures", "auto_map", "low_rank_config", "constant_padding", "model_type")
        config = WhisperConfig(**{name: value for name, value in self.config.to_dict().items() if name not in ours})
        state = {name: tensor.clone() for name, tensor in self.state_dict().items() if ".padding_states." not in name}
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
