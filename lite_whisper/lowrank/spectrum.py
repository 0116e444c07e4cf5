"""Moments of activations in, eigenvalues and low-rank factors out; pure functions on tensors."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Side = Literal["input", "output"]


class Factors(NamedTuple):
    """
    y = (x weight1) weight2 + bias

    Args:
        weight1 (`torch.Tensor` of shape `(in_features, rank)`): the first factor.
        weight2 (`torch.Tensor` of shape `(rank, out_features)`): the second factor.
        bias (`torch.Tensor` of shape `(out_features,)`): what is added.
    """

    weight1: torch.Tensor
    weight2: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Spectrum:
    """
    The variance of a projection's output along its principal directions, and what the projection costs.

    Args:
        eigenvalues (`torch.Tensor` of shape `(min(in_features, out_features),)`): descending, not negative.
        in_features (`int`): of the projection.
        out_features (`int`): of the projection.
        has_bias (`bool`): whether the dense layer has one (a low-rank pair always does).
        frames (`int`): from how many frames the eigenvalues were estimated.
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

    def explained_variance(self, rank: int) -> float:
        """The fraction of the output's variance that `rank` directions hold; 1 where there is no variance."""
        total = self.eigenvalues.sum()
        return float(self.eigenvalues[:rank].sum() / total) if total > 0 else 1.0


class Metric(NamedTuple):
    """
    What makes errors in a projection's output comparable: |root e|^2 is the loss that an error e costs.

    Both are in the coordinates of `reduced_weight`, r = min(in_features, out_features).

    Args:
        root (`torch.Tensor` of shape `(r, r)`): symmetric and positive.
        inverse (`torch.Tensor` of shape `(r, r)`): its inverse.
    """

    root: torch.Tensor
    inverse: torch.Tensor


def reduced_weight(weight: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """
    Writes W as Q R with Q orthonormal and R no taller than wide.

    The outputs of a tall W span no more than in_features dimensions; Q is a basis of these, and R its square factor.
    Where W is not tall, Q is the identity (None) and R is W.

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
    The metric of the Fisher information, damped: (G + damping * mean diagonal of G * I)^(1/2).

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): W.
        sensitivity (`torch.Tensor` of shape `(r, r)`): G = E[g g^T] at the outputs, or W^T G W where W is tall, as
            `collect_sensitivities` gives it.
        damping (`float`): how much of the plain squared error to mix in; positive.

    Returns:
        `Metric`: in float64, in the coordinates of `reduced_weight`.
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
    """cov(y), y = Wx + b, in the coordinates of `reduced_weight`, and the Q of these."""
    if side == "output":
        return None, covariance
    q, r = reduced_weight(weight)
    return q, r @ covariance @ r.t()


def output_eigenvalues(
    weight: torch.Tensor, covariance: torch.Tensor, side: Side, metric: Metric | None = None
) -> torch.Tensor:
    """
    The eigenvalues of cov(Wx + b) that can differ from zero; in a metric A, those of A cov(Wx + b) A.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): W.
        covariance (`torch.Tensor` of shape `(r, r)`): of x or of y, whichever is narrower.
        side (`str`): `"input"` if it is that of x, `"output"` if that of y.
        metric (`Metric`, *optional*): of the outputs; the eigenvalues are then in units of the loss.

    Returns:
        `torch.Tensor` of shape `(min(in_features, out_features),)`, float64, descending, clamped at zero.
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
    The published low-rank form of a linear layer (LiteASR, Kamahori et al., EMNLP 2025, section 3):
    y' = V V^T (W x + b - E[y]) + E[y] with V the `rank` leading principal directions of the outputs.

    In a metric A it is y' = A^-1 V V^T A (W x + b - E[y]) + E[y], V being the directions of A y.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): W.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): b.
        mean (`torch.Tensor` of shape `(in_features,)` or `(out_features,)`): of x or of y.
        covariance (`torch.Tensor` of shape `(features, features)`): of the same.
        side (`str`): `"input"` if they are those of x, `"output"` if those of y.
        rank (`int`): at most min(in_features, out_features).
        metric (`Metric`, *optional*): of the outputs.

    Returns:
        `Factors`: weight1 = W^T A V and weight2 = V^T A^-1, `balanced`, and the bias that is left, in float64.
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
    return balanced(Factors(weight.t() @ into, out.t(), bias))


def balanced(factors: Factors) -> Factors:
    """
    The same map with the singular values of both factors equal: the square roots of those of their product.

    The factors that a metric gives differ in scale by orders of magnitude. One step of Adam, which moves all weights by
    about the same, would then destroy the smaller one.
    """
    basis1, first = torch.linalg.qr(factors.weight1)
    basis2, second = torch.linalg.qr(factors.weight2.t())
    left, values, right = torch.linalg.svd(first @ second.t())
    weight1 = basis1 @ left * values.sqrt()
    weight2 = (basis2 @ right.t() * values.sqrt()).t()
    return Factors(weight1.contiguous(), weight2.contiguous(), factors.bias)
