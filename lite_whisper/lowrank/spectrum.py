"""Eigenvalues and low-rank factors of a projection, computed from the moments of its activations."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Side = Literal["input", "output"]


class Factors(NamedTuple):
    """
    The low-rank form of a linear layer: y = (x weight1) weight2 + bias.

    Args:
        weight1 (`torch.Tensor` of shape `(in_features, rank)`): the first factor.
        weight2 (`torch.Tensor` of shape `(rank, out_features)`): the second factor.
        bias (`torch.Tensor` of shape `(out_features,)`): the bias.
    """

    weight1: torch.Tensor
    weight2: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Spectrum:
    """
    The variance of a projection's output along its principal directions, and the size of the projection.

    Args:
        eigenvalues (`torch.Tensor` of shape `(min(in_features, out_features),)`): in descending order, non-negative.
        in_features (`int`): the number of inputs of the projection.
        out_features (`int`): the number of its outputs.
        has_bias (`bool`): whether the dense layer has a bias (a low-rank pair always has one).
        frames (`int`): the number of frames from which the eigenvalues were estimated.
    """

    eigenvalues: torch.Tensor
    in_features: int
    out_features: int
    has_bias: bool
    frames: int

    @property
    def dense_parameters(self) -> int:
        """The number of parameters of the dense projection."""
        return self.in_features * self.out_features + self.has_bias * self.out_features

    def parameters(self, rank: int) -> int:
        """The number of parameters of a low-rank pair with this rank."""
        return rank * (self.in_features + self.out_features) + self.out_features

    def explained_variance(self, rank: int) -> float:
        """The fraction of the output's variance explained by the first `rank` directions; 1 if the variance is zero."""
        total = self.eigenvalues.sum()
        return float(self.eigenvalues[:rank].sum() / total) if total > 0 else 1.0


class Metric(NamedTuple):
    """
    A metric on a projection's outputs in which |root e|^2 is the estimated increase in loss caused by an error e.

    Both matrices use the coordinates of `reduced_weight`, where r = min(in_features, out_features).

    Args:
        root (`torch.Tensor` of shape `(r, r)`): the symmetric positive definite square root of the metric.
        inverse (`torch.Tensor` of shape `(r, r)`): the inverse of `root`.
    """

    root: torch.Tensor
    inverse: torch.Tensor


