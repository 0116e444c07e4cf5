"""Moments of activations in, eigenvalues and low-rank factors out; pure functions on tensors."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Side = Literal["input", "output"]


class Factors(NamedTuple):
    """
    y = (x weight1) weight2 + bias

    weight1 : torch.Tensor, shape = (in_features, rank)
    weight2 : torch.Tensor, shape = (rank, out_features)
    bias : torch.Tensor, shape = (out_features,)
    """

    weight1: torch.Tensor
    weight2: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Spectrum:
    """
    The variance of a projection's output along its principal directions, and what the projection costs.

    eigenvalues : torch.Tensor, shape = (min(in_features, out_features),), descending, not negative
    has_bias : bool, whether the dense layer has one (a low-rank pair always does)
    frames : int, from how many frames the eigenvalues were estimated
    """

    eigenvalues: torch.Tensor
    in_features: int
    out_features: int
    has_bias: bool
    frames: int

    @property
    def dense_parameters(self) -> int:
        """Parameters of the projection as it is."""
        return self.in_features * self.out_features + self.has_bias * self.out_features

    def parameters(self, rank: int) -> int:
        """Parameters of a low-rank pair in its place."""
        return rank * (self.in_features + self.out_features) + self.out_features

    def share(self, rank: int) -> float:
        """The share of the output's variance that `rank` directions hold; 1 where there is no variance."""
        total = self.eigenvalues.sum()
        return float(self.eigenvalues[:rank].sum() / total) if total > 0 else 1.0


def _reduced_covariance(
    weight: torch.Tensor, covariance: torch.Tensor, side: Side
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """
    Writes cov(y), y = Wx + b, as Q S Q^T with S no larger than the narrow side of W and Q orthonormal (None: identity).

    From the output side S is the covariance itself. From the input side cov(y) = W cov(x) W^T; where W is tall, W = QR
    leaves S = R cov(x) R^T.
    """
    if side == "output":
        return None, covariance
    if weight.shape[0] <= weight.shape[1]:
        return None, weight @ covariance @ weight.t()
    q, r = torch.linalg.qr(weight)
    return q, r @ covariance @ r.t()


def output_eigenvalues(weight: torch.Tensor, covariance: torch.Tensor, side: Side) -> torch.Tensor:
    """
    The eigenvalues of cov(Wx + b) that can differ from zero.

    Args:
        weight: W, shape = (out_features, in_features).
        covariance: of x or of y, whichever is narrower.
        side: "input" if it is that of x, "output" if that of y.

    Returns:
        float64, shape = (min(in_features, out_features),), descending, clamped at zero.
    """
    _, reduced = _reduced_covariance(weight.double(), covariance.double(), side)
    return torch.linalg.eigvalsh(reduced).flip(0).clamp(min=0)


def factorize(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    covariance: torch.Tensor,
    side: Side,
    rank: int,
) -> Factors:
    """
    The published low-rank form of a linear layer (LiteASR, Kamahori et al., EMNLP 2025, section 3):
    y' = V V^T (W x + b - E[y]) + E[y] with V the `rank` leading principal directions of the outputs.

    Args:
        weight: W, shape = (out_features, in_features).
        bias: b, shape = (out_features,), or None.
        mean: of x or of y, shape = (in_features,) or (out_features,).
        covariance: of the same.
        side: "input" if they are those of x, "output" if those of y.
        rank: at most min(in_features, out_features).

    Returns:
        weight1 = W^T V, weight2 = V^T and the bias that is left, in float64.
    """
    weight, mean, covariance = weight.double(), mean.double(), covariance.double()
    q, reduced = _reduced_covariance(weight, covariance, side)
    directions = torch.linalg.eigh(reduced).eigenvectors[:, -rank:].flip(1)
    if q is not None:
        directions = q @ directions
    offset = torch.zeros_like(weight[:, 0]) if bias is None else bias.double()
    mean_output = weight @ mean + offset if side == "input" else mean
    bias = mean_output + directions @ (directions.t() @ (offset - mean_output))
    return Factors(weight.t() @ directions, directions.t().contiguous(), bias)
