"""`lite-whisper evaluate` and `lite-whisper report` as users run them."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jiwer
import pytest
import yaml
from hub_stand_in import HubStandIn
from leaderboard_stand_in import IGNORED_REFERENCE, write_calls, write_parquet
from leaderboard_stand_in import digits as digits_of
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from lite_whisper.audio.calls import CALLS, EARNINGS22
from lite_whisper.cli import report
from lite_whisper.cli.evaluate import build_parser, main, settings_from
from lite_whisper.conversion.saving import save_model_folder
from lite_whisper.evaluation.comparison import EvaluationSettings
from lite_whisper.evaluation.leaderboard import SETS
from lite_whisper.evaluation.manifest import CallChunk, read_manifest
from lite_whisper.lowrank import compress, encoder_spectra, threshold_ranks

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/whisper-digits"
ERRORS = "wer cer substitutions deletions insertions words"
KEYS = f"model dataset {ERRORS} rtfx encoder_seconds decoder_seconds peak_memory fallbacks audio_seconds scoring"


@pytest.fixture(scope="module")
def lite(base_model, moments, tmp_path_factory) -> Path:
    """A strongly compressed miniature, as a folder."""
    folder = tmp_path_factory.mktemp("models") / "lite-digits"
    ranks = threshold_ranks(encoder_spectra(base_model, moments), (0.9, 0.95), 4)
    report = {"base_model": "whisper-digits"}
    save_model_folder(compress(base_model, moments, ranks), MODEL, folder, report)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Ten of the test strings."""
    folder = tmp_path_factory.mktemp("sets") / "digits"
    shutil.copytree(ROOT / "examples/digits/test", folder)
    listing = (folder / "metadata.csv").read_text().splitlines(keepends=True)
    (folder / "metadata.csv").write_text("".join(listing[:11]))
    return folder


@pytest.fixture(scope="module")
def results(lite, digits, tmp_path_factory) -> Path:
    """The results of both models on both sets; tests do not change them."""
    folder = tmp_path_factory.mktemp("results") / "results"
    sets = [str(digits), str(ROOT / "examples/digits/longform")]
    arguments = [str(MODEL), str(lite), "--dataset", *sets, "--output", str(folder), "--json", str(folder / "f.json")]
    assert main([*arguments, "--batch-size", "4"]) == 0
    return folder


def figures(folder: Path) -> list[dict]:
    return json.loads((folder / "f.json").read_text())


def test_figures_are_those_of_jiwer_on_the_corpus(results: Path) -> None:
    rows = figures(results)
    assert [(row["model"], row["dataset"]) for row in rows] == [
        (model, name) for model in ("whisper-digits", "lite-digits") for name in ("digits", "longform")
    ]
    normalize = EnglishTextNormalizer({})
    for row in rows:
        assert list(row) == KEYS.split()
        lines = read_manifest(results / f"MODEL_{row['model']}_DATASET_{row['dataset']}.jsonl")
        references, predictions = ([normalize(getattr(u, name)) for u in lines] for name in ("reference", "prediction"))
        expected = jiwer.process_words(references, predictions)
        assert row["wer"] == pytest.approx(100 * expected.wer)
        assert row["cer"] == pytest.approx(100 * jiwer.cer(references, predictions))
        assert row["substitutions"] == expected.substitutions and row["insertions"] == expected.insertions
        assert row["rtfx"] == pytest.approx(sum(u.duration for u in lines) / sum(u.time for u in lines))
        assert 0 < row["encoder_seconds"] + row["decoder_seconds"] < sum(u.time for u in lines)
        assert row["peak_memory"] > 1e8
    assert rows[0]["wer"] < rows[2]["wer"]


