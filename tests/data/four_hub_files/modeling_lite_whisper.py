# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""Whisper whose encoder projections are low-rank pairs (LiteASR, Kamahori et al., EMNLP 2025)."""

import copy
import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder, WhisperEncoderLayer, sinusoids

from .configuration_lite_whisper import LiteWhisperConfig
from .inference_lite_whisper import (
    DIRECTIONS,
    LENGTHS,
    LOUDEST_FLOOR,
    InferenceLayer,
    PaddingStates,
    followed_by_padding,
    projections,
    within_range,
)
from .kernels_lite_whisper import Int8Product, break_even_ranks, by_heads_pays, has_int8

LEAST_FILLED = 1 / 32  # of the window; what is shorter counts as this


def end_of_sound(input_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the padding of log-mel features: the trailing frames in which every bin holds the lowest value of the clip.

    Takes features of shape `(batch, mel_bins, mel_frames)`. Gives the frames before the padding, `(batch,)`, and what
    the padding depends on, `(batch, 3)`: 1, the lowest value plus 1, and log2 of the share of the window before it.
    """
    lowest = input_features.amin(dim=(1, 2))
    sounding = (input_features != lowest[:, None, None]).any(dim=1)
    ends = (sounding * torch.arange(1, sounding.shape[1] + 1, device=sounding.device)).amax(dim=1)
    filled = (ends / sounding.shape[1]).clamp(min=LEAST_FILLED).log2()
    return ends, torch.stack([torch.ones_like(filled), lowest.float() + 1, filled], dim=1)


class LowRankLinear(nn.Module):
    """
    A linear layer of limited rank: y = (x weight1) weight2 + bias.

    `weight1` has the shape `(in_features, rank)`, `weight2` `(rank, out_features)` and `bias` `(out_features,)`.
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
        self.padding_states: Any = PaddingStates(config) if config.constant_padding else None
        self.inference: InferenceLayer | None = None  # see LiteWhisperEncoder.optimize_for_inference
        self.register_load_state_dict_post_hook(LiteWhisperEncoderLayer.derive)

    def derive(self, *_: Any) -> None:
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
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        coefficients: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in Whisper, or by `InferenceLayer`; with `coefficients` padding follows the positions that are given."""
        masked = attention_mask is not None or kwargs.get("layer_head_mask") is not None
        # Other attention than torch's, such as eager attention, may be asked for what that does not return.
        other = getattr(self.self_attn.config, "_attn_implementation", None) != "sdpa"
        plain = self.training or torch.is_grad_enabled() or masked or kwargs.get("output_attentions") or other
        if not plain and self.inference is not None:
            self.inference = self.inference.current(self)
        if not plain and self.inference is not None:
            hidden_states = self.inference.forward(self, hidden_states, coefficients)
        elif coefficients is not None:
            return self.with_padding(hidden_states, coefficients)
        else:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)  # type: ignore[arg-type]
        return (hidden_states, None) if "layer_head_mask" in kwargs else hidden_states  # a tuple up to transformers 4

    def with_padding(self, hidden_states: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """As in Whisper, without dropout; attention sees the padding too, see `PaddingStates`."""
        attention, x = self.self_attn, self.self_attn_layer_norm(hidden_states)
        inputs, mixing, bias = self.padding_states(x, coefficients)
        key, value = (followed_by_padding(of(inputs), mixing) for of in (attention.k_proj, attention.v_proj))
        heads = (y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for y in (attention.q_proj(x), key, value))
        mixed = F.scaled_dot_product_attention(*heads, bias)  # type: ignore[call-arg]
        hidden_states = hidden_states + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        hidden = self.fc1(self.final_layer_norm(hidden_states))
        return within_range(hidden_states + self.fc2(self.activation_fn(hidden)))


class CompleteWeights:
    """For models that are loaded with all their weights or not at all."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but `ValueError` where weights are missing, in whose place it puts random ones."""
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
        self.padding_states: Any = PaddingStates(config, DIRECTIONS) if config.constant_padding else None
        self.post_init()

    def forward(self, input_features: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As in Whisper; where the features end in padding, that is not computed but known, see `PaddingStates`."""
        asked = any(
            kwargs.get(name, getattr(self.config, name, usual)) not in (None, usual)
            for name, usual in (("output_attentions", False), ("output_hidden_states", False), ("return_dict", True))
        )
        plain = asked or kwargs.get("head_mask") is not None or self.training or not self.uses_constant_padding
        known = None if plain else self.known_padding(input_features)
        if known is None:
            return super().forward(input_features, *args, **kwargs)
        return BaseModelOutput(self.with_padding(input_features, *known))

    @torch.compiler.disable
    def known_padding(self, input_features: torch.Tensor) -> tuple[int, torch.Tensor] | None:
        """The positions to compute and the coefficients of the padding; None where all have to be computed."""
        ends, coefficients = end_of_sound(input_features)
        first, last, loudest = (x.item() for x in (ends.min(), ends.max(), coefficients[:, 1].max() - 1))
        window, step = self.max_source_positions, -(-self.max_source_positions // LENGTHS)
        positions = -(-(-(-last // 2) + self.config.constant_padding["margin"]) // step) * step
        usual = first > 0 and loudest < LOUDEST_FLOOR and input_features.shape[-1] == 2 * window
        return (positions, coefficients.to(input_features)) if usual and positions < window else None

    @property
    def uses_constant_padding(self) -> bool:
        """Whether padding is taken for constant in evaluation mode, see `use_constant_padding`."""
        return bool(self.config.constant_padding and self.config.constant_padding["enabled"])

    def use_constant_padding(self, enabled: bool = True) -> "LiteWhisperEncoder":
        """Switches whether padding is taken for constant in evaluation mode; `ValueError` where it is not known."""
        if self.config.constant_padding:
            self.config.constant_padding["enabled"] = enabled
        elif enabled:
            raise ValueError("the model does not know its padding; lite-whisper pad adds what is missing")
        return self

    def with_padding(self, input_features: torch.Tensor, positions: int, coefficients: torch.Tensor) -> torch.Tensor:
        """What `forward` returns, with so many positions computed and the others constant; has a gradient."""
        hidden_states = F.gelu(self.conv1(input_features[:, :, : 2 * positions + 2]))  # one frame more than is seen
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
        Makes the encoder faster without changing its outputs by more than rounding.

        The weights, and what is saved, stay as they are. Beside them there are then the first factors of q, k and v
        once more, what attention in the reduced dimension needs, and the dense products of those pairs that take longer
        than these on this device at this batch size, which is measured (a few seconds). All of it follows the model to
        other devices and dtypes, through training, `load_state_dict` and changes of weights in place. Plain layers
        compute in training, outside `torch.no_grad()` and where weights have been replaced; so merge adapters first.
        Call this again after a change that torch does not count: one through `.data`, one of a weight made in
        `torch.inference_mode()`, and one under a compiled encoder.

        `enabled=False` undoes it; `batch_size` windows will run at once. With `dtype="int8"` the projections compute
        in 8 bits, and attention in bfloat16 where that is measured to be faster, which changes the outputs by about a
        hundredth; that needs a model in float32 on the CPU. Raises `ValueError` where it cannot, and where a projection
        is neither a linear layer nor a low-rank pair, or its weights are not in memory.
        """
        if dtype not in (None, "int8"):
            raise ValueError(f"dtype is {dtype!r}; give 'int8', or none and the model in the dtype to compute in")
        if dtype and not has_int8(self.conv1.weight):
            raise ValueError("int8 needs a model in float32 on the CPU, and a torch that has quantized products")
        shapes = {
            pair: (pair.in_features, pair.out_features) for pair in self.modules() if isinstance(pair, LowRankLinear)
        }
        positions = self.config.max_source_positions
        inference: list[InferenceLayer] = []
        if enabled:
            x = self.conv1.weight.new_empty(batch_size, positions)
            ranks = {(i, pair.rank, o) for pair, (i, o) in shapes.items()}
            self.break_even = break_even_ranks(ranks, x, bool(dtype))
            slower = {pair for pair, shape in shapes.items() if pair.rank >= self.break_even[shape]}
            heads = self.config.encoder_attention_heads
            by_heads = bool(dtype) and by_heads_pays(x, heads, self.config.d_model // heads)
            for layer in self.layers:
                names = [name for name, projection in projections(layer).items() if projection in slower]
                of_layer = InferenceLayer(layer, names, positions, bool(dtype), by_heads)  # type: ignore[arg-type]
                inference.append(of_layer)
        for layer, of_layer in itertools.zip_longest(self.layers, inference):
            layer.inference = of_layer
        return self

    def inference_report(self) -> str:
        """What `optimize_for_inference` has measured, and what it has chosen by that for each layer, line by line."""
        lines = []
        of_layers = [layer.inference for layer in self.layers if isinstance(layer, LiteWhisperEncoderLayer)]
        for (inputs, outputs), rank in self.break_even.items() if any(of_layers) else ():
            slower = "of no rank that is there" if rank == float("inf") else f"of rank {rank} and more"
            lines.append(f"{inputs} -> {outputs}: pairs {slower} take longer than the dense product")
        for index, of_layer in enumerate(of_layers):
            if of_layer is None:
                lines.append(f"layer {index}: plain")
                continue
            keys, values, width = of_layer.reduction
            reduced = " and ".join(["keys"] * keys + ["values"] * values)
            parts = ["int8" if isinstance(of_layer.products["fc1"], Int8Product) else str(self.dtype)]
            parts += ["attention in bfloat16, head by head"] if of_layer.by_heads else []
            parts += [f"{reduced} in {width} dimensions"] if reduced else []
            parts += [f"{name} multiplied out" for name in of_layer.multiplied_out]
            lines.append(f"layer {index}: {'; '.join(parts)}")
        return "\n".join(lines)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers initialises every module through its nearest PreTrainedModel, which is the encoder for these.
        if isinstance(module, LowRankLinear):
            module.reset_parameters(self.config.init_std)
        elif module is self.embed_positions:
            # Whisper does it at the encoder, which transformers 5 passes over in custom code, without parameters.
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
        self, enabled: bool = True, batch_size: int = 1, dtype: str | None = None
    ) -> "LiteWhisperForConditionalGeneration":
        """See `LiteWhisperEncoder.optimize_for_inference`; returns the model."""
        self.model.encoder.optimize_for_inference(enabled, batch_size, dtype)
        return self

    def inference_report(self) -> str:
        """See `LiteWhisperEncoder.inference_report`."""
        return self.model.encoder.inference_report()

    def use_constant_padding(self, enabled: bool = True) -> "LiteWhisperForConditionalGeneration":
        """See `LiteWhisperEncoder.use_constant_padding`; returns the model."""
        self.model.encoder.use_constant_padding(enabled)
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """
        As in transformers, with the ranks of the layers as they are: merging an adapter may have changed them.

        Raises `ValueError` where a compressed projection is of a type that has no place in the file format.
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

    def generate_with_fallback(self, *args: Any, **kwargs: Any) -> Any:
        """As in Whisper; what looks broken where padding was constant is first decoded again with all positions."""
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
        Multiplies every pair out, for programs that know no low-rank layer; what is known of padding is left out.

        The bias of a compressed `k_proj`, where Whisper has none, is dropped: the number that it adds to a query's
        scores cancels in the softmax. Outputs, dtype and device stay the same; no memory is shared.
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
