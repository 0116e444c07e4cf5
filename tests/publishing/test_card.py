"""Model cards and results: metadata, and figures that match the data."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hub_stand_in import Fault, HubStandIn, Repository, Snapshot, contents
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from leaderboard_stand_in import write_tasks

from lite_whisper.cli.convert import build_parser, parse_arguments
from lite_whisper.cli.publish import main
from lite_whisper.evaluation.leaderboard import BENCHMARK, SHORT_FORM
from lite_whisper.evaluation.report import score
from lite_whisper.models.published import PUBLISHED
from lite_whisper.publishing.card import (
    card_data,
    is_rendered,
    recipe_command,
    render_card,
    rendered_card,
    write_evaluation,
)

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(__file__).parent / "card_metadata.schema.json").read_text())
CONVERSIONS = json.loads((ROOT / "benchmarks/results/conversion-shapes.json").read_text())
CARDS = sorted((ROOT / "model_cards").glob("*/README.md"))
NAME = "org/lite-digits"
FILE = ".eval_results/open_asr_leaderboard.yaml"
TASKS = [*SHORT_FORM.values(), "mean_wer", "rtfx", "tedlium_wer"]


def metadata(card: Path) -> dict:
    return yaml.safe_load(card.read_text().split("---\n")[1])


def check_metadata(card: Path) -> dict:
    """What stands above a card, which must fit the schema and survive a round trip through `ModelCardData`."""
    found = metadata(card)
    jsonschema.validate(found, SCHEMA)
    assert yaml.safe_load(ModelCardData(**found).to_yaml()) == found
    assert ModelCard.load(card).data.to_dict() == found
    return found


def test_the_card_of_a_conversion(original: Path, digits: Path) -> None:
    found = check_metadata(original / "README.md")
    assert found["license"] == "cc-by-sa-4.0" and found["language"] == ["en", "de"]
    assert found["pipeline_tag"] == "automatic-speech-recognition" and "lite-whisper" in found["tags"]
    assert "base_model" not in found and "datasets" not in found  # neither is on the Hub
    said = json.loads((original / "compression.json").read_text())
    [result] = ModelCard.load(original / "README.md").data.eval_results
    assert (result.dataset_type, result.metric_value) == ("digits", round(said["after"]["word_error_rate"], 3))
    text = (original / "README.md").read_text()
    row = re.search(r"word error rate on digits .*\| ([\d.]+) % \| ([\d.]+) % \|", text)
    assert row
    expected = [f"{said[model]['word_error_rate']:.2f}" for model in ("before", "after")]
    assert list(row.groups()) == expected
    sizes = [f"{said[model]['encoder_parameters'] / 1e6:.2f} M" for model in ("before", "after")]
    assert f"| encoder parameters | {sizes[0]} | {sizes[1]} |" in text
    assert "![Rank of every encoder projection](ranks.png)" in text
    assert "kamahori2025liteasr" in text and "radford2023whisper" in text
    assert is_rendered(original)


def test_the_figures_of_the_card_are_those_of_the_manifests(lite: Path, manifests: list[Path], monkeypatch) -> None:
    """This model's figures are in the metadata, all models' in a table with a row per dataset."""
    monkeypatch.setattr("lite_whisper.cli.publish.publish", lambda folder, *_: Published)
    monkeypatch.setattr("lite_whisper.cli.publish.check_destination", lambda _: None)
    assert main([str(lite), "org/name", "--manifests", *map(str, manifests)]) == 0
    found = check_metadata(lite / "README.md")
    evaluations = score(manifests)
    expected = [
        ([*e.result.dataset.split(":"), None, None][:3], metric, round(getattr(e.result, metric), 3))
        for e in evaluations
        if e.result.model == "lite-digits"
        for metric in ("wer", "cer")
    ]
    results = ModelCard.load(lite / "README.md").data.eval_results
    assert [
        ([r.dataset_type, r.dataset_config, r.dataset_split], r.metric_type, r.metric_value) for r in results
    ] == expected
    assert len(found["model-index"][0]["results"]) == 2
    assert found["model-index"][0]["name"] == "name"
    text = (lite / "README.md").read_text()
    assert "| set | whisper-digits | org/name |" in text
    for e in evaluations[:2]:
        same_set = [f"{other.result.wer:.2f}" for other in evaluations if other.result.dataset == e.result.dataset]
        assert f"| {e.result.dataset} | {' | '.join(same_set)} |" in text
    assert len(re.findall(r"^- org/name vs whisper-digits on .*: [+-][\d.]+ \([+-].* to [+-].*\)$", text, re.M)) == 2
    assert "basic normalizer" in text
    written = (lite / "evaluation.json").read_text()
    assert not any(u.reference in written or u.prediction in written for e in evaluations for u in e.utterances)


def test_cards_of_finished_models(original: Path, manifests: list[Path], tmp_path: Path, monkeypatch) -> None:
    """What `benchmarks/cards.py` writes: the card with its figures, and where these come from."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cards

    monkeypatch.setattr(cards, "CARDS", tmp_path)
    monkeypatch.setattr(cards, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["cards.py", str(original), "--manifests", *map(str, manifests)])
    (tmp_path / "lite-digits").mkdir()
    cards.main()
    results = json.loads((tmp_path / "cards-whisper-digits.json").read_text())
    assert results["rows"] == json.loads((tmp_path / "lite-digits/evaluation.json").read_text())["results"]
    rates = [f"{row['wer']:.2f}" for row in results["rows"] if row["dataset"] == "digits"]
    assert f"| digits | {' | '.join(rates)} |" in (tmp_path / "lite-digits/README.md").read_text()
    models, _, others = results["command"].partition(" --dataset ")
    assert models == "lite-whisper evaluate whisper-digits lite-digits"
    assert {"digits", "other:config:split", "--normalizer", "basic"} < set(others.split())