def reduced_weight(weight: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """
    Factorises W = Q R, where Q has orthonormal columns and R has no more rows than columns.

    If W has more rows than columns, its outputs span at most in_features dimensions; Q is a basis of this subspace and
    R is square. Otherwise Q is the identity (`None`) and R is W.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): W.

    Returns:
        `tuple[torch.Tensor | None, torch.Tensor]`: Q, of shape `(out_features, in_features)`, or `None`, and R.
    """
    if weight.shape[0] <= weight.shape[1]:
        return None, weight
    q, r = torch.linalg.qr(weight)
    return q, r


def loss_metric(weight: torch.Tensor, sensitivity: torch.Tensor, damping: float) -> Metric:
    """
    Computes the metric from the damped Fisher information: root = (G + damping * mean(diag(G)) * I)^(1/2).

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): W.
        sensitivity (`torch.Tensor` of shape `(r, r)`): G = E[g g^T] at the outputs, or W^T G W if W has more rows than
            columns, as returned by `collect_sensitivities`.
        damping (`float`): the weight of the plain squared error; positive.

    Returns:
        `Metric`: the metric in float64, in the coordinates of `reduced_weight`.
    """
    q, r = reduced_weight(weight.double())
    gradient = sensitivity.double()
    if q is not None:  # W^T G W = R^T (Q^T G Q) R
        gradient = torch.linalg.solve(r.t(), torch.linalg.solve(r.t(), gradient).t())
    values, vectors = torch.linalg.eigh((gradient + gradient.t()) / 2)
    values = values.clamp(min=0)
    roots = (values + damping * values.mean()).clamp(min=torch.finfo(values.dtype).tiny).sqrt()
    return Metric((vectors * roots) @ vectors.t(), (vectors / roots) @ vectors.t())


def _reduced_covariance(
    weight: torch.Tensor, covariance: torch.Tensor, side: Side
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Q of `reduced_weight`, and cov(y) for y = Wx + b in its coordinates."""
    if side == "output":
        return None, covariance
    q, r = reduced_weight(weight)
    return q, r @ covariance @ r.t()


def output_eigenvalues(
    weight: torch.Tensor, covariance: torch.Tensor, side: Side, metric: Metric | None = None
) -> torch.Tensor:
    """
    Computes the min(in_features, out_features) leading eigenvalues of cov(Wx + b), or of A cov(Wx + b) A with a metric
    of root A. All others are zero.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): W.
        covariance (`torch.Tensor` of shape `(r, r)`): the covariance of x or of y, whichever has fewer features.
        side (`str`): `"input"` for the covariance of x, `"output"` for the covariance of y.
        metric (`Metric`, *optional*): the loss metric on the outputs; the eigenvalues are then in units of the loss.

    Returns:
        `torch.Tensor` of shape `(min(in_features, out_features),)`: in float64, in descending order, clamped at zero.
    """
    _, reduced = _reduced_covariance(weight.double(), covariance.double(), side)
    if metric is not None:
        reduced = metric.root @ reduced @ metric.root
    return torch.linalg.eigvalsh(reduced).flip(0).clamp(min=0)


def factorize(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    covariance: torch.Tensor,
    side: Side,
    rank: int,
    metric: Metric | None = None,
) -> Factors:
    """
    Computes the low-rank form of a linear layer (LiteASR, Kamahori et al., EMNLP 2025, section 3):
    y' = V V^T (W x + b - E[y]) + E[y], where V holds the `rank` leading principal directions of the outputs y.

    With a metric of root A it is y' = A^-1 V V^T A (W x + b - E[y]) + E[y], where V holds the principal directions of
    A y.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): W.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): b.
        mean (`torch.Tensor` of shape `(in_features,)` or `(out_features,)`): the mean of x or of y.
        covariance (`torch.Tensor` of shape `(features, features)`): the covariance of x or of y.
        side (`str`): `"input"` for the mean and covariance of x, `"output"` for y.
        rank (`int`): the rank, at most min(in_features, out_features).
        metric (`Metric`, *optional*): the loss metric on the outputs.

    Returns:
        `Factors`: weight1 = W^T A V and weight2 = V^T A^-1, passed through `balance_factors`, and the new bias, in
        float64.
    """
    weight, mean, covariance = weight.double(), mean.double(), covariance.double()
    q, reduced = _reduced_covariance(weight, covariance, side)
    if metric is None:
        into = out = torch.linalg.eigh(reduced).eigenvectors[:, -rank:].flip(1)
    else:
        directions = torch.linalg.eigh(metric.root @ reduced @ metric.root).eigenvectors[:, -rank:].flip(1)
        into, out = metric.root @ directions, metric.inverse @ directions
    if q is not None:
        into, out = q @ into, q @ out
    offset = torch.zeros_like(weight[:, 0]) if bias is None else bias.double()
    mean_output = weight @ mean + offset if side == "input" else mean
    bias = mean_output + out @ (into.t() @ (offset - mean_output))
    return balance_factors(Factors(weight.t() @ into, out.t(), bias))


def balance_factors(factors: Factors) -> Factors:
    """
    Rescales the factors so that both have the same singular values, the square roots of those of their product.

    With a metric, the scales of the two factors differ by orders of magnitude. Adam changes all weights by about the
    same amount, so its first step would destroy the smaller factor.
    """
    basis1, first = torch.linalg.qr(factors.weight1)
    basis2, second = torch.linalg.qr(factors.weight2.t())
    left, values, right = torch.linalg.svd(first @ second.t())
    weight1 = basis1 @ left * values.sqrt()
    weight2 = (basis2 @ right.t() * values.sqrt()).t()
    return Factors(weight1.contiguous(), weight2.contiguous(), factors.bias)
