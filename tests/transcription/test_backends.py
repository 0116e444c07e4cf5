"""`lite-whisper transcribe` with CTranslate2 and with int8, against transformers."""

import json
import sys
from pathlib import Path

import pytest

from lite_whisper.cli.transcribe import main
from lite_whisper.transcription import recognizers

EXAMPLES = Path(__file__).parents[2] / "examples"
STOCK = EXAMPLES / "whisper-digits"
SHORT = [str(EXAMPLES / f"digits/test/test_{index:03}.flac") for index in range(8)]
LONG = str(EXAMPLES / "digits/longform/longform_000.flac")


def transcribe(
    folder: Path, *options: str, model: Path = STOCK, sources: tuple[str, ...] = (*SHORT, LONG)
) -> list[dict]:
    output = folder / "out.jsonl"
    command = [*sources, "--model", str(model), "--output", str(output), "--overwrite", "--batch-size", "3"]
    assert main([*command, *options]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.parametrize("language", [[], ["--language", "en"]], ids=["detected", "set"])
@pytest.mark.parametrize("timestamps", ["none", "segment"])
@pytest.mark.parametrize("model", ["stock", "compressed", "padded"])
def test_ctranslate2_gives_the_same_text_as_transformers(
    model: str, timestamps: str, language: list[str], converted: Path, padded: Path, tmp_path: Path
) -> None:
    options = [*language, "--timestamps", timestamps]
    folder = {"stock": STOCK, "compressed": converted, "padded": padded}[model]
    theirs = transcribe(tmp_path, *options, model=folder)
    ours = transcribe(tmp_path, *options, "--backend", "ctranslate2", model=folder)
    different = [place for place, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
    # With transformers, the timestamps of the tiny model decrease in one recording; CTranslate2 prevents that.
    assert different == ([1] if timestamps == "segment" else [])


def test_beams_and_translation_reach_ctranslate2(tmp_path: Path, monkeypatch) -> None:
    from lite_whisper.integrations.ctranslate2_recognizer import CTranslate2Recognizer

    calls = []
    decode = CTranslate2Recognizer._decode
    monkeypatch.setattr(
        CTranslate2Recognizer, "_decode", lambda self, *rest: calls.append(rest[1:]) or decode(self, *rest)
    )
    options = ["--language", "de", "--task", "translate", "--num-beams", "2", "--backend", "ctranslate2"]
    transcribe(tmp_path, *options, sources=(SHORT[0],))
    tokens = json.loads((STOCK / "generation_config.json").read_text())
    start = [tokens["decoder_start_token_id"], tokens["lang_to_id"]["<|de|>"], tokens["task_to_id"]["translate"]]
    assert calls == [([start], 2)]


@pytest.mark.parametrize("backend", ["transformers", "ctranslate2"])
def test_int8(backend: str, padded: Path, tmp_path: Path) -> None:
    theirs = transcribe(tmp_path, "--language", "en", model=padded)
    ours = transcribe(tmp_path, "--language", "en", "--dtype", "int8", "--backend", backend, model=padded)
    same = [one["text"] == other["text"] for one, other in zip(ours, theirs, strict=True)]
    assert sum(same) >= len(same) - 2


def test_auto_picks_the_faster_backend_if_the_texts_agree(tmp_path: Path, monkeypatch, capsys) -> None:
    def clock(*durations: float):
        """A clock that is read before and after every call; the second call of each backend counts."""
        times = [
            moment
            for first, second in zip(durations[::2], durations[1::2], strict=True)
            for moment in (0.0, 0.0, second)
        ]
        return iter(times).__next__

    for seconds, chosen in (((0, 2.0, 0, 1.0), "ctranslate2"), ((0, 1.0, 0, 2.0), "transformers")):
        monkeypatch.setattr(recognizers.time, "perf_counter", clock(*seconds))
        transcribe(tmp_path, "--language", "en", "--backend", "auto", sources=(SHORT[0], SHORT[1]))
        output = capsys.readouterr().out
        assert output.startswith(f"{chosen}: transformers took {seconds[1]:.2f} s for the first recording")
    load = recognizers._load_ctranslate2

    def other_text(*arguments):
        recognizer = load(*arguments)

        class Other:
            def __call__(self, inputs, **options):
                return [{**result, "text": "other"} for result in recognizer(inputs, **options)]

        return Other()

    monkeypatch.setattr(recognizers, "_load_ctranslate2", other_text)
    monkeypatch.setattr(recognizers.time, "perf_counter", clock(0, 2.0, 0, 1.0))
    transcribe(tmp_path, "--language", "en", "--backend", "auto", sources=(SHORT[0], SHORT[1]))
    assert "transformers: " in (output := capsys.readouterr().out) and "its text differs" in output


def test_unsupported_settings_are_rejected(tmp_path: Path, monkeypatch, capsys) -> None:
    command = [SHORT[0], "--model", str(STOCK), "--output", str(tmp_path / "out.jsonl")]
    assert main([*command, "--dtype", "bfloat16", "--backend", "ctranslate2"]) == 1
    assert "does not support bfloat16 on cpu" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lite_whisper.integrations.ctranslate2_recognizer", None)
    assert main([*command, "--backend", "ctranslate2"]) == 1
    assert "pip install 'lite-whisper[faster-whisper]'" in capsys.readouterr().err
    for option in (["--timestamps", "word"], ["--sequential"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--backend", "auto", *option])
        assert stopped.value.code == 2 and "require the transformers backend" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.jsonl"))
