"""Scoring the manifests of a model, as on the leaderboard."""

from pathlib import Path


def score_results(directory: str, model_id: str) -> None:
    files = sorted(path.name for path in Path(directory).glob("*.jsonl"))
    print(f"scored {model_id}: {len(files)} files")
