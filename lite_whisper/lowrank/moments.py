"""Moments of the encoder's activations, collected in one streaming pass over the audio."""

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

# The side of each projection with fewer features. q, k and v share one input, which is stored as q_proj.
OBSERVED_SIDE: dict[str, Side] = {"q_proj": "input", "out_proj": "input", "fc1": "input", "fc2": "output"}


@dataclass
class Moments:
    """
    Running mean and scatter matrix of activation frames. Moments of separate audio can be added.

    Args:
        count (`float`): the number of frames, or the sum of their weights.
        mean (`torch.Tensor` of shape `(features,)`): the mean of the frames.
        scatter (`torch.Tensor` of shape `(features, features)`): the sum of the outer products of the centred frames.
    """

    count: float
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def zeros(cls, features: int, device: torch.device | None = None) -> "Moments":
        """Creates empty moments in float64."""
        mean = torch.zeros(features, dtype=torch.float64, device=device)
        return cls(0, mean, torch.zeros(features, features, dtype=torch.float64, device=device))

    def to(self, device: torch.device) -> "Moments":
        """Returns the moments on `device`; tensors that are already there are not copied."""
        return Moments(self.count, self.mean.to(device), self.scatter.to(device))

    @property
    def covariance(self) -> torch.Tensor:
        """The covariance matrix of shape `(features, features)`; `count` must not be 0."""
        return self.scatter / self.count

    def update(self, frames: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """
        Adds a batch of frames.

        Each batch is centred on its own mean to avoid cancellation and multiplied in at least float32. Batches are
        summed in float64, so the result does not depend on their order or on the process that handles them.

        Args:
            frames (`torch.Tensor` of shape `(frames, features)`): the frames, of any dtype.
            weights (`torch.Tensor` of shape `(frames,)`, *optional*): the weight of each frame; 1 by default.
        """
        frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
        weights = None if weights is None else weights.to(frames.dtype)
        count = len(frames) if weights is None else float(weights.sum())
        if not count:
            return
        mean = frames.mean(dim=0) if weights is None else weights @ frames / count
        centred = frames - mean
        self.scatter.add_(centred.t() @ (centred if weights is None else centred * weights[:, None]))
        self._merge_means(count, mean.double())

    def _merge_means(self, count: float, mean: torch.Tensor) -> None:
        """Merges count and mean and corrects the scatter for it (Chan, Golub and LeVeque, 1979, eq. 2.1)."""
        total = self.count + count
        delta = mean - self.mean
        self.scatter.addr_(delta, delta, alpha=self.count * count / total)
        self.mean.add_(delta, alpha=count / total)
        self.count = total

    def __add__(self, other: "Moments") -> "Moments":
        if not self.count or not other.count:
            return self if self.count else other
        total = Moments(self.count, self.mean.clone(), self.scatter + other.scatter)
        total._merge_means(other.count, other.mean)
        return total

    def all_reduced(self) -> "Moments":
        """The combined moments of all processes. A single process gets `self`, without a copy."""
        if num_processes() == 1:
            return self
        count = all_reduce(torch.tensor(self.count, dtype=torch.float64, device=self.mean.device)).item()
        count = int(count) if isinstance(self.count, int) else count
        mean = all_reduce(self.mean * self.count) / (count or 1)
        delta = self.mean - mean
        return Moments(count, mean, all_reduce(self.scatter.addr(delta, delta, alpha=self.count)))


EncoderMoments = list[dict[str, Moments]]
"""One dict per encoder layer that maps each projection in `OBSERVED_SIDE` to the moments of that side."""


@torch.no_grad()
def collect_moments(
    model: WhisperForConditionalGeneration,
    batches: Iterable[torch.Tensor],
    num_windows: int | None = None,
    checkpoint: "Checkpoint | None" = None,
) -> EncoderMoments:
    """
    Runs audio through the encoder once and collects the moments of its activations.

    Since cov(Wx) = W cov(x) W^T, it suffices to observe the side of each projection with fewer features.

    Memory: four d x d matrices in float64 per encoder layer on the model's device (1.7 GB for large-v3), independent of
    the amount of audio. In a distributed run each process computes its shard of the batches, and all processes return
    the moments of all audio.

    Args:
        model (`WhisperForConditionalGeneration`): the base model, on any device and in any dtype.
        batches (`Iterable[torch.Tensor]` of shape `(batch, mel_bins, mel_frames)`): log-mel features.
        num_windows (`int`, *optional*): the expected number of windows, for the progress bar.
        checkpoint (`Checkpoint`, *optional*): stores intermediate sums so that an interrupted pass can resume.

    Returns:
        `EncoderMoments`: one dict per encoder layer that maps each projection to its moments, in float64.

    Raises:
        InputError: there is no audio, or an activation is NaN or infinite.
    """
    encoder = model.get_encoder()
    moments = empty_moments(encoder.layers)
    all_moments = {f"{i}.{name}": m for i, layer_moments in enumerate(moments) for name, m in layer_moments.items()}
    sums = {f"{name}.{part}": getattr(m, part) for name, m in all_moments.items() for part in ("mean", "scatter")}
    done = {"batches": 0, "windows": 0, "frames": 0} | (checkpoint.restore(sums) if checkpoint else {})
    for m in all_moments.values():
        m.count = done["frames"]
    hooks = [
        _observe(projection_module(layer, projection), OBSERVED_SIDE[projection], m)
        for layer, layer_moments in zip(encoder.layers, moments, strict=True)
        for projection, m in layer_moments.items()
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
    moments = [{name: m.all_reduced() for name, m in layer_moments.items()} for layer_moments in moments]
    if not moments[0]["q_proj"].count:
        raise InputError("no calibration audio found; pass a dataset that contains audio", setting="dataset")
    return moments


def empty_moments(layers: Iterable[WhisperEncoderLayer]) -> EncoderMoments:
    """Creates empty moments for all layers. Allocating them up front reveals insufficient memory early."""
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
    named = [(layer, name, m) for layer, layer_moments in enumerate(moments) for name, m in layer_moments.items()]
    # NaN or infinity in any frame propagates to the mean and the variances.
    finite = torch.stack([(m.mean.sum() + m.scatter.trace()).isfinite().cpu() for *_, m in named])
    if not finite.all():
        layer, projection, _ = named[int(finite.int().argmin())]
        raise InputError(
            f"activations of encoder layer {layer} {projection} are NaN or infinite; "
            "use float32, or check the model's weights if it is in use already",
            setting="dtype",
        )


def blend_moments(uniform: dict[str, Moments], weighted: dict[str, Moments], share: float) -> dict[str, Moments]:
    """
    Interpolates between the unweighted and the weighted moments of a layer's frames.

    Args:
        uniform (`dict[str, Moments]`): moments with equal weights; the result has their counts.
        weighted (`dict[str, Moments]`): moments of the same frames with individual weights.
        share (`float`): the share of the unweighted moments, between 0 and 1.
    """

    def blend(first: Moments, second: Moments) -> Moments:
        parts = ((first, share), (second, 1 - share if second.count else 0))
        scaled = [Moments(part, m.mean, m.scatter * (part / m.count) if part else m.scatter) for m, part in parts]
        total = scaled[0] + scaled[1]
        return Moments(first.count, total.mean, total.scatter * (first.count / total.count))

    return {name: blend(uniform[name], weighted[name]) for name in uniform}
