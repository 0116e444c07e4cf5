"""What a conversion is to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..common.errors import InputError
from ..models.published import PUBLISHED

NOISE = (0.0, 40.0)  # dB; chosen on held-out calibration strings, see the page on the method
THRESHOLDS = (0.99, 0.999)  # those of the published recipe
PRESETS = ("acc", "plain", "fast")
Noise = tuple[float, float] | tuple[()]


@dataclass(frozen=True)
class ConversionSettings:
    """
    What a conversion is to do. What is left out is filled in.

    Args:
        base_model (`str`): Hub id or folder of the original Whisper.
        output (`Path`): the folder to write.
        dataset (`Sequence[str]`):
            Calibration audio: files, folders, or Hub datasets as `org/name[:config[:split]]`. Not needed where
            `calibration_file` holds the calibration of the published recipe.
        overwrite (`bool`): whether a model folder at `output` is replaced.
        recipe (`str`, *optional*):
            `"loss-aware"` (default): what the recognition loss feels least is cut, to a size of one's choice;
            `"liteasr"`: the published recipe, variance by thresholds.
        encoder_params (`int`, *optional*): how many parameters the encoder may have. One size at the most is given.
        ratio (`float`, *optional*): the share of the encoder's parameters to keep.
        preset (`str`, *optional*):
            `"acc"`, `"plain"` (default) or `"fast"`: the sizes of the published checkpoints, or the same shares of
            other models.
        target_speedup (`float`, *optional*):
            How many times as fast the encoder becomes, in the inference mode, as that of the base model.
        thresholds (`tuple[float, float]`, *optional*):
            With `"liteasr"`: the shares of the variance to keep in attention and in the MLP.
        cost (`str`, *optional*):
            What is spent where it buys most: `"parameters"`, or `"time"`, as much as the parameters would take.
        profile (`Path`, *optional*): with `"time"`: what `conversion.profile` wrote on the machine of the use to come.
        rank_multiple (`int`): ranks are multiples of it.
        num_windows (`int`): windows of calibration audio.
        noise (`tuple`, *optional*):
            White noise is added to each calibration window, of a signal-to-noise ratio in dB drawn between these two;
            `()` for none, which is the default of `"liteasr"`.
        seed (`int`): which samples are taken from the dataset.
        batch_size (`int`): windows that run at once.
        device (`str`, *optional*): cuda where there is a GPU by default.
        dtype (`str`): what the model computes in meanwhile; it is saved in the base model's own.
        calibration_file (`Path`, *optional*): keeps the calibration; where the file exists already, it is not repeated.
        evaluate (`Sequence[str]`): transcribed before and after, for word error rate and encoder time.
        normalizer (`str`): of the texts, one of `NORMALIZERS`.
        recover (`float`, *optional*): minutes for which the factors are then trained to agree with the base model.
        constant_padding (`bool`, *optional*):
            Whether the result then learns what it computes at the silence behind a clip, from the same audio, as
            `precompute_padding` does. What it keeps of that comes on top of the size. By default where the ratio is 1.

    Raises:
        InputError: something is missing, or settings exclude each other.
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
        self._check_sizes()
        self._fill_in()
        if self.dataset is None and not (
            self.recipe == "liteasr" and self.calibration_file and self.calibration_file.exists()
        ):
            raise InputError("calibration audio is needed, like that of the use to come", setting="dataset")
        if self.recover is not None and self.dataset is None:
            raise InputError("recovery trains on the calibration audio; name it", setting="dataset")
        if self.constant_padding and self.dataset is None:
            raise InputError("the padding is learnt from the calibration audio; name it", setting="dataset")

    def _check_sizes(self) -> None:
        """Refuses what does not go together, as it was given."""
        sizes = {name: getattr(self, name) for name in ("encoder_params", "ratio", "preset", "target_speedup")}
        chosen = [name for name, value in {**sizes, "thresholds": self.thresholds}.items() if value is not None]
        if len(chosen) > 1:
            raise InputError(f"{' and '.join(chosen)} exclude each other; give one size", setting=chosen[-1])
        if self.target_speedup and self.cost == "parameters":
            raise InputError("a speed-up is a size by time, not by parameters; leave the cost out", setting="cost")
        by_time = self.cost == "time" or self.target_speedup is not None
        if by_time != (self.profile is not None):
            raise InputError(
                "a size by time needs a profile of the machine, which lite-whisper profile writes, and no other does",
                setting="profile",
            )
        if self.recipe == "loss-aware" and self.thresholds:
            raise InputError("thresholds belong to the published recipe, liteasr; choose a size", setting="thresholds")
        if self.recipe == "liteasr" and [name for name in chosen if name != "thresholds"]:
            raise InputError("the published recipe, liteasr, takes no size; choose thresholds", setting="recipe")
        if by_time and (self.recipe == "liteasr" or self.thresholds):
            raise InputError("a size by time belongs to the loss-aware recipe; leave the other out", setting="recipe")

    def _fill_in(self) -> None:
        recipe = self.recipe or ("liteasr" if self.thresholds else "loss-aware")
        published = recipe == "liteasr"
        self._set(
            recipe=recipe,
            cost=self.cost or ("time" if self.target_speedup else "parameters"),
            noise=(() if published else NOISE) if self.noise is None else self.noise,
            thresholds=(self.thresholds or THRESHOLDS) if published else None,
            constant_padding=self.ratio == 1 if self.constant_padding is None else self.constant_padding,
        )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)  # as the generated __init__ of a frozen dataclass does

    def encoder_budget(self, parameters: int, positions: int) -> int:
        """
        How many parameters the encoder may have.

        Args:
            parameters (`int`): that it has now.
            positions (`int`): how many of them are position embeddings, which the published sizes leave out.
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
