"""Spectra in, a rank for every projection out; pure functions."""

import math
from collections.abc import Callable

from ..common.errors import InputError
from .spectrum import Spectrum

EncoderSpectra = list[dict[str, Spectrum]]
"""One dict per encoder layer, from projection to spectrum."""

Ranks = list[dict[str, int]]
"""One dict per encoder layer, from each compressed projection to its rank: the `low_rank_config` of the model."""


def threshold_ranks(
    spectra: EncoderSpectra, thresholds: tuple[float, float] = (0.99, 0.999), multiple: int = 16
) -> Ranks:
    """
    The published recipe (LiteASR, Kamahori et al., EMNLP 2025): in every projection by itself the smallest rank that
    holds more than a fraction of the variance.

    A projection stays dense where no such rank is left or the pair would be larger than the layer it replaces, which
    is the paper's "rank above d/2 for attention, above 0.8 d for the MLP".

    Args:
        spectra (`EncoderSpectra`): of every projection.
        thresholds (`tuple[float, float]`): the fractions for attention (q, k, v, out) and for the MLP (fc1, fc2).
        multiple (`int`): ranks are multiples of it.

    Raises:
        InputError: a threshold is not between 0 and 1, the multiple is not positive, or there are fewer frames than a
            rank needs.
    """
    if not all(0 < threshold < 1 for threshold in thresholds):
        raise InputError(
            f"thresholds {thresholds} must lie between 0 and 1, for example 0.99:0.999", setting="thresholds"
        )
    if multiple < 1:
        raise InputError(f"rank multiple {multiple} must be at least 1", setting="rank_multiple")
    ranks: Ranks = [{} for _ in spectra]
    for layer, of_layer in enumerate(spectra):
        for projection, spectrum in of_layer.items():
            threshold = thresholds[projection in ("fc1", "fc2")]
            candidates = range(multiple, len(spectrum.eigenvalues) + 1, multiple)
            rank = next((rank for rank in candidates if spectrum.explained_variance(rank) > threshold), None)
            if rank is None or spectrum.parameters(rank) > spectrum.dense_parameters:
                continue
            if rank >= spectrum.frames:
                raise InputError(
                    f"rank {rank} of layer {layer} {projection} needs {rank + 1} frames of audio and there are "
                    f"{spectrum.frames}; add audio for at least {rank + 1 - spectrum.frames} more frames",
                    setting="num_windows",
                )
            ranks[layer][projection] = rank
    return ranks


def threshold_ranks_within(spectra: EncoderSpectra, budget: float, multiple: int = 16) -> Ranks:
    """
    The published recipe at a given size: the highest thresholds whose ranks stay within a budget of parameters.

    The threshold of the MLP is the tenth root of that of attention, as with the published 0.99 and 0.999.

    Args:
        spectra (`EncoderSpectra`): of every projection, eigenvalues being variances.
        budget (`float`): parameters of all projections together.
        multiple (`int`): ranks are multiples of it.

    Raises:
        InputError: no thresholds lead to so small a size.
    """

    def ranks(exponent: float) -> Ranks:
        return threshold_ranks(spectra, (math.exp(-exponent), math.exp(-exponent / 10)), multiple)

    low, high = 1e-9, 700.0
    if total_cost(spectra, ranks(high)) > budget:
        raise InputError(
            f"no thresholds of the published recipe give {budget:,.0f} parameters; let ranks be multiples of a smaller "
            "number",
            setting="rank_multiple",
        )
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if total_cost(spectra, ranks(middle)) <= budget else (middle, high)
    return ranks(high)


def parameter_cost(spectrum: Spectrum, rank: int | None) -> float:
    """The parameters of a projection at a rank, or dense (None)."""
    return spectrum.dense_parameters if rank is None else spectrum.parameters(rank)


def total_cost(
    spectra: EncoderSpectra, ranks: Ranks, cost: Callable[[Spectrum, int | None], float] = parameter_cost
) -> float:
    """What all projections cost at these ranks."""
    return sum(
        cost(spectrum, of_layer.get(projection))
        for spectra_of_layer, of_layer in zip(spectra, ranks, strict=True)
        for projection, spectrum in spectra_of_layer.items()
    )


