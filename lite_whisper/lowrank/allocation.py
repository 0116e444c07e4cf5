"""Choice of a rank for every projection from the spectra."""

import math
from collections.abc import Callable

from ..common.errors import InputError
from .spectrum import Spectrum

EncoderSpectra = list[dict[str, Spectrum]]
"""One dict per encoder layer that maps each projection to its spectrum."""

Ranks = list[dict[str, int]]
"""One dict per encoder layer that maps each compressed projection to its rank: the model's `low_rank_config`."""


def threshold_ranks(
    spectra: EncoderSpectra, thresholds: tuple[float, float] = (0.99, 0.999), multiple: int = 16
) -> Ranks:
    """
    Chooses ranks by the published recipe (LiteASR, Kamahori et al., EMNLP 2025): for each projection independently,
    the smallest rank that explains more than a given fraction of the variance.

    A projection stays dense if no rank reaches the threshold or if the low-rank pair would have more parameters than
    the dense layer. The latter is the paper's rule "rank above d/2 for attention, above 0.8 d for the MLP".

    Args:
        spectra (`EncoderSpectra`): the spectra of all projections.
        thresholds (`tuple[float, float]`): the fractions for attention (q, k, v, out) and for the MLP (fc1, fc2).
        multiple (`int`): ranks are multiples of this number.

    Returns:
        `Ranks`: the chosen ranks.

    Raises:
        InputError: a threshold is not between 0 and 1, the multiple is not positive, or the audio has too few frames to
            estimate a rank.
    """
    if not all(0 < threshold < 1 for threshold in thresholds):
        raise InputError(
            f"thresholds {thresholds} must lie between 0 and 1, for example 0.99:0.999", setting="thresholds"
        )
    if multiple < 1:
        raise InputError(f"rank multiple {multiple} must be at least 1", setting="rank_multiple")
    ranks: Ranks = [{} for _ in spectra]
    for layer, layer_spectra in enumerate(spectra):
        for projection, spectrum in layer_spectra.items():
            threshold = thresholds[projection in ("fc1", "fc2")]
            candidates = range(multiple, len(spectrum.eigenvalues) + 1, multiple)
            rank = next((rank for rank in candidates if spectrum.explained_variance(rank) > threshold), None)
            if rank is None or spectrum.parameters(rank) > spectrum.dense_parameters:
                continue
            if rank >= spectrum.frames:
                raise InputError(
                    f"rank {rank} of layer {layer} {projection} needs at least {rank + 1} frames of calibration audio, "
                    f"got {spectrum.frames}; add at least {rank + 1 - spectrum.frames} more frames",
                    setting="num_windows",
                )
            ranks[layer][projection] = rank
    return ranks


def threshold_ranks_within(spectra: EncoderSpectra, budget: float, multiple: int = 16) -> Ranks:
    """
    Chooses ranks by the published recipe with the highest thresholds that stay within a parameter budget.

    The threshold for the MLP is the tenth root of the attention threshold, as with the published 0.99 and 0.999.

    Args:
        spectra (`EncoderSpectra`): the spectra of all projections, with variances as eigenvalues.
        budget (`float`): the maximum number of parameters of all projections together.
        multiple (`int`): ranks are multiples of this number.

    Returns:
        `Ranks`: the chosen ranks.

    Raises:
        InputError: no thresholds satisfy the budget.
    """

    def ranks(exponent: float) -> Ranks:
        return threshold_ranks(spectra, (math.exp(-exponent), math.exp(-exponent / 10)), multiple)

    low, high = 1e-9, 700.0
    if total_cost(spectra, ranks(high)) > budget:
        raise InputError(
            f"no thresholds of the published recipe reach {budget:,.0f} parameters; raise the budget or lower the rank "
            "multiple",
            setting="rank_multiple",
        )
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if total_cost(spectra, ranks(middle)) <= budget else (middle, high)
    return ranks(high)


def parameter_cost(spectrum: Spectrum, rank: int | None) -> float:
    """The number of parameters of a projection at `rank`, or dense if `rank` is `None`."""
    return spectrum.dense_parameters if rank is None else spectrum.parameters(rank)


def total_cost(
    spectra: EncoderSpectra, ranks: Ranks, cost: Callable[[Spectrum, int | None], float] = parameter_cost
) -> float:
    """The total cost of all projections at these ranks."""
    return sum(
        cost(spectrum, layer_ranks.get(projection))
        for layer_spectra, layer_ranks in zip(spectra, ranks, strict=True)
        for projection, spectrum in layer_spectra.items()
    )


