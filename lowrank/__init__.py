"""Low-rank compression of an encoder: calibration, spectra, ranks, factors."""
