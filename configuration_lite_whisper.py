# Copyright 2026 The lite-whisper authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of a Whisper whose encoder projections are low-rank pairs."""

from collections.abc import Sequence
from typing import Any

from transformers import WhisperConfig

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

# Tensor sizes, which must be positive; WhisperConfig accepts any number.
STACK_SIZES = [f"{half}_{size}" for half in ("encoder", "decoder") for size in ("layers", "attention_heads", "ffn_dim")]
SIZES = ["d_model", *STACK_SIZES, "max_source_positions", "max_target_positions", "num_mel_bins", "vocab_size"]
MAX_LAYERS = MAX_LABELS = 1000  # a damaged file with 10**9 of them would exhaust memory before any weight is read

# Saved in every config: transformers alone would write only the Auto class that the model was loaded with.
AUTO_MAP = {
    "AutoConfig": "configuration_lite_whisper.LiteWhisperConfig",
    "AutoModel": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
    "AutoModelForSpeechSeq2Seq": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
}


def projection_shape(config: WhisperConfig, projection: str) -> tuple[int, int]:
    """The `(in_features, out_features)` of an encoder projection, one of `PROJECTIONS`."""
    narrow, wide = config.d_model, config.encoder_ffn_dim
    return {"fc1": (narrow, wide), "fc2": (wide, narrow)}.get(projection, (narrow, narrow))


class LiteWhisperConfig(WhisperConfig):
    """
    `WhisperConfig` plus the rank of every compressed encoder projection.

    Args:
        low_rank_config (`list[dict[str, int]]`, *optional*):
            One dict per encoder layer that maps compressed projections (`q_proj`, `k_proj`, `v_proj`, `out_proj`,
            `fc1`, `fc2`) to their ranks. Projections without a rank are dense. Without `low_rank_config` the model is
            exactly Whisper.
        constant_padding (`dict`, *optional*):
            Settings of constant padding: the `rank` of its tables, the `margin` of positions to compute after the end
            of the audio, and whether it is `enabled`.

    Raises:
        ValueError: a size is not a positive integer, or a number of layers, a projection or a rank does not fit the
            rest of the configuration.
    """

    model_type = "lite-whisper"
    _auto_class = "AutoConfig"  # makes save_pretrained copy this file, however the class was imported

    def __init__(
        self,
        low_rank_config: Sequence[dict[str, int]] | None = None,
        constant_padding: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(labels := kwargs.get("num_labels"), int) and labels > MAX_LABELS:
            raise ValueError(f"num_labels is {labels}; the maximum is {MAX_LABELS}")
        super().__init__(**kwargs)
        if low_rank_config is not None:
            if not isinstance(low_rank_config, (list, tuple)) or not all(isinstance(r, dict) for r in low_rank_config):
                raise ValueError(
                    "low_rank_config must be a list of dicts, one per encoder layer, from projections to ranks"
                )
            low_rank_config = [dict(ranks) for ranks in low_rank_config]
        self.low_rank_config = low_rank_config
        self.constant_padding = dict(constant_padding) if isinstance(constant_padding, dict) else constant_padding
        # transformers enables Whisper's decoding, timestamps and language handling by the *instance's* model type; the
        # Auto classes and the saved file use that of the class.
        self.model_type = "whisper"  # type: ignore[misc]
        self.auto_map = {**AUTO_MAP, **(getattr(self, "auto_map", None) or {})}
        self.validate_sizes()
        self.validate_low_rank_config()
        self.validate_constant_padding()

    def validate_sizes(self) -> None:
        """Raises `ValueError` if a size is not a positive integer or there are too many layers."""
        for name in SIZES:
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} is {size!r}, not a positive integer")
            if name.endswith("layers") and size > MAX_LAYERS:
                raise ValueError(f"{name} is {size}; models with more than {MAX_LAYERS} are not supported")

    def validate_low_rank_config(self) -> None:
        """Raises `ValueError` if `low_rank_config` does not fit the encoder."""
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
                self._validate_rank(layer, projection, rank)

    def _validate_rank(self, layer: int, projection: str, rank: Any) -> None:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"rank {rank!r} of layer {layer} {projection} is not a positive integer")
        in_features, out_features = projection_shape(self, projection)
        if rank > min(in_features, out_features):
            raise ValueError(
                f"rank {rank} of layer {layer} {projection} exceeds its {min(in_features, out_features)} "
                f"{'inputs' if in_features <= out_features else 'outputs'}; lower it or leave the projection dense"
            )

    def validate_constant_padding(self) -> None:
        """Raises `ValueError` if `constant_padding` is malformed."""
        settings, types = self.constant_padding, {"rank": int, "margin": int, "enabled": bool}
        if settings is None:
            return
        if not isinstance(settings, dict) or {name: type(value) for name, value in settings.items()} != types:
            raise ValueError("constant_padding must be a dict of the integers rank and margin and the boolean enabled")
        if not 0 < settings["rank"] <= self.max_source_positions or settings["margin"] < 0:
            raise ValueError(
                f"constant_padding has rank {settings['rank']} and margin {settings['margin']}; the rank must be from "
                f"1 to {self.max_source_positions} and the margin not below 0"
            )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as saved, with the Python files that are saved beside it in `auto_map`."""
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP)}
