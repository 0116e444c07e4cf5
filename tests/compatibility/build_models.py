"""
Writes compressed miniatures for these tests: python build_models.py FOLDER

One of the two has padding tables.
"""

import sys
from pathlib import Path

from transformers import WhisperFeatureExtractor

from lite_whisper.audio import AudioDataset, feature_batches
from lite_whisper.conversion.saving import save_model_folder
from lite_whisper.lowrank import collect_moments, compress, encoder_spectra, threshold_ranks
from lite_whisper.lowrank.padding import fit_padding, set_padding_tables
from lite_whisper.models.folders import load_base_model

EXAMPLES = Path(__file__).parents[2] / "examples"

base, files = load_base_model(str(EXAMPLES / "whisper-digits"))
extractor = WhisperFeatureExtractor.from_pretrained(files)
clips = AudioDataset([str(EXAMPLES / "digits/calibration")])
batches = list(feature_batches(clips, extractor, 16, 4))
moments = collect_moments(base.eval(), batches)
ranks = threshold_ranks(encoder_spectra(base, moments), (0.97, 0.99), 4)
model = compress(base, moments, ranks)
save_model_folder(model, files, Path(sys.argv[1]) / "compressed")
set_padding_tables(model, fit_padding(model, batches))
save_model_folder(model, files, Path(sys.argv[1]) / "padded")
