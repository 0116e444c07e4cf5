"""Settings of a conversion: their defaults and which of them can be combined."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..common.errors import InputError
from ..models.published import PUBLISHED

NOISE = (0.0, 40.0)  # dB; chosen on held-out clips, see docs/method.md
THRESHOLDS = (0.99, 0.999)  # as in the published recipe
PRESETS = ("acc", "plain", "fast")
Noise = tuple[float, float] | tuple[()]


@dataclass(frozen=True)
class ConversionSettings:
    """
    Settings of a conversion.

    Optional settings that are None are set to their defaults, some of which depend on other settings.

    Args:
        base_model (`str`): Hub id or folder of the original Whisper.
        output (`Path`): the folder to write.
        dataset (`Sequence[str]`):
            Calibration audio: files, folders, or Hub datasets as `org/name[:config[:split]]`. Can be omitted for the
            published recipe if `calibration_file` exists.
        overwrite (`bool`): whether to replace an existing model folder at `output`.
        recipe (`str`, *optional*):
            `"loss-aware"` (default) minimises the increase in recognition loss at a chosen size; `"liteasr"` is the
            published recipe, which keeps a fraction of the variance.
        encoder_params (`int`, *optional*):
            Maximum number of encoder parameters. At most one of `encoder_params`, `ratio`, `preset`, `target_speedup`
            and `thresholds` can be given.
        ratio (`float`, *optional*): fraction of the encoder's parameters to keep.
        preset (`str`, *optional*):
            `"acc"`, `"plain"` (default) or `"fast"`: the size of the published checkpoint of that name, or the same
            fraction of another model.
        target_speedup (`float`, *optional*):
            Encoder speed-up over the base model in optimised inference. Requires `profile` and implies a time budget.
        thresholds (`tuple[float, float]`, *optional*):
            With `"liteasr"`: fractions of the variance to keep in attention and in the MLP.
        cost (`str`, *optional*):
            Budget to optimise under: `"parameters"` (default), or `"time"` as measured by `profile`; without a target
            speed-up, the time budget is the time that the size in parameters would need.
        profile (`Path`, *optional*):
            With a time budget: the file that `conversion.profile.profile` wrote on the target machine.
        rank_multiple (`int`): ranks are multiples of this number.
        num_windows (`int`): number of windows of calibration audio.
        noise (`tuple`, *optional*):
            White noise is added to each calibration window, at a signal-to-noise ratio drawn from this range in dB;
            `()` for none. Default: `(0.0, 40.0)`, or `()` with `"liteasr"`.
        seed (`int`): seed for sampling the calibration audio and for the noise.
        batch_size (`int`): windows per batch.
        device (`str`, *optional*): device to compute on; default: cuda if there is a GPU.
        dtype (`str`): data type to compute in. The result is saved in the dtype of the base model.
        calibration_file (`Path`, *optional*):
            File in which the calibration statistics are saved, or from which they are loaded if it exists.
        evaluate (`Sequence[str]`):
            Datasets to transcribe before and after compression, for word error rate and encoder time.
        normalizer (`str`): text normalizer, one of `NORMALIZERS`.
        recover (`float`, *optional*): minutes of distillation from the base model after compression.
        constant_padding (`bool`, *optional*):
            Whether to precompute padding after compression, from the same audio, as `precompute_padding` does. The
            padding tables add to the encoder's size. Default: only if `ratio` is 1.

    Raises:
        InputError: a required setting is missing, or settings cannot be combined.
    """

    base_model: str
    output: Path
    dataset: Sequence[str] | None = None
    overwrite: bool = False
    recipe: Literal["loss-aware", "liteasr"] | None = None
    encoder_params: int | None = None
    ratio: float | None = None
    preset: Literal["acc", "plain", "fast"] | None = None
    target_speedup: float | None = None
    thresholds: tuple[float, float] | None = None
    cost: Literal["parameters", "time"] | None = None
    profile: Path | None = None
    rank_multiple: int = 16
    num_windows: int = 64
    noise: Noise | None = None
    seed: int = 0
    batch_size: int = 4
    device: str | None = None
    dtype: str = "float32"
    calibration_file: Path | None = None
    evaluate: Sequence[str] = ()
    normalizer: str = "basic"
    recover: float | None = None
    constant_padding: bool | None = None

    def __post_init__(self) -> None:
        self._check_combinations()
        self._apply_defaults()
        if self.dataset is None and not (
            self.recipe == "liteasr" and self.calibration_file and self.calibration_file.exists()
        ):
            raise InputError(
                "no calibration audio given; pass audio similar to your production data", setting="dataset"
            )
        if self.recover is not None and self.dataset is None:
            raise InputError("recovery trains on the calibration audio, but none is given", setting="dataset")
        if self.constant_padding and self.dataset is None:
            raise InputError("padding is precomputed from the calibration audio, but none is given", setting="dataset")

    def _check_combinations(self) -> None:
        """Rejects settings that cannot be combined. Must run before the defaults are applied."""
        sizes = {name: getattr(self, name) for name in ("encoder_params", "ratio", "preset", "target_speedup")}
        chosen = [name for name, value in {**sizes, "thresholds": self.thresholds}.items() if value is not None]
        if len(chosen) > 1:
            raise InputError(f"{' and '.join(chosen)} cannot be combined; choose one size", setting=chosen[-1])
        if self.target_speedup and self.cost == "parameters":
            raise InputError("a target speed-up implies a time budget; leave the cost unset", setting="cost")
        by_time = self.cost == "time" or self.target_speedup is not None
        if by_time and self.profile is None:
            raise InputError(
                "a time budget requires a profile of the target machine; create one with lite-whisper profile",
                setting="profile",
            )
        if self.profile and not by_time:
            raise InputError("a profile requires a time budget; set the cost to time", setting="cost")
        if self.recipe == "loss-aware" and self.thresholds:
            raise InputError("thresholds apply to the liteasr recipe only; choose a size instead", setting="thresholds")
        if self.recipe == "liteasr" and [name for name in chosen if name != "thresholds"]:
            raise InputError(
                "the liteasr recipe is controlled by thresholds, not by a size; leave one of them out", setting="recipe"
            )
        if by_time and (self.recipe == "liteasr" or self.thresholds):
            raise InputError(
                "a time budget requires the loss-aware recipe; leave liteasr and thresholds out", setting="recipe"
            )

    def _apply_defaults(self) -> None:
        recipe = self.recipe or ("liteasr" if self.thresholds else "loss-aware")
        published = recipe == "liteasr"
        defaults: dict[str, Any] = {
            "recipe": recipe,
            "cost": self.cost or ("time" if self.target_speedup else "parameters"),
            "noise": (() if published else NOISE) if self.noise is None else self.noise,
            "thresholds": (self.thresholds or THRESHOLDS) if published else None,
            "constant_padding": self.ratio == 1 if self.constant_padding is None else self.constant_padding,
        }
        for name, value in defaults.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def encoder_budget(self, parameters: int, positions: int) -> int:
        """
        The maximum number of encoder parameters.

        Args:
            parameters (`int`): number of encoder parameters of the base model.
            positions (`int`): number of position embedding parameters, which the published sizes do not count.
        """
        if self.encoder_params:
            return self.encoder_params
        if self.ratio:
            return int(self.ratio * parameters)
        preset = self.preset or "plain"
        published = PUBLISHED.get(Path(self.base_model).name)
        if published:
            return int(published[preset][0] * 1e6) + positions
        large = PUBLISHED["whisper-large-v3"]
        return int(large[preset][0] / large[""][0] * (parameters - positions)) + positions
