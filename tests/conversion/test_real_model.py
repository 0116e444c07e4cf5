"""A small conversion of a real Whisper, from beginning to end, where one is at hand."""

import os
from pathlib import Path

import pytest
from conversions import CLIPS, ROOT, TEST_CLIPS, report

from lite_whisper.audio import AudioDataset
from lite_whisper.cli.convert import main
from lite_whisper.evaluation.decoding import transcribe
from lite_whisper.evaluation.word_error_rate import text_normalizer, word_errors
from lite_whisper.models.folders import load_model

WHISPER = Path(os.environ.get("WHISPER", ROOT / "build/whisper-base"))  # as in the Makefile


@pytest.mark.slow
@pytest.mark.skipif(not WHISPER.is_dir(), reason="no real Whisper is at hand; `make real` needs and builds one")
def test_a_real_whisper_hears_what_it_heard_before(tmp_path: Path) -> None:
    """Its own transcripts before are the reference."""
    output = tmp_path / "lite"
    options = ["--base-model", WHISPER, "--dataset", CLIPS, "--ratio", 0.81, "--num-windows", 4, "--output", output]
    assert main(list(map(str, options))) == 0
    sizes = [report(output)[when]["encoder_parameters"] for when in ("before", "after")]
    assert 0.75 * sizes[0] < sizes[1] <= 0.81 * sizes[0]
    clips = list(AudioDataset([str(TEST_CLIPS)], need_text=True))[:8]
    before, after = (transcribe(*load_model(str(folder)), clips, 8).texts for folder in (WHISPER, output))
    normalize = text_normalizer("english", load_model(str(output))[1].tokenizer)
    references = [normalize(text) for text in before]
    errors = sum(word_errors(text, normalize(other)) for text, other in zip(references, after, strict=True))
    assert errors <= 0.2 * sum(len(text.split()) for text in references)