def smallest_cost(
    spectra: EncoderSpectra, multiple: int = 16, cost: Callable[[Spectrum, int | None], float] = parameter_cost
) -> float:
    """The lowest possible total cost of all projections."""
    return sum(
        min(choice[0] for choice in _choices(spectrum, multiple, cost))
        for layer_spectra in spectra
        for spectrum in layer_spectra.values()
    )


def discarded_eigenvalues(spectra: EncoderSpectra, ranks: Ranks) -> list[dict[str, float]]:
    """The sum of the eigenvalues that each projection discards at its rank; 0 for dense projections."""
    return [
        {
            projection: float(spectrum.eigenvalues[layer_ranks.get(projection, len(spectrum.eigenvalues)) :].sum())
            for projection, spectrum in layer_spectra.items()
        }
        for layer_spectra, layer_ranks in zip(spectra, ranks, strict=True)
    ]


def budget_ranks(
    spectra: EncoderSpectra,
    budget: float,
    multiple: int = 16,
    cost: Callable[[Spectrum, int | None], float] = parameter_cost,
) -> Ranks:
    """
    Chooses the ranks that minimise the discarded eigenvalues under one budget for all projections.

    The eigenvalues of all projections must share one unit, such as the loss, so that they can be summed. This is a
    Lagrangian relaxation: for a multiplier mu, each projection independently minimises discarded(rank) + mu *
    cost(rank), with dense as one of the choices. As mu decreases, each projection moves along the lower convex hull of
    its (cost, discarded) points. The hull edges of all projections are taken in order of steepness. A projection stops
    at its first edge that exceeds the budget; the others may use the remainder.

    Args:
        spectra (`EncoderSpectra`): the spectra of all projections.
        budget (`float`): the maximum total cost of the projections, in the unit of `cost`.
        multiple (`int`): ranks are multiples of this number.
        cost (`Callable`): the cost of a projection at a rank, or dense (`None`); by default its number of parameters.

    Returns:
        `Ranks`: the chosen ranks.

    Raises:
        InputError: even the smallest ranks exceed the budget.
    """
    ranks: list[dict[str, int | None]] = [{} for _ in spectra]
    edges = []
    total = 0.0
    for layer, layer_spectra in enumerate(spectra):
        for projection, spectrum in layer_spectra.items():
            start, *rest = _lower_hull(_choices(spectrum, multiple, cost))
            ranks[layer][projection], total = start[2], total + start[0]
            for before, after in zip([start, *rest], rest, strict=False):
                gain = (before[1] - after[1]) / (after[0] - before[0])
                edges.append((gain, after[0] - before[0], layer, projection, after[2]))
    if total > budget:
        raise InputError(
            f"the smallest ranks cost {total:,.0f}, more than the projections' budget of {budget:,.0f}; "
            "raise the budget or lower the rank multiple",
            setting="rank_multiple",
        )
    finished = set()
    # Sorting keeps the order of edges within a hull because they become less steep along it.
    for _, step, layer, projection, rank in sorted(edges, key=lambda edge: -edge[0]):
        if (layer, projection) in finished:
            continue
        if total + step > budget:
            finished.add((layer, projection))
            continue
        ranks[layer][projection], total = rank, total + step
    return [{name: rank for name, rank in layer_ranks.items() if rank is not None} for layer_ranks in ranks]


_Choice = tuple[float, float, int | None]  # cost, discarded, rank


def _choices(spectrum: Spectrum, multiple: int, cost: Callable[[Spectrum, int | None], float]) -> list[_Choice]:
    """Dense, and all ranks that are cheaper than dense and supported by enough frames, in order of increasing cost."""
    discarded = (spectrum.eigenvalues.sum() - spectrum.eigenvalues.cumsum(0)).clamp(min=0).tolist()
    dense = cost(spectrum, None)
    ranks = range(multiple, min(len(discarded), spectrum.frames - 1) + 1, multiple)
    low_rank: list[_Choice] = [(cost(spectrum, rank), discarded[rank - 1], rank) for rank in ranks]
    return [*sorted(choice for choice in low_rank if choice[0] < dense), (dense, 0.0, None)]


def _lower_hull(choices: list[_Choice]) -> list[_Choice]:
    """The choices on the lower convex hull, with increasing cost and decreasing loss."""
    hull: list[_Choice] = []
    for choice in choices:
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (choice[0] - hull[-2][0]) >= (choice[1] - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        if not hull or choice[1] < hull[-1][1]:
            hull.append(choice)
    return hull
