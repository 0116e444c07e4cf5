"""
The datasets of the Open ASR leaderboard in the layout of the Hub, filled with the bundled recordings of digits.

    python tests/leaderboard_stand_in.py FOLDER [--clips 60]

Writes `FOLDER/open-asr-leaderboard`, which `datasets.load_dataset` loads like the real one.
"""

import argparse
import csv
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import soundfile
import yaml

DIGITS = Path(__file__).parents[1] / "examples/digits/test"
SHORT_FORM = {
    "ami_cleaned": ["test"],
    "gigaspeech_cleaned": ["test"],
    "librispeech": ["test.clean", "test.other"],
    "spgispeech": ["test"],
    "voxpopuli_cleaned_aa": ["test"],
}
IGNORED_REFERENCE = "ignore time segment in scoring"

Clip = tuple[bytes, str]
"""The bytes of an audio file, and its transcript."""


def digits(count: int) -> list[Clip]:
    """The given number of recordings, repeated if there are fewer."""
    with (DIGITS / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    every = [((DIGITS / row["file_name"]).read_bytes(), row["transcription"]) for row in rows]
    return list(itertools.islice(itertools.cycle(every), count))


def seconds(audio: bytes) -> float:
    """Duration of an audio file in seconds."""
    return soundfile.info(io.BytesIO(audio)).duration


def write_parquet(folder: Path, configs: dict[str, list[str]], clips: Sequence[Clip]) -> Path:
    """Writes a dataset of parquet files, with the same clips in each split of each configuration."""
    types = {"dataset": "string", "text": "string", "id": "string", "audio_length_s": "float64"}
    features = {name: {"dtype": dtype, "_type": "Value"} for name, dtype in types.items()}
    metadata = {"info": {"features": {"audio": {"sampling_rate": 16000, "_type": "Audio"}, **features}}}
    listed = []
    for config, splits in configs.items():
        (folder / config).mkdir(parents=True)
        for split in splits:
            names = [f"{config}-{index}" for index in range(len(clips))]
            columns = {
                "audio": [
                    {"bytes": audio, "path": f"{name}.flac"} for name, (audio, _) in zip(names, clips, strict=True)
                ],
                "dataset": [config] * len(clips),
                "text": [text for _, text in clips],
                "id": names,
                "audio_length_s": [seconds(audio) for audio, _ in clips],
            }
            table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(metadata)})
            pyarrow.parquet.write_table(table, folder / config / f"{split}-00000-of-00001.parquet")
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        listed.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': listed})}---\n")
    return folder


def write_calls(chunks: Path, transcripts: Path, calls: Sequence[Sequence[Clip]]) -> None:
    """Writes two datasets: chunks of calls, without audio or text columns, and the transcripts of whole calls."""
    (chunks / "audio").mkdir(parents=True)
    transcripts.mkdir()
    rows, texts = [], []
    for number, call in enumerate(calls):
        parent = f"446{number}"
        texts.append({"id": parent, "url": f"audio/{parent}.mp3", "transcript": " ".join(text for _, text in call)})
        for index, (audio, _) in enumerate(call):
            name = f"{parent}_{index:03}.flac"
            (chunks / "audio" / name).write_bytes(audio)
            rows.append({"file_name": name, "parent_id": parent, "chunk_index": index, "duration": seconds(audio)})
    for folder, lines in ((chunks, rows), (transcripts, texts)):
        (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        configs = [{"config_name": "default", "data_files": [{"split": "test", "path": "rows.jsonl"}]}]
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


def write_tasks(folder: Path, tasks: Sequence[tuple[str, str, str]]) -> None:
    """Turns a dataset into a benchmark, with tasks given by id, configuration and split."""
    named = [dict(zip(("id", "config", "split"), task, strict=True)) for task in tasks]
    benchmark = {"name": "Open ASR Leaderboard", "evaluation_framework": "open-asr-leaderboard", "tasks": named}
    (folder / "eval.yaml").write_text(yaml.safe_dump(benchmark))


def main() -> None:
    """Writes the datasets of the English table that share one repository."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=60, help="number of clips in each split")
    arguments = parser.parse_args()
    write_parquet(arguments.folder / "open-asr-leaderboard", SHORT_FORM, digits(arguments.clips))


if __name__ == "__main__":
    main()
