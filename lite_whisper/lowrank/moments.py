"""Log-mel features in, moments of the encoder's activations out, in one streaming pass."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate.utils import tqdm
from torch import nn
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from ..common.errors import InputError
from ..common.processes import all_reduce, num_processes
from ..common.tensor_files import Checkpoint
from ..models.layers import projection_module
from .spectrum import Side

# The narrow side of each projection. q, k and v share one input, so q_proj stands for all three.
OBSERVED_SIDE: dict[str, Side] = {"q_proj": "input", "out_proj": "input", "fc1": "input", "fc2": "output"}


@dataclass
class Moments:
    """
    Mean and scatter of the frames seen so far; all that a covariance needs, and additive.

    Args:
        count (`float`): number of frames, or the sum of their weights.
        mean (`torch.Tensor` of shape `(features,)`): of the frames.
        scatter (`torch.Tensor` of shape `(features, features)`): the sum of centred outer products.
    """

    count: float
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def zeros(cls, features: int, device: torch.device | None = None) -> "Moments":
        """The moments of no frames, in float64."""
        mean = torch.zeros(features, dtype=torch.float64, device=device)
        return cls(0, mean, torch.zeros(features, features, dtype=torch.float64, device=device))

    def to(self, device: torch.device) -> "Moments":
        """The same on a device, without a copy where they are there."""
        return Moments(self.count, self.mean.to(device), self.scatter.to(device))

    @property
    def covariance(self) -> torch.Tensor:
        """The mean centred outer product, of shape `(features, features)`; `count` must not be 0."""
        return self.scatter / self.count

    def update(self, frames: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """
        Adds frames.

        Every batch is centred by its own mean, so nothing cancels, and multiplied in float32 at least. Sums over
        batches are in float64, so that it does not matter in which order or process they are added up.

        Args:
            frames (`torch.Tensor` of shape `(frames, features)`): of any dtype.
            weights (`torch.Tensor` of shape `(frames,)`, *optional*): how much each counts; 1 by default.
        """
        frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
        weights = None if weights is None else weights.to(frames.dtype)
        count = len(frames) if weights is None else float(weights.sum())
        if not count:
            return
        mean = frames.mean(dim=0) if weights is None else weights @ frames / count
        centred = frames - mean
        self.scatter.add_(centred.t() @ (centred if weights is None else centred * weights[:, None]))
        self._shift(count, mean.double())

    def _shift(self, count: float, mean: torch.Tensor) -> None:
        """Accounts for the distance between two means (Chan, Golub and LeVeque, 1979, eq. 2.1)."""
        total = self.count + count
        delta = mean - self.mean
        self.scatter.addr_(delta, delta, alpha=self.count * count / total)
        self.mean.add_(delta, alpha=count / total)
        self.count = total

    def __add__(self, other: "Moments") -> "Moments":
        if not self.count or not other.count:
            return self if self.count else other
        total = Moments(self.count, self.mean.clone(), self.scatter + other.scatter)
        total._shift(other.count, other.mean)
        return total

    def all_reduced(self) -> "Moments":
        """The moments of the frames of all processes together; of one process themselves, without a copy."""
        if num_processes() == 1:
            return self
        count = all_reduce(torch.tensor(self.count, dtype=torch.float64, device=self.mean.device)).item()
        count = int(count) if isinstance(self.count, int) else count
        mean = all_reduce(self.mean * self.count) / (count or 1)
        delta = self.mean - mean
        return Moments(count, mean, all_reduce(self.scatter.addr(delta, delta, alpha=self.count)))


EncoderMoments = list[dict[str, Moments]]
"""One dict per encoder layer, from the projections in `OBSERVED_SIDE` to the moments of that side."""


@torch.no_grad()
def collect_moments(
    model: WhisperForConditionalGeneration,
    batches: Iterable[torch.Tensor],
    num_windows: int | None = None,
    checkpoint: "Checkpoint | None" = None,
) -> EncoderMoments:
    """
    Runs audio through the encoder once and gathers what low-rank compression needs to know of its activations.

    Second moments are enough, since cov(Wx) = W cov(x) W^T; they are kept for the narrow side of each projection.
    Memory: four d x d matrices in float64 per encoder layer, whatever the amount of audio (1.7 GB for large-v3), on the
    model's device. Of several processes each computes its shard of the batches, and all get the moments of all audio.

    Args:
        model (`WhisperForConditionalGeneration`): the model to calibrate, on any device and in any dtype.
        batches (`Iterable[torch.Tensor]` of shape `(batch, mel_bins, mel_frames)`): log-mel features.
        num_windows (`int`, *optional*): the expected number of windows, for the progress bar.
        checkpoint (`Checkpoint`, *optional*): keeps the sums meanwhile; of a pass that was interrupted it has a part.

    Returns:
        `EncoderMoments`: one dict per layer, from projection to moments in float64.

    Raises:
        InputError: there was no audio, or an activation is NaN or infinite.
    """
    encoder = model.get_encoder()
    moments = empty_moments(encoder.layers)
    all_moments = {f"{i}.{name}": m for i, of_layer in enumerate(moments) for name, m in of_layer.items()}
    sums = {f"{name}.{part}": getattr(m, part) for name, m in all_moments.items() for part in ("mean", "scatter")}
    done = {"batches": 0, "windows": 0, "frames": 0} | (checkpoint.restore(sums) if checkpoint else {})
    for m in all_moments.values():
        m.count = done["frames"]
    hooks = [
        _observe(projection_module(layer, projection), OBSERVED_SIDE[projection], m)
        for layer, of_layer in zip(encoder.layers, moments, strict=True)
        for projection, m in of_layer.items()
    ]
    training = model.training
    model.eval()
    try:
        with tqdm(desc="calibration", unit="window", total=num_windows, initial=done["windows"]) as progress:
            for batch in itertools.islice(batches, done["batches"], None):
                encoder(batch.to(device=model.device, dtype=model.dtype))
                _check_finite(moments)
                progress.update(len(batch))
                done = {
                    "batches": done["batches"] + 1,
                    "windows": done["windows"] + len(batch),
                    "frames": moments[0]["q_proj"].count,
                }
                if checkpoint:
                    checkpoint.save(sums, done)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    moments = [{name: m.all_reduced() for name, m in of_layer.items()} for of_layer in moments]
    if not moments[0]["q_proj"].count:
        raise InputError("there is no calibration audio; name a dataset with audio", setting="dataset")
    return moments


def empty_moments(layers: Iterable[WhisperEncoderLayer]) -> EncoderMoments:
    """Those of no frames; all is allocated at once, so that too little memory shows before the audio is read."""
    moments: EncoderMoments = []
    for layer in layers:
        moments.append({})
        for projection, side in OBSERVED_SIDE.items():
            linear = projection_module(layer, projection)
            features = linear.in_features if side == "input" else linear.out_features
            moments[-1][projection] = Moments.zeros(features, linear.weight.device)
    return moments


def _observe(linear: nn.Linear, side: Side, moments: Moments) -> torch.utils.hooks.RemovableHandle:
    def update(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        moments.update((inputs[0] if side == "input" else output).flatten(end_dim=-2))

    return linear.register_forward_hook(update)


def _check_finite(moments: EncoderMoments) -> None:
    named = [(layer, name, of_layer[name]) for layer, of_layer in enumerate(moments) for name in of_layer]
    # A frame that is not finite spreads to the mean and the variances.
    finite = torch.stack([(m.mean.sum() + m.scatter.trace()).isfinite().cpu() for *_, m in named])
    if not finite.all():
        layer, projection, _ = named[int(finite.int().argmin())]
        raise InputError(
            f"activations of encoder layer {layer} {projection} are NaN or infinite; "
            "compute in float32, and check the model's weights if that does not help",
            setting="dtype",
        )


def blended(uniform: dict[str, Moments], weighted: dict[str, Moments], share: float) -> dict[str, Moments]:
    """
    Moments of a layer's frames, each of which counts as a mean of two ways of weighting them.

    Args:
        uniform (`dict[str, Moments]`): in which all frames count the same; the result has their count.
        weighted (`dict[str, Moments]`): in which they do not.
        share (`float`): of the former, between 0 and 1.
    """

    def both(one: Moments, other: Moments) -> Moments:
        parts = ((one, share), (other, 1 - share if other.count else 0))
        scaled = [Moments(part, m.mean, m.scatter * (part / m.count) if part else m.scatter) for m, part in parts]
        total = scaled[0] + scaled[1]
        return Moments(one.count, total.mean, total.scatter * (one.count / total.count))

    return {name: both(uniform[name], weighted[name]) for name in uniform}


def add_moments(first: EncoderMoments, second: EncoderMoments) -> EncoderMoments:
    """The moments of both sets of audio together."""
    return [{name: a[name] + b[name] for name in a} for a, b in zip(first, second, strict=True)]
