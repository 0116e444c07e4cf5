"""Spectra in, a rank for every projection out; pure functions."""

from ..errors import InputError
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
    holds more than a share of the variance.

    A projection stays dense where no such rank is left or the pair would be larger than the layer it replaces, which
    is the paper's "rank above d/2 for attention, above 0.8 d for the MLP".

    Args:
        spectra (`EncoderSpectra`): of every projection.
        thresholds (`tuple[float, float]`): the shares for attention (q, k, v, out) and for the MLP (fc1, fc2).
        multiple (`int`): ranks are multiples of it.

    Raises:
        InputError: a threshold is not between 0 and 1, the multiple is not positive, or there are fewer frames than a
            rank needs.
    """
    if not all(0 < threshold < 1 for threshold in thresholds):
        raise InputError(f"thresholds {thresholds} must lie between 0 and 1, for example 0.99:0.999")
    if multiple < 1:
        raise InputError(f"rank multiple {multiple} must be at least 1")
    ranks: Ranks = [{} for _ in spectra]
    for layer, of_layer in enumerate(spectra):
        for projection, spectrum in of_layer.items():
            threshold = thresholds[projection in ("fc1", "fc2")]
            candidates = range(multiple, len(spectrum.eigenvalues) + 1, multiple)
            rank = next((rank for rank in candidates if spectrum.share(rank) > threshold), None)
            if rank is None or spectrum.parameters(rank) > spectrum.dense_parameters:
                continue
            if rank >= spectrum.frames:
                raise InputError(
                    f"rank {rank} of layer {layer} {projection} needs {rank + 1} frames of audio and there are "
                    f"{spectrum.frames}; add audio for at least {rank + 1 - spectrum.frames} more frames"
                )
            ranks[layer][projection] = rank
    return ranks
