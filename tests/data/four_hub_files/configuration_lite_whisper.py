# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of a Whisper whose encoder projections are low-rank pairs."""

from collections.abc import Sequence
from typing import Any

from transformers import WhisperConfig

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

# What is multiplied, and so has to be positive; WhisperConfig takes any number.
STACK_SIZES = [f"{half}_{size}" for half in ("encoder", "decoder") for size in ("layers", "attention_heads", "ffn_dim")]
SIZES = ["d_model", *STACK_SIZES, "max_source_positions", "max_target_positions", "num_mel_bins", "vocab_size"]
MOST_LAYERS = MOST_LABELS = 1000  # 10**9 of them would take weeks and all memory, before any weight is looked at

# Written in full into every saved config. transformers would register only the one Auto class it loaded the model with.
AUTO_MAP = {
    "AutoConfig": "configuration_lite_whisper.LiteWhisperConfig",
    "AutoModel": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
    "AutoModelForSpeechSeq2Seq": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
}


def projection_shape(config: WhisperConfig, projection: str) -> tuple[int, int]:
    """(in_features, out_features) of an encoder projection, one of `PROJECTIONS`."""
    narrow, wide = config.d_model, config.encoder_ffn_dim
    return {"fc1": (narrow, wide), "fc2": (wide, narrow)}.get(projection, (narrow, narrow))


class LiteWhisperConfig(WhisperConfig):
    """
    `WhisperConfig` plus the rank of every compressed encoder projection.

    Args:
        low_rank_config (`list[dict[str, int]]`, *optional*):
            One dict per encoder layer that maps the projections which are compressed (`q_proj`, `k_proj`, `v_proj`,
            `out_proj`, `fc1`, `fc2`) to their ranks. A projection that is absent is an ordinary dense layer. Without
            `low_rank_config` the model is exactly Whisper.
        constant_padding (`dict`, *optional*):
            Of the tables of padding: their `rank`, the `margin` of positions to compute first, and `enabled`.

    Raises:
        ValueError: a size is not a positive integer, or the number of layers, a projection's name or a rank does not
            fit the rest of the configuration.
    """

    model_type = "lite-whisper"
    _auto_class = "AutoConfig"  # makes save_pretrained copy this file, however the class was imported

    def __init__(
        self,
        low_rank_config: Sequence[dict[str, int]] | None = None,
        constant_padding: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(labels := kwargs.get("num_labels"), int) and labels > MOST_LABELS:
            raise ValueError(f"num_labels is {labels}; there are no more than {MOST_LABELS}")
        super().__init__(**kwargs)
        if low_rank_config is not None:
            if not isinstance(low_rank_config, (list, tuple)) or not all(isinstance(r, dict) for r in low_rank_config):
                raise ValueError("low_rank_config is no list of dicts, one for each encoder layer, of ranks")
            low_rank_config = [dict(ranks) for ranks in low_rank_config]
        self.low_rank_config = low_rank_config
        self.constant_padding = dict(constant_padding) if isinstance(constant_padding, dict) else constant_padding
        # transformers tells Whisper's decoding, timestamps and language handling by the type of the *instance*; what is
        # saved, and what the Auto classes dispatch on, is the type of the class.
        self.model_type = "whisper"  # type: ignore[misc]
        self.auto_map = {**AUTO_MAP, **(getattr(self, "auto_map", None) or {})}
        self.validate_sizes()
        self.validate_low_rank_config()
        self.validate_constant_padding()

    def validate_sizes(self) -> None:
        """Raises `ValueError`, naming the size, where no Whisper could have it."""
        for name in SIZES:
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} is {size!r}, not a positive integer")
            if name.endswith("layers") and size > MOST_LAYERS:
                raise ValueError(f"{name} is {size}; this package builds no model with more than {MOST_LAYERS}")

    def validate_low_rank_config(self) -> None:
        """Raises `ValueError`, naming layer and projection, where `low_rank_config` does not fit this Whisper."""
        if self.low_rank_config is None:
            return
        if len(self.low_rank_config) != self.encoder_layers:
            raise ValueError(
                f"low_rank_config describes {len(self.low_rank_config)} layers, but the encoder has "
                f"{self.encoder_layers}; give one dict per encoder layer, {{}} for a layer that stays dense"
            )
        for layer, ranks in enumerate(self.low_rank_config):
            for projection, rank in ranks.items():
                if projection not in PROJECTIONS:
                    raise ValueError(
                        f"unknown projection {projection!r} in layer {layer} of low_rank_config; "
                        f"expected one of {', '.join(PROJECTIONS)}"
                    )
                if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                    raise ValueError(f"rank {rank!r} of layer {layer} {projection} is not a positive integer")
                in_features, out_features = projection_shape(self, projection)
                if rank > min(in_features, out_features):
                    raise ValueError(
                        f"rank {rank} of layer {layer} {projection} exceeds its {min(in_features, out_features)} "
                        f"{'inputs' if in_features <= out_features else 'outputs'}; "
                        "lower it or leave the projection dense"
                    )

    def validate_constant_padding(self) -> None:
        """Raises `ValueError` where `constant_padding` is not as it should be."""
        found, kinds = self.constant_padding, {"rank": int, "margin": int, "enabled": bool}
        if found is None:
            return
        if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != kinds:
            raise ValueError("constant_padding is no dict of the integers rank and margin, and of enabled")
        if not 0 < found["rank"] <= self.max_source_positions or found["margin"] < 0:
            raise ValueError("constant_padding has a rank not from 1 to max_source_positions, or a margin below 0")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as it is saved: `auto_map` names the Python files that are saved beside it."""
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP)}
