"""Reading audio: files, folders and Hub datasets in, 16 kHz mono clips and log-mel features out."""

from .clips import Clip, Entry
from .dataset import AudioDataset
from .decoding import SAMPLING_RATE, decode
from .windows import feature_batches, windows_of

__all__ = ["SAMPLING_RATE", "AudioDataset", "Clip", "Entry", "decode", "feature_batches", "windows_of"]
