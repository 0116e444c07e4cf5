"""Low-rank compression of an encoder: calibration, spectra, rank allocation and factorisation."""

from ..audio import feature_batches
from .allocation import budget_ranks, threshold_ranks
from .compression import compress, encoder_spectra
from .moments import collect_moments
from .sensitivity import collect_sensitivities
from .storage import load_calibration, save_calibration

__all__ = [
    "budget_ranks",
    "collect_moments",
    "collect_sensitivities",
    "compress",
    "encoder_spectra",
    "feature_batches",
    "load_calibration",
    "save_calibration",
    "threshold_ranks",
]
