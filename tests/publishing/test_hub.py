"""`lite-whisper publish` against the stand-in for the Hub: uploaded files and failures."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_stand_in import TOKEN, Fault, HubStandIn, Repository, Snapshot, contents

import lite_whisper_commands
from lite_whisper.cli.publish import main

NAME = "org/lite-digits"
LITE_WHISPER = str(Path(sys.executable).with_name("lite-whisper"))


def files_of(snapshot: Snapshot) -> dict[str, bytes]:
    """What a commit holds, without the file that the Hub itself puts there."""
    return {name: contents(file) for name, file in snapshot.files.items() if name != ".gitattributes"}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_folder_goes_up_in_one_commit(lite: Path, hub: HubStandIn, capsys) -> None:
    assert main([str(lite), NAME]) == 0
    repository = hub.repositories["models", NAME]
    assert files_of(repository.main) == files_in(lite)
    python = {f"{name}_lite_whisper.py" for name in ("configuration", "inference", "kernels", "modeling")}
    needed = {"model.safetensors", "tokenizer.json"} | python
    needed |= {"generation_config.json", "preprocessor_config.json", "compression.json", "ranks.png", "README.md"}
    assert needed <= files_of(repository.main).keys()
    assert sum("/commit/" in target for _, target, _ in hub.requests) == 1
    assert not repository.private
    assert repository.branches["main"] in capsys.readouterr().out


def test_a_dry_run_asks_nothing_and_changes_nothing(lite: Path, hub: HubStandIn, capsys, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    before = files_in(lite)
    assert main([str(lite), NAME, "--dry-run"]) == 0
    listed = {line.split()[-1] for line in capsys.readouterr().out.splitlines()[:-1]}
    assert listed == before.keys()
    assert files_in(lite) == before
    assert hub.requests == [] and hub.repositories == {}


def test_branch_pull_request_and_private(lite: Path, hub: HubStandIn, capsys) -> None:
    assert main([str(lite), NAME, "--private"]) == 0
    repository = hub.repositories["models", NAME]
    first = repository.branches["main"]
    assert repository.private
    (lite / "ranks.png").write_bytes(b"another")
    assert main([str(lite), NAME, "--revision", "v2"]) == 0
    assert repository.branches["main"] == first
    assert files_of(repository.at("v2"))["ranks.png"] == b"another"
    assert main([str(lite), NAME, "--create-pr"]) == 0
    assert repository.branches["main"] == first
    assert files_of(repository.at("refs/pr/1"))["ranks.png"] == b"another"
    assert f"{NAME}/discussions/1" in capsys.readouterr().out
    assert main([str(lite), NAME, "--create-pr", "--revision", "v2"]) == 1
    assert main([str(lite), NAME, "--private"]) == 0
    hub.repositories["models", NAME].private = False
    assert main([str(lite), NAME, "--private"]) == 1
    assert "is public" in capsys.readouterr().err


def test_nothing_of_the_model_before_is_left(lite: Path, hub: HubStandIn) -> None:
    """Shards and their index, Python files and tokenizer files of another model go; what the owner added stays."""
    old = dict.fromkeys(["model-00001-of-00002.safetensors", "model.safetensors.index.json", "modeling_old.py"], b"old")
    old |= {"pytorch_model.bin": b"old", "processor_config.json": b"old"}
    own = {"LICENSE": b"own", "onnx/model.onnx": b"own", "onnx/model.safetensors": b"own", "audio.flac": b"own"}
    hub.repositories["models", NAME] = Repository.of(Snapshot.of({**old, **own}))
    assert main([str(lite), NAME]) == 0
    assert files_of(hub.repositories["models", NAME].main) == files_in(lite) | own


def test_what_training_left_behind_stays_here(lite: Path, hub: HubStandIn) -> None:
    wanted = set(files_in(lite))
    for name in ("training_args.bin", "optimizer.pt", ".cache/x", "checkpoint-5/model.safetensors", "runs/events"):
        (lite / name).parent.mkdir(exist_ok=True)
        (lite / name).write_bytes(b"pickle")
    assert main([str(lite), NAME]) == 0
    assert set(files_of(hub.repositories["models", NAME].main)) == wanted


@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors", "modeling_lite_whisper.py", "tokenizer_config.json"]
)
def test_an_incomplete_folder_is_refused(missing: str, lite: Path, hub: HubStandIn, capsys) -> None:
    (lite / missing).unlink()
    assert main([str(lite), NAME]) == 1
    error = capsys.readouterr().err
    assert missing.partition("_")[0].partition(".")[0] in error or "safetensors" in error
    assert error.count("\n") == 1
    assert hub.repositories == {}


def test_names_and_tokens_that_cannot_work(lite: Path, hub: HubStandIn, capsys, monkeypatch) -> None:
    for name in ("lite-digits", "org/lite/digits", "org/lite digits"):
        assert main([str(lite), name]) == 1
        assert "give org/name" in capsys.readouterr().err
    for token, said in (("hf_unknown", "hf auth login"), ("hf_reader", "read-only")):
        monkeypatch.setenv("HF_TOKEN", token)
        assert main([str(lite), NAME]) == 1
        assert said in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(lite / "none"))
    assert main([str(lite), NAME]) == 1
    assert "not logged in" in capsys.readouterr().err
    assert hub.repositories == {}


STEPS = {
    "create": r"POST /api/repos/create",
    "card": r"POST /api/validate-yaml",
    "preupload": r"POST /api/models/.*/preupload/",
    "batch": r"POST /.*/info/lfs/objects/batch",
    "upload": r"PUT /lfs/",
    "commit": r"POST /api/models/.*/commit/",
}
FAULTS = {
    "401": (Fault("", 401), "hf auth login"),
    "403": (Fault("", 403), "no write access"),
    "404": (Fault("", 404), "not found on the Hub"),
    "429": (Fault("", 429, {"Retry-After": "7"}), "try again in 7 s"),
    "500": (Fault("", 500), "reported an error"),
    "cut": (Fault("", cut=True), "failed"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_leaves_the_old_model_and_can_be_mended(
    step: str, fault: str, lite: Path, hub: HubStandIn, waits: list[float], capfd, caplog
) -> None:
    """The message gives advice, the old commit stays, and repeating the command succeeds."""
    caplog.set_level(logging.DEBUG)
    old = Repository.of(Snapshot.of({"model.safetensors": b"old", "config.json": b"old"}))
    if step != "create":
        hub.repositories["models", NAME] = old
    kind, said = FAULTS[fault]
    hub.faults = [Fault(STEPS[step], kind.status, kind.headers, cut=kind.cut)]
    assert main([str(lite), NAME]) == 1
    error = capfd.readouterr().err
    assert said in error
    assert f"lite-whisper publish {lite} {NAME}" in error
    assert "Traceback" not in error
    assert TOKEN not in error + caplog.text
    assert sum("/commit/" in target and status == 200 for _, target, status in hub.requests) == 0
    if step != "create":
        assert files_of(hub.repositories["models", NAME].main) == {"model.safetensors": b"old", "config.json": b"old"}
    else:
        assert ("models", NAME) not in hub.repositories
    if fault == "429" and step in ("preupload", "batch", "upload"):
        assert waits and set(waits) == {8.0}  # a second more than the Hub asked for
    hub.faults = []
    assert main([str(lite), NAME]) == 0
    assert files_of(hub.repositories["models", NAME].main) == files_in(lite)


def test_an_answer_that_is_lost_after_the_commit_leaves_the_whole_new_model(lite: Path, hub: HubStandIn) -> None:
    hub.faults = [Fault(STEPS["commit"], cut=True, late=True)]
    assert main([str(lite), NAME]) == 1
    assert files_of(hub.repositories["models", NAME].main) == files_in(lite)
    hub.faults = []
    assert main([str(lite), NAME]) == 0
    assert len(hub.repositories["models", NAME].commits) == 2


def test_passing_faults_and_a_slow_hub_are_borne(lite: Path, hub: HubStandIn, waits: list[float]) -> None:
    hub.faults = [Fault(STEPS["upload"], 500, times=2), Fault(STEPS["batch"], cut=True, times=1)]
    hub.faults += [Fault(step, seconds=0.3) for step in STEPS.values()]
    assert main([str(lite), NAME]) == 0
    assert files_of(hub.repositories["models", NAME].main) == files_in(lite)
    assert len(waits) == 3


def test_a_large_file_is_not_sent_twice(lite: Path, hub: HubStandIn, waits: list[float]) -> None:
    hub.faults = [Fault(STEPS["commit"], 500)]
    assert main([str(lite), NAME]) == 1
    hub.faults = []
    sent = sum(method == "PUT" for method, *_ in hub.requests)
    assert main([str(lite), NAME]) == 0
    assert sum(method == "PUT" for method, *_ in hub.requests) == sent == 2  # weights and ranks.png


@pytest.mark.long
def test_a_process_that_is_killed_while_it_uploads(lite: Path, tmp_path: Path) -> None:
    with HubStandIn({}, tokens={TOKEN: "write"}) as hub:
        old = Repository.of(Snapshot.of({"model.safetensors": b"old"}))
        hub.repositories["models", NAME] = old
        hub.faults = [Fault(STEPS["upload"], seconds=5.0)]
        environment = os.environ | hub.environment(tmp_path / "cache", TOKEN) | {"HF_DEBUG": "1"}
        command = [LITE_WHISPER, "publish", str(lite), NAME]
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            while not any("/batch" in target for _, target, _ in hub.requests):
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert files_of(old.main) == {"model.safetensors": b"old"}
        hub.faults = []
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert files_of(old.main) == files_in(lite)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert "curl" in result.stderr  # every request was logged
    assert not any(TOKEN.encode() in text for text in [*written, (result.stdout + result.stderr).encode()])


def test_convert_checks_the_login_first_and_publishes_last(
    base: Path, digits: Path, hub: HubStandIn, tmp_path: Path, capsys, monkeypatch
) -> None:
    command = ["--base-model", base, "--dataset", digits, "--recipe", "liteasr", "--num-windows", 2]
    command += ["--push-to-hub", NAME, "--output", tmp_path / "lite"]
    monkeypatch.setattr(sys, "argv", ["lite-whisper", "convert", *map(str, command)])
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert lite_whisper_commands.main() == 1
    assert "hf auth login" in capsys.readouterr().err
    assert not (tmp_path / "lite").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults = [Fault(STEPS["commit"], 403)]
    assert lite_whisper_commands.main() == 1
    assert f"lite-whisper publish {tmp_path / 'lite'} {NAME}" in capsys.readouterr().err
    hub.faults = []
    assert main([str(tmp_path / "lite"), NAME]) == 0
    assert files_of(hub.repositories["models", NAME].main) == files_in(tmp_path / "lite")
    assert f"# {NAME}" in (tmp_path / "lite/README.md").read_text()


PUSH = """
import sys
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, Seq2SeqTrainer, Seq2SeqTrainingArguments
folder, output = sys.argv[1:]
model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder)
model.push_to_hub("org/by-model")
processor.push_to_hub("org/by-model")
arguments = Seq2SeqTrainingArguments(output, hub_model_id="org/by-trainer", report_to="none", use_cpu=True)
trainer = Seq2SeqTrainer(model, arguments, processing_class=processor)
trainer.push_to_hub()
"""
LOAD = """
import json, sys
import soundfile
from transformers import AutoModelForSpeechSeq2Seq, pipeline
audio = soundfile.read(sys.argv[1])[0]
texts = []
for name, pinned in json.loads(sys.argv[2]):
    recognizer = pipeline("automatic-speech-recognition", name, trust_remote_code=True, **pinned)
    texts.append(recognizer(audio.copy(), return_timestamps=True, generate_kwargs={"num_beams": 1})["text"])
    print(sys.modules[type(recognizer.model).__module__].__file__)