class Published:
    """What the Hub would say."""

    pr_url = None
    commit_url = "there"


def test_manifests_of_other_weights_are_refused(lite: Path, manifests: list[Path], capsys, monkeypatch) -> None:
    monkeypatch.setattr("lite_whisper.cli.publish.check_destination", lambda _: None)
    before = (lite / "README.md").read_text()
    assert (
        main([str(lite), "org/name", "--manifests", *(str(path) for path in manifests if "lite" not in path.name)]) == 1
    )
    assert "give its manifests" in capsys.readouterr().err
    assert (lite / "README.md").read_text() == before and not (lite / "evaluation.json").exists()


def test_a_card_that_was_edited_is_kept(lite: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("lite_whisper.cli.publish.publish", lambda folder, *_: Published)
    monkeypatch.setattr("lite_whisper.cli.publish.check_destination", lambda _: None)
    assert main([str(lite), "org/name"]) == 0
    assert "# org/name" in (lite / "README.md").read_text()
    edited = (lite / "README.md").read_text() + "\nMy own words.\n"
    (lite / "README.md").write_text(edited)
    assert main([str(lite), "org/other"]) == 0
    assert (lite / "README.md").read_text() == edited
    assert "is kept" in caplog.text
    (lite / "README.md").unlink()
    assert main([str(lite), "org/other"]) == 0
    assert "# org/other" in (lite / "README.md").read_text()


def test_what_was_not_measured_does_not_appear() -> None:
    compression = {"base_model": "openai/whisper-small", "low_rank_config": [{}], "upgraded_from": "org/other"}
    card = render_card("org/name", compression)
    assert card.data.base_model == "openai/whisper-small" and card.data.eval_results is None
    body = card.content.split("---\n", 2)[2]
    for absent in ("error rate", "million", "## Results", "```sh", "None", "Undefined", "%", "2026"):
        assert absent not in body, absent


@pytest.mark.slow
def test_the_programs_on_the_card_run(lite: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copy(sorted(digits.glob("*.flac"))[0], tmp_path / "audio.flac")
    programs = re.findall(r"```python\n(.*?)```", (lite / "README.md").read_text(), flags=re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True)
        assert result.returncode == 0, result.stderr.decode()
        assert result.stdout


def test_the_command_on_the_card_repeats_the_compression(original: Path) -> None:
    said, _ = card_data(original)
    command = recipe_command(original.name, said)
    assert command and command in (original / "README.md").read_text()
    arguments = parse_arguments(build_parser("convert"), shlex.split(command)[2:]).settings
    assert arguments.recipe == "liteasr" and list(arguments.thresholds) == said["recipe"]["thresholds"]
    assert {name: getattr(arguments, name) for name in ("num_windows", "seed", "dtype", "rank_multiple")} == {
        "num_windows": said["calibration"]["num_windows"],
        "seed": said["calibration"]["seed"],
        "dtype": said["calibration"]["dtype"],
        "rank_multiple": said["recipe"]["rank_multiple"],
    }
    assert list(arguments.noise) == said["calibration"]["noise"]


@pytest.mark.parametrize("recovery", [{}, {"minutes": 2.0}, {"minutes": 2.0, "datasets": ["by lite-whisper recover"]}])
@pytest.mark.parametrize("padding", [False, True])
def test_the_command_recovers_and_pads_where_that_was_done(original: Path, recovery: dict, padding: bool) -> None:
    said = card_data(original)[0] | {"recovery": recovery, "constant_padding": padding}
    command = recipe_command(original.name, said)
    assert command
    arguments = parse_arguments(build_parser("convert"), shlex.split(command)[2:]).settings
    assert arguments.recover == (2 if recovery.keys() == {"minutes"} else None)
    assert arguments.constant_padding == padding


def with_normalizer(manifest: Path, normalizer: str) -> str:
    """Makes a manifest say that its texts were normalised otherwise; returns whose weights it is of."""
    settings = manifest.with_suffix(".settings.json")
    said = json.loads(settings.read_text())
    settings.write_text(json.dumps(said | {"normalizer": normalizer}))
    return said["encoder_weights"]


def test_each_set_has_one_normalizer(lite: Path, manifests: list[Path], tmp_path: Path) -> None:
    """Sets of several languages may have one each, models on the same set may not."""
    for path in manifests:
        for file in path.parent.glob(f"{path.stem}*"):
            shutil.copy(file, tmp_path)
    copies = [tmp_path / path.name for path in manifests]
    weights = [with_normalizer(path, "basic") for path in copies]
    same_set = [path for path in copies if path.stem.endswith(copies[0].stem.partition("_DATASET_")[2])]
    with_normalizer(same_set[0], "english")
    with pytest.raises(ValueError, match="different normalizers"):
        write_evaluation(lite, copies, weights[-1])
    for path in same_set[1:]:
        with_normalizer(path, "english")
    write_evaluation(lite, copies, weights[-1])
    name = copies[0].stem.partition("_DATASET_")[2]
    assert f"Whisper's english ({name}) and basic (" in str(rendered_card(lite, "name"))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_the_family_is_as_its_data_say(card: Path) -> None:
    """Cards are those of their data: what is planned is the published size, what is made no larger than it."""
    data, evaluation = card_data(card.parent)
    assert is_rendered(card.parent), "make cards"
    check_metadata(card)
    base = data["base_model"].removeprefix("openai/")
    command = recipe_command(card.parent.name, data)
    assert command and command in card.read_text()
    arguments = parse_arguments(build_parser("convert"), shlex.split(command)[2:]).settings
    assert arguments.base_model == data["base_model"] and arguments.output == Path(card.parent.name)
    preset = {"acc": "acc", "fast": "fast"}.get(card.parent.name.rpartition("-")[2], "plain")
    published = 1e6 * PUBLISHED[base][preset][0]
    if "after" in data:
        assert evaluation and arguments.encoder_params < published
    else:
        assert arguments.encoder_params == pytest.approx(published, rel=0.1)
        assert evaluation is None and "has not been made yet" in card.read_text()
        shapes = (base, base.replace("large-v3-", ""))
        rows = [row for row in CONVERSIONS["rows"] if f"whisper-{row['shape']}" in shapes]
        said = [f"about {row['minutes']:.0f} minutes and {row['peak']:.1f} GB" for row in rows]
        assert all(each in card.read_text() for each in said) and bool(said) == ("expected" in data)


def test_the_family_is_complete() -> None:
    names = {f"lite-{base}{end}" for base in PUBLISHED for end in ("-acc", "", "-fast")}
    assert {card.parent.name for card in CARDS} == names and len(names) == 18


@pytest.fixture
def named(manifests: list[Path], tmp_path: Path) -> list[Path]:
    """Manifests of the compressed miniature, as if they were of the seven sets, each with another error rate."""
    own_manifest = next(path for path in manifests if "lite" in path.name)
    lines = own_manifest.read_text().splitlines(keepends=True)
    found = []
    for number, dataset in enumerate(SHORT_FORM):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(lines[: len(lines) - number]))
        settings = json.loads(own_manifest.with_suffix(".settings.json").read_text())
        path.with_suffix(".settings.json").write_text(json.dumps(settings | {"dataset": dataset}))
        found.append(path)
    return found


@pytest.fixture
def benchmark(hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubStandIn:
    """The Hub with the leaderboard's dataset, which has a task for each set but one."""
    tasks = [task for task in TASKS if task != "earnings22_cleaned_aa_chunked_wer"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    files = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    (tmp_path / "benchmark").mkdir()
    write_tasks(tmp_path / "benchmark", [(task, "default", "test") for task in tasks])
    hub.repositories["datasets", BENCHMARK] = Repository.of(Snapshot.scan(tmp_path / "benchmark"))
    return hub


def values_on_the_hub(hub: HubStandIn) -> dict[str, object]:
    """The values on the Hub by task."""
    entries = parse_eval_result_entries(yaml.safe_load(contents(hub.repositories["models", NAME].main.files[FILE])))
    assert {entry.dataset_id for entry in entries} == {BENCHMARK}
    assert {entry.notes for entry in entries} == {
        "words scored with compounds merged as on the Open ASR leaderboard (kaldialign); normalizer of Whisper: basic"
    }
    return {entry.task_id: entry.value for entry in entries}


def test_all_sets_their_mean_and_the_speed(lite: Path, named: list[Path], benchmark: HubStandIn, caplog) -> None:
    assert main([str(lite), NAME, "--manifests", *map(str, named), "--scoring", "compounds"]) == 0
    results = [evaluation.result for evaluation in score(named, "compounds")]
    expected = {SHORT_FORM[result.dataset]: round(result.wer, 2) for result in results}
    assert len(set(expected.values())) > 3
    lines = [json.loads(line) for path in named for line in path.read_text().splitlines()]
    expected["mean_wer"] = pytest.approx(sum(expected.values()) / 7, abs=0.005)
    expected["rtfx"] = pytest.approx(sum(x["duration"] for x in lines) / sum(x["time"] for x in lines), abs=0.005)
    del expected["earnings22_cleaned_aa_chunked_wer"]
    assert values_on_the_hub(benchmark) == expected
    assert "has no such tasks: earnings22_cleaned_aa_chunked_wer" in caplog.text
    assert "compounds are merged by kaldialign" in (lite / "README.md").read_text()


def test_some_sets_have_no_mean(lite: Path, named: list[Path], benchmark: HubStandIn, capsys) -> None:
    arguments = [str(lite), NAME, "--manifests", str(named[0]), "--scoring", "compounds"]
    assert main([*arguments, "--dry-run"]) == 0
    assert f"new  {FILE}" in capsys.readouterr().out and not (lite / FILE).exists()
    assert main(arguments) == 0
    assert list(values_on_the_hub(benchmark)) == ["ami_cleaned_wer"]


def test_other_sets_ask_nothing_and_user_files_stay(lite: Path, manifests: list[Path], hub: HubStandIn) -> None:
    (lite / FILE).parent.mkdir()
    (lite / FILE).write_text("[]")
    (lite / FILE).with_suffix(".log").write_text("")
    assert main([str(lite), NAME, "--manifests", *map(str, manifests)]) == 0
    files = hub.repositories["models", NAME].main.files
    assert contents(files[FILE]) == b"[]" and FILE.replace("yaml", "log") not in files
    assert not any(BENCHMARK in target for _, target, _ in hub.requests)


def test_nothing_goes_up_where_the_tasks_are_not_known(
    lite: Path, named: list[Path], benchmark: HubStandIn, waits: list[float], capsys
) -> None:
    benchmark.faults = [Fault("GET .*/eval.yaml|HEAD .*/eval.yaml", 404)]
    assert main([str(lite), NAME, "--manifests", *map(str, named)]) == 1
    assert "cannot download the tasks of" in capsys.readouterr().err
    assert ("models", NAME) not in benchmark.repositories and not (lite / FILE).exists()


def test_a_folder_that_is_a_link_is_refused(lite: Path, tmp_path: Path, hub: HubStandIn, capsys) -> None:
    (tmp_path / "elsewhere").mkdir()
    (lite / ".eval_results").symlink_to(tmp_path / "elsewhere")
    assert main([str(lite), NAME]) == 1
    assert ".eval_results is a link" in capsys.readouterr().err