def test_tables_plots_and_card_metadata(results: Path) -> None:
    with (results / "summary.csv").open() as file:
        table = list(csv.DictReader(file))
    for row, expected in zip(table, figures(results), strict=True):
        assert {key: str(value) for key, value in expected.items()} == row
    index = yaml.safe_load((results / "lite-digits.model-index.yml").read_text())["model-index"]
    assert index[0]["name"] == "lite-digits"
    by_set = {each["dataset"]["name"]: each["metrics"] for each in index[0]["results"]}
    assert by_set["digits"][0]["value"] == round(figures(results)[2]["wer"], 3)
    for name in ("error_by_set.png", "error_by_size.png"):
        assert (results / name).read_bytes().startswith(b"\x89PNG")


def test_report_gives_the_same_figures(results: Path, tmp_path: Path, capsys) -> None:
    folder = shutil.copytree(results, tmp_path / "results")
    (folder / "summary.csv").unlink()
    manifests = [str(folder / f"MODEL_{r['model']}_DATASET_{r['dataset']}.jsonl") for r in figures(results)]
    assert report.main([*manifests, "--json", str(tmp_path / "f.json")]) == 0
    assert figures(tmp_path) == figures(results)
    assert (folder / "summary.csv").read_bytes() == (results / "summary.csv").read_bytes()
    said = capsys.readouterr().out
    assert "lite-digits compared with whisper-digits on digits: +" in said and "95 % interval" in said


def test_a_finished_run_is_not_repeated_and_changes_are_refused(
    results: Path, digits: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    folder = shutil.copytree(results, tmp_path / "results")
    arguments = [str(MODEL), "--dataset", str(digits), "--output", str(folder)]
    monkeypatch.setattr("lite_whisper.evaluation.evaluate.transcribe_batch", None)
    assert main([*arguments, "--batch-size", "2"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--num-beams", "2"]) == 1
    said = capsys.readouterr().err
    assert "generation num_beams was 1, now 2" in said and "settings.json" in said
    manifest = folder / "MODEL_whisper-digits_DATASET_digits.jsonl"
    assert manifest.read_bytes() == (results / manifest.name).read_bytes()
    lines = manifest.read_text().split("\n")
    manifest.write_text("\n".join([*lines[:4], lines[4][:30], *lines[5:]]))
    assert main(arguments) == 1
    assert f"{manifest} line 5 is damaged or not a manifest line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (
            "words",
            [],
            "its columns are file_name, words, speaker; name the column with the transcripts, or another dataset "
            "(--text-column)",
        ),
        ("words", ["--text-column", "spoken"], "has no transcripts in spoken: its columns are file_name, words"),
        ("words", ["--text-column", "words"], None),
    ],
)
def test_columns_with_other_names(column, options, message, digits, tmp_path, capsys) -> None:
    folder = shutil.copytree(digits, tmp_path / "set")
    listing = (folder / "metadata.csv").read_text().replace("transcription", column, 1)
    (folder / "metadata.csv").write_text(listing)
    arguments = [str(MODEL), "--dataset", str(folder), "--output", str(tmp_path / "results"), "--num-clips", "2"]
    assert main([*arguments, *options]) == (1 if message else 0)
    assert (message or "") in capsys.readouterr().err


def test_sets_without_any_transcript(tmp_path: Path, capsys) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(ROOT / "examples/digits/test/test_000.flac", tmp_path / "bare")
    assert main([str(MODEL), "--dataset", str(tmp_path / "bare"), "--output", str(tmp_path / "results")]) == 1
    assert "bare has no transcripts" in capsys.readouterr().err


def test_two_models_with_the_same_name(digits: Path, tmp_path: Path, capsys) -> None:
    other = shutil.copytree(MODEL, tmp_path / "whisper-digits")
    assert main([str(MODEL), str(other), "--dataset", str(digits), "--output", str(tmp_path / "results")]) == 1
    assert "two models have the name whisper-digits" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_normalizer_language_and_leaderboard_sets() -> None:
    def settings(*words: str) -> EvaluationSettings:
        return settings_from(build_parser("p").parse_args(["openai/whisper-small", "--dataset", *words]))

    assert settings("x").normalizer == "english"
    german = settings("x", "--language", "German")
    assert (german.decoding.language, german.normalizer) == ("de", "basic")
    sets = settings("esb").dataset
    assert len(sets) == 8 and all(name.startswith("hf-audio/esb-datasets-test-only-sorted:") for name in sets)
    assert len(settings("leaderboard").dataset) == 7 and len(settings("leaderboard-longform").dataset) == 10
    italian = settings("leaderboard-it", "--language", "it")
    assert [name.split(":")[1] for name in italian.dataset] == ["fleurs_it", "mcv_it", "mls_it"]
    assert italian.normalizer == "basic"
    with pytest.raises(SystemExit):
        settings("x", "--language", "klingon")


