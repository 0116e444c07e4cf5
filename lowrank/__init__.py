"""Low-rank compression of an encoder: calibration, spectra, ranks, factors."""

from .allocation import threshold_ranks
from .calibration import add_moments, collect_moments, feature_batches, load_moments, save_moments
from .compression import compress, encoder_spectra

__all__ = [
    "add_moments",
    "collect_moments",
    "compress",
    "encoder_spectra",
    "feature_batches",
    "load_moments",
    "save_moments",
    "threshold_ranks",
]
