"""Conversion of a stock Whisper to a compressed model: calibrate, compress, recover, measure, save."""

from .convert import Conversion, convert
from .settings import ConversionSettings

__all__ = ["Conversion", "ConversionSettings", "convert"]