assert "lite_whisper" not in sys.modules
print(json.dumps(texts))
"""


def loaded(names: list, hub: HubStandIn, cache: Path, audio: Path) -> tuple[list[str], list[str]]:
    """The transcripts by models of these names, and the files of their code, in a fresh process with an empty cache."""
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(audio), json.dumps(names)],
        env=os.environ | hub.environment(cache, TOKEN),
        cwd=cache.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    *modules, texts = result.stdout.splitlines()
    return json.loads(texts), modules


@pytest.mark.slow
def test_push_to_hub_of_model_and_trainer_give_working_repositories(lite: Path, digits: Path, tmp_path: Path) -> None:
    audio = sorted(digits.glob("*.flac"))[0]
    with HubStandIn({}, tokens={TOKEN: "write"}) as hub:
        environment = os.environ | hub.environment(tmp_path / "cache", TOKEN)
        command = [sys.executable, "-c", PUSH, str(lite), str(tmp_path / "trained")]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        names = ["org/by-model", "org/by-trainer", str(lite)]
        texts, _ = loaded([[name, {}] for name in names], hub, tmp_path / "empty", audio)
    assert texts[0] and len(set(texts)) == 1


@pytest.mark.slow
@pytest.mark.long
def test_round_trip_by_name_and_pinned(lite: Path, digits: Path, tmp_path: Path) -> None:
    """What arrives is what was pushed, gives the transcripts of the folder, and stays as it is where it is pinned."""
    audio = sorted(digits.glob("*.flac"))[0]
    with HubStandIn({}, tokens={TOKEN: "write"}) as hub:
        environment = os.environ | hub.environment(tmp_path / "cache", TOKEN)
        command = [LITE_WHISPER, "publish", str(lite), NAME]
        assert subprocess.run(command, env=environment).returncode == 0
        repository = hub.repositories["models", NAME]
        first = repository.branches["main"]
        files = dict(repository.main.files)
        files["modeling_lite_whisper.py"] = b"raise SystemExit('unread code')\n"
        spoiled = Snapshot.of(files)
        repository.commits[spoiled.sha] = spoiled
        names: list = [[NAME, {}], [str(lite), {}]]
        texts, modules = loaded(names, hub, tmp_path / "empty", audio)
        repository.branches["main"] = spoiled.sha
        pinned, _ = loaded([[NAME, {"revision": first}]], hub, tmp_path / "empty2", audio)
        pinned_code, _ = loaded([[NAME, {"code_revision": first}]], hub, tmp_path / "empty3", audio)
        with pytest.raises(AssertionError, match="unread code"):
            loaded([[NAME, {}]], hub, tmp_path / "empty4", audio)
    assert texts[0] and texts[0] == texts[1] == pinned[0] == pinned_code[0]
    assert Path(modules[0]).read_bytes() == (lite / "modeling_lite_whisper.py").read_bytes()
    assert first in modules[0]
