"""Loading datasets and writing manifests, as on the leaderboard."""

import argparse
import json
from pathlib import Path

from datasets import Audio, Dataset, load_dataset
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

CHUNK_METADATA_KEYS = ["parent_id", "chunk_index"]

normalizer = BasicTextNormalizer()  # the miniature writes digits as words


def is_chunked_dataset(dataset_path: str) -> bool:
    return dataset_path.endswith("chunks")


def load_data(args: argparse.Namespace) -> Dataset:
    assert not args.streaming
    if not is_chunked_dataset(args.dataset_path):
        return load_dataset(args.dataset_path, args.dataset, split=args.split)
    folder = Path(args.dataset_path)
    texts = load_dataset(str(folder.with_name("transcripts")), split=args.split)
    transcripts = dict(zip(texts["id"], texts["transcript"], strict=True))
    chunks = load_dataset(args.dataset_path, split=args.split)
    files = [str(folder / "audio" / name) for name in chunks["file_name"]]
    return chunks.add_column("audio", files).add_column("text", [transcripts[call] for call in chunks["parent_id"]])


def prepare_data(dataset: Dataset, sampling_rate: int = 16_000) -> Dataset:
    dataset = dataset.cast_column("audio", Audio(sampling_rate=sampling_rate))
    dataset = dataset.map(lambda row: {"original_text": row["text"], "norm_text": normalizer(row["text"])})
    return dataset.filter(lambda text: text not in ("", "ignore time segment in scoring"), input_columns=["norm_text"])


def extract_audio_filepaths_from_batch(batch: dict, batch_size: int) -> list[str | None]:
    return batch.get("id") or batch.get("file_name") or [None] * batch_size


def write_manifest(
    references: list[str],
    transcriptions: list[str],
    model_id: str,
    dataset_path: str,
    dataset_name: str,
    split: str,
    audio_length: list[float],
    transcription_time: list[float],
    audio_filepaths: list[str],
    extra_fields: dict[str, list] | None = None,
) -> str:
    model, path = (name.replace("/", "-") for name in (model_id, dataset_path))
    columns = {
        "audio_filepath": audio_filepaths,
        "duration": audio_length,
        "time": transcription_time,
        "text": references,
        "pred_text": transcriptions,
        **(extra_fields or {}),
    }
    manifest = Path("results") / f"MODEL_{model}_DATASET_{path}_{dataset_name}_{split}.jsonl"
    manifest.parent.mkdir(exist_ok=True)
    rows = zip(*columns.values(), strict=True)
    manifest.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return str(manifest)


def read_manifest(manifest_path: str) -> list[dict]:
    return [json.loads(line) for line in Path(manifest_path).read_text().splitlines()]


def merge_chunked_manifest(manifest: list[dict]) -> list[dict]:
    if "parent_id" not in manifest[0]:
        return manifest
    calls: dict[str, list[dict]] = {}
    for line in sorted(manifest, key=lambda line: line["chunk_index"]):
        calls.setdefault(line["parent_id"], []).append(line)
    return [
        {"text": lines[0]["text"], "pred_text": " ".join(line["pred_text"].strip() for line in lines)}
        for lines in calls.values()
    ]
