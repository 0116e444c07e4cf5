"""Audio input: reads files, folders and Hub datasets into 16 kHz mono clips and log-mel features."""

from .clips import Clip, Entry
from .dataset import AudioDataset
from .decoding import SAMPLING_RATE, decode
from .windows import feature_batches, split_into_windows

__all__ = ["SAMPLING_RATE", "AudioDataset", "Clip", "Entry", "decode", "feature_batches", "split_into_windows"]
