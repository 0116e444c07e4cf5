"""Files uploaded by `lite-whisper publish`: only those of a model, from its own folder, after the login is checked."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn

from lite_whisper.cli.publish import main
from lite_whisper.common.errors import InputError
from lite_whisper.conversion.recover import RecoverySettings, recover_model
from lite_whisper.publishing.hub import UPLOADED, WRITTEN_BY_HAND

NAME = "org/lite-digits"


def uploaded(hub: HubStandIn) -> set[str]:
    """The names of what lies in the repository, without the file that the Hub itself puts there."""
    return hub.repositories["models", NAME].main.files.keys() - {".gitattributes"}


def test_what_is_no_file_of_a_model_is_left_out_and_named(lite: Path, hub: HubStandIn, caplog) -> None:
    own = {path.name for path in lite.iterdir()}
    others = ["id_rsa", "weights.pickle", ".env", "notes.txt", "model.fp16.bin", "deep"]
    (lite / "deep").mkdir()
    for name in (*others[:-1], "deep/model.safetensors", "deep/config.json"):
        (lite / name).write_text("secret")
    assert main([str(lite), NAME]) == 0
    assert uploaded(hub) == own
    warning = next(record.getMessage() for record in caplog.records if "left out" in record.getMessage())
    assert all(name in warning for name in others)
    assert not any(name in warning for name in own)


def test_a_licence_goes_along_and_outlasts_a_model_without_one(lite: Path, hub: HubStandIn) -> None:
    (lite / "LICENSE").write_text("Apache-2.0")
    assert main([str(lite), NAME]) == 0 and "LICENSE" in uploaded(hub)
    (lite / "LICENSE").unlink()
    assert main([str(lite), NAME]) == 0 and "LICENSE" in uploaded(hub)


def test_a_dry_run_lists_what_goes_up_and_names_what_does_not(lite: Path, hub: HubStandIn, capsys, caplog) -> None:
    (lite / "id_rsa").write_text("secret")
    (lite / "modeling_\x1b[31m.py").write_text("")
    assert main([str(lite), NAME, "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert "id_rsa" not in listed and "\x1b" not in listed and "model.safetensors" in listed
    assert "id_rsa" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json", "README.md", "modeling_more.py"])
def test_a_link_is_refused_and_nothing_is_changed(
    name: str, lite: Path, hub: HubStandIn, tmp_path: Path, capsys
) -> None:
    outside = tmp_path / "outside"
    if (lite / name).exists():
        (lite / name).rename(outside)
    else:
        outside.write_text("secret")
    (lite / name).symlink_to(outside)
    before = {path.name: path.read_bytes() for path in lite.iterdir()}
    for options in ([], ["--dry-run"]):
        assert main([str(lite), NAME, *options]) == 1
        error = capsys.readouterr().err
        assert f"{lite / name} is a link to {outside}" in error and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in lite.iterdir()} == before
    assert hub.repositories == {}


def test_a_link_to_a_folder_outside_is_not_followed(lite: Path, hub: HubStandIn, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.json").write_text("secret")
    (lite / "more").symlink_to(tmp_path / "home")
    assert main([str(lite), NAME]) == 0
    assert not any("more" in name for name in uploaded(hub))


def test_everything_that_a_conversion_writes_is_of_a_model(lite: Path, hub: HubStandIn, caplog) -> None:
    """So that nothing of it is left out."""
    assert main([str(lite), NAME]) == 0
    assert "left out" not in caplog.text
    assert {"README.md", "compression.json", "config.json"} <= {*UPLOADED, *WRITTEN_BY_HAND}


@pytest.mark.parametrize("token", ["hf_unknown", "hf_reader"])
def test_nothing_is_changed_before_the_login_is_checked(token: str, lite: Path, hub: HubStandIn, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    before = {path.name: path.read_bytes() for path in lite.iterdir()}
    assert main([str(lite), NAME]) == 1
    assert {path.name: path.read_bytes() for path in lite.iterdir()} == before


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model": ["a", "b"]},
        {"calibration": "speech"},
        {"calibration": {"datasets": 7}},
        {"recipe": {"name": "loss-aware"}},
        {"evaluation": {"datasets": ["a"]}, "after": {}},
        {"base_card": {"license": {"a": {}}, "language": 7}, "before": {"encoder_parameters": "many"}},
    ],
    ids=str,
)
def test_wrong_kinds_in_compression_json_are_one_line(
    changes: dict[str, Any], lite: Path, hub: HubStandIn, capsys
) -> None:
    values = json.loads((lite / "compression.json").read_text())
    (lite / "compression.json").write_text(json.dumps(values | changes))
    assert main([str(lite), NAME]) == 1
    error = capsys.readouterr().err
    assert "compression.json" in error and error.count("\n") == 1
    assert hub.repositories == {}


def test_recovery_refuses_them_before_it_trains(lite: Path, base: Path, digits: Path, tmp_path: Path) -> None:
    values = json.loads((lite / "compression.json").read_text())
    (lite / "compression.json").write_text(json.dumps(values | {"calibration": {"datasets": 7}}))
    with pytest.raises(InputError, match="cannot render a model card from compression"):
        recover_model(RecoverySettings(str(lite), tmp_path / "out", [str(digits)], str(base)))
    assert not list(tmp_path.glob("out*"))