@pytest.mark.slow
def test_the_leaderboards_sets_by_their_hub_id(tmp_path: Path) -> None:
    """Sets of each kind, in the form in which the Hub has them, streamed from a stand-in."""
    clips = digits_of(7)
    audio, chunks, transcripts = (tmp_path / name for name in ("audio", "chunks", "transcripts"))
    clips_of_set = [(file, text.upper()) for file, text in clips[:3]] + [(clips[3][0], IGNORED_REFERENCE)]
    write_parquet(audio, {"ami_cleaned": ["test"], "fleurs_de": ["test"]}, clips_of_set)
    write_calls(chunks, transcripts, [clips[3:5], clips[5:]])
    sets = [SETS["leaderboard"][0], SETS["leaderboard"][1], SETS["leaderboard-de"][0]]
    folders = dict(zip((name.split(":")[0] for name in sets), (audio, chunks, audio), strict=True))
    with HubStandIn({}, folders | {CALLS[EARNINGS22]: transcripts}) as hub:
        script = "import sys; from lite_whisper_commands import main; sys.exit(main())"
        options = ["--dataset", *sets, "--normalizer", "basic", "--output", "results", "--json", "f.json"]
        result = subprocess.run(
            [sys.executable, "-c", script, "evaluate", str(MODEL), *options, "--scoring", "compounds"],
            env=os.environ | hub.environment(tmp_path / "cache"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert result.returncode == 0, result.stderr
    assert "scoring: with compounds merged as on the Open ASR leaderboard" in result.stdout
    rows = figures(tmp_path)
    assert [(row["dataset"], row["scoring"]) for row in rows] == [(name, "compounds") for name in sets]
    assert rows[0]["wer"] == rows[2]["wer"] < 30 and result.stderr.count("left out 1 clips") == 2
    names = [f"MODEL_whisper-digits_DATASET_{name.replace('/', '-').replace(':', '_')}.jsonl" for name in sets]
    assert names[1].endswith("_ArtificialAnalysis-Earnings22-Cleaned-AA-chunked__test.jsonl")
    lines = read_manifest(tmp_path / "results" / names[1])
    places = [(line.parent_id, line.chunk_index) for line in lines if isinstance(line, CallChunk)]
    assert places == [("4460", 0), ("4460", 1), ("4461", 0), ("4461", 1)]
    assert [line.reference for line in lines[:2]] == [f"{clips[3][1]} {clips[4][1]}"] * 2
    said = [" ".join(line.prediction.strip() for line in lines[start : start + 2]) for start in (0, 2)]
    expected = jiwer.process_words([lines[0].reference, lines[2].reference], [text.lower() for text in said])
    assert rows[1]["words"] == sum(len(text.split()) for _, text in clips[3:])
    assert rows[1]["wer"] == pytest.approx(100 * expected.wer) and rows[1]["wer"] < 30


def test_what_cannot_be_scored_as_the_leaderboard_does(digits: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    output = ["--output", str(tmp_path / "results")]
    assert main([str(MODEL), "--dataset", "leaderboard-de", *output]) == 1
    assert "leaderboard-de requires --language de (--language)" in capsys.readouterr().err
    assert main([str(MODEL), "--dataset", "leaderboard", "--num-clips", "2", *output]) == 1
    assert "Earnings22-Cleaned-AA-chunked::test is scored by whole calls" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "kaldialign", None)
    assert main([str(MODEL), "--dataset", str(digits), "--scoring", "compounds", *output]) == 1
    assert "pip install 'lite-whisper[leaderboard]' (--scoring)" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
