"""
Writes compressed miniatures for the tests here: python build_models.py FOLDER

One is of full rank, one of low rank, and one of low rank knows its padding.
"""

import sys
from pathlib import Path

from transformers import WhisperFeatureExtractor

from lite_whisper.audio import AudioDataset, feature_batches
from lite_whisper.configuration_lite_whisper import PROJECTIONS
from lite_whisper.conversion.saving import save_model_folder
from lite_whisper.lowrank import collect_moments, compress, encoder_spectra, threshold_ranks
from lite_whisper.lowrank.padding import add_padding, learn_padding
from lite_whisper.models.folders import load_base_model

EXAMPLES = Path(__file__).parents[2] / "examples"

base, files = load_base_model(str(EXAMPLES / "whisper-digits"))
extractor = WhisperFeatureExtractor.from_pretrained(files)
clips = AudioDataset([str(EXAMPLES / "digits/calibration")])
batches = list(feature_batches(clips, extractor, 16, 4))
moments = collect_moments(base.eval(), batches)
ranks = {
    "full": [dict.fromkeys(PROJECTIONS, base.config.d_model)] * base.config.encoder_layers,
    "compressed": threshold_ranks(encoder_spectra(base, moments), (0.97, 0.99), 4),
}
for name, of_model in ranks.items():
    save_model_folder(compress(base, moments, of_model), files, Path(sys.argv[1]) / name)
padded = compress(base, moments, ranks["compressed"])
add_padding(padded, learn_padding(padded, batches))
save_model_folder(padded, files, Path(sys.argv[1]) / "padded")