def smallest_cost(
    spectra: EncoderSpectra, multiple: int = 16, cost: Callable[[Spectrum, int | None], float] = parameter_cost
) -> float:
    """What all projections cost at the ranks that cost least."""
    return sum(
        min(choice[0] for choice in _choices(spectrum, multiple, cost))
        for of_layer in spectra
        for spectrum in of_layer.values()
    )


def discarded(spectra: EncoderSpectra, ranks: Ranks) -> list[dict[str, float]]:
    """The sum of the eigenvalues that each projection loses at its rank; 0 where it stays dense."""
    return [
        {
            projection: float(spectrum.eigenvalues[of_layer.get(projection, len(spectrum.eigenvalues)) :].sum())
            for projection, spectrum in spectra_of_layer.items()
        }
        for spectra_of_layer, of_layer in zip(spectra, ranks, strict=True)
    ]


def budget_ranks(
    spectra: EncoderSpectra,
    budget: float,
    multiple: int = 16,
    cost: Callable[[Spectrum, int | None], float] = parameter_cost,
) -> Ranks:
    """
    The ranks that lose least while all projections together stay within a budget.

    The eigenvalues must be in one unit, such as that of the loss, so that what is discarded may be added up over
    projections of all kinds. For a multiplier mu every projection by itself takes the rank that minimises
    discarded(rank) + mu * cost(rank), dense being one choice; as mu falls, the projections move along the lower convex
    hulls of their (cost, discarded) points, one edge at a time and the steepest first. The first edge that does not
    fit ends its projection, later ones may still fill what is left.

    Args:
        spectra (`EncoderSpectra`): of every projection.
        budget (`float`): what the projections may cost together, in the unit of `cost`.
        multiple (`int`): ranks are multiples of it.
        cost (`Callable`): what a projection costs at a rank or dense (None); parameters by default.

    Raises:
        InputError: the smallest ranks cost more than the budget already.
    """
    ranks: list[dict[str, int | None]] = [{} for _ in spectra]
    edges = []
    total = 0.0
    for layer, of_layer in enumerate(spectra):
        for projection, spectrum in of_layer.items():
            start, *rest = _lower_hull(_choices(spectrum, multiple, cost))
            ranks[layer][projection], total = start[2], total + start[0]
            for before, after in zip([start, *rest], rest, strict=False):
                gain = (before[1] - after[1]) / (after[0] - before[0])
                edges.append((gain, after[0] - before[0], layer, projection, after[2]))
    if total > budget:
        raise InputError(
            f"the smallest ranks cost {total:,.0f} and the budget for the projections is {budget:,.0f}; "
            "raise the budget, or let ranks be multiples of a smaller number",
            setting="rank_multiple",
        )
    ended = set()
    # Edges of one hull come in its order, since they get less steep along it.
    for _, step, layer, projection, rank in sorted(edges, key=lambda edge: -edge[0]):
        if (layer, projection) in ended:
            continue
        if total + step > budget:
            ended.add((layer, projection))
            continue
        ranks[layer][projection], total = rank, total + step
    return [{name: rank for name, rank in of_layer.items() if rank is not None} for of_layer in ranks]


_Choice = tuple[float, float, int | None]  # cost, discarded, rank


def _choices(spectrum: Spectrum, multiple: int, cost: Callable[[Spectrum, int | None], float]) -> list[_Choice]:
    """Every rank that its frames can support and that is cheaper than dense, and dense, by rising cost."""
    discarded = (spectrum.eigenvalues.sum() - spectrum.eigenvalues.cumsum(0)).clamp(min=0).tolist()
    dense = cost(spectrum, None)
    ranks = range(multiple, min(len(discarded), spectrum.frames - 1) + 1, multiple)
    pairs: list[_Choice] = [(cost(spectrum, rank), discarded[rank - 1], rank) for rank in ranks]
    return [*sorted(pair for pair in pairs if pair[0] < dense), (dense, 0.0, None)]


def _lower_hull(choices: list[_Choice]) -> list[_Choice]:
    """The choices on the lower convex hull, of falling loss and rising cost."""
    hull: list[_Choice] = []
    for choice in choices:
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (choice[0] - hull[-2][0]) >= (choice[1] - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        if not hull or choice[1] < hull[-1][1]:
            hull.append(choice)
    return hull
