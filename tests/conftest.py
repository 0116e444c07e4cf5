"""What several tests share: the bundled miniature Whisper and its audio."""

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

if (
    TYPE_CHECKING
):  # tests that also run under transformers 4.57, without the rest that the package needs, begin here too
    from hub_stand_in import HubStandIn

    from lite_whisper.audio import Clip
    from lite_whisper.lowrank.moments import EncoderMoments

EXAMPLES = Path(__file__).parents[1] / "examples"
MINIATURE = EXAMPLES / "whisper-digits"


def pytest_sessionstart() -> None:
    """What the imports made stays to the end: no need to look through it again and again for what is not used."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices on many threads crawl where other programs run, whose load would decide on the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base_model() -> WhisperForConditionalGeneration:
    """The miniature; tests do not change it."""
    return WhisperForConditionalGeneration.from_pretrained(MINIATURE).eval()


@pytest.fixture(scope="session")
def processor() -> WhisperProcessor:
    """The miniature's processor."""
    return WhisperProcessor.from_pretrained(MINIATURE)


@pytest.fixture(scope="session")
def test_clips() -> list["Clip"]:
    """The first 16 strings of the bundled test set."""
    from lite_whisper.audio import AudioDataset

    return [clip for clip, _ in zip(AudioDataset([str(EXAMPLES / "digits/test")]), range(16), strict=False)]


@pytest.fixture(scope="session")
def calibration_batches(processor: WhisperProcessor) -> list[torch.Tensor]:
    """Log-mel features of 16 windows of calibration audio, in batches of 4."""
    from lite_whisper.audio import AudioDataset, feature_batches

    clips = AudioDataset([str(EXAMPLES / "digits/calibration")])
    return list(feature_batches(clips, processor.feature_extractor, 16, 4))


@pytest.fixture(scope="session")
def moments(base_model: WhisperForConditionalGeneration, calibration_batches: list[torch.Tensor]) -> "EncoderMoments":
    """The miniature's moments on these windows."""
    from lite_whisper.lowrank.moments import collect_moments

    return collect_moments(base_model, calibration_batches)


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six clips, each shorter than a window."""
    folder = tmp_path_factory.mktemp("audio") / "speech"
    folder.mkdir()
    for index in range(6):
        shutil.copy(EXAMPLES / f"digits/calibration/calibration_{index:03}.flac", folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature with a card that names licence and languages, its JSON files in a layout of their own."""
    folder = tmp_path_factory.mktemp("base") / MINIATURE.name
    shutil.copytree(MINIATURE, folder)
    for path in folder.glob("*.json"):  # transformers would not write them so
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n\n")
    (folder / "README.md").write_text("---\nlicense: cc-by-sa-4.0\nlanguage:\n- en\n- de\n---\n# whisper-digits\n")
    return folder


@pytest.fixture(scope="session")
def moments_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calibration file of the conversion of `converted`."""
    return tmp_path_factory.mktemp("moments") / "moments.safetensors"


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, base: Path, speech: Path, moments_file: Path) -> Path:
    """The result of a conversion by the published recipe; tests do not change it."""
    from conversions import arguments

    from lite_whisper.cli.convert import main

    output = tmp_path_factory.mktemp("converted") / "lite"
    assert main(arguments(output, speech, "--base-model", base, "--calibration-file", moments_file)) == 0
    return output


@pytest.fixture(scope="session")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uncompressed miniature with precomputed padding; tests do not change it."""
    from lite_whisper.cli.precompute_padding import main
    from lite_whisper.lowrank import padding

    output = tmp_path_factory.mktemp("padded") / "padded"
    options = ["--num-windows", "12", "--device", "cpu", "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padding, "MIN_CLIPS", 48)
        assert main([str(MINIATURE), "--dataset", str(EXAMPLES / "digits/calibration"), *options]) == 0
    return output


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight of the test strings."""
    folder = tmp_path_factory.mktemp("sets") / "digits"
    folder.mkdir()
    source = EXAMPLES / "digits/test"
    listing = (source / "metadata.csv").read_text().splitlines(keepends=True)[:9]
    (folder / "metadata.csv").write_text("".join(listing))
    for line in listing[1:]:
        shutil.copy(source / line.split(",")[0], folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator["HubStandIn"]:
    """A Hub to which this process is logged in."""
    import huggingface_hub
    from hub_stand_in import TOKEN, HubStandIn

    with HubStandIn({}, tokens={TOKEN: "write", "hf_reader": "read"}) as stand_in:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stand_in.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield stand_in
