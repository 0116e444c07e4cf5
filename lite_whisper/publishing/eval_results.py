"""Writes `.eval_results/*.yaml`, which the Hub shows on the model page and on the leaderboard."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import EvalResultEntry, HfApi, eval_result_entries_to_yaml
from huggingface_hub.errors import EntryNotFoundError, HTTPError

from ..common.errors import InputError
from ..common.files import temporary_name
from ..evaluation.leaderboard import BENCHMARK, SHORT_FORM
from ..evaluation.report import Result
from ..evaluation.word_error_rate import SCORINGS
from .card import card_data, own_results

logger = logging.getLogger(__name__)

EVAL_RESULTS = ".eval_results"  # the folder
LEADERBOARD = f"{EVAL_RESULTS}/open_asr_leaderboard.yaml"
MEAN, SPEED = "mean_wer", "rtfx"  # tasks that summarise all sets


def write_eval_results(folder: Path) -> None:
    """
    Writes a model's results on the datasets of the Open ASR leaderboard, if any, into its folder.

    Args:
        folder (`Path`): model folder with the `evaluation.json` written by `write_evaluation`.

    Raises:
        InputError: the tasks of the leaderboard cannot be downloaded.
    """
    _, evaluation = card_data(folder)
    assert evaluation is not None
    measured = [result for result in own_results(evaluation) if result.dataset in SHORT_FORM]
    if not measured:
        return
    path = folder / LEADERBOARD
    entries = eval_result_entries(measured, evaluation["normalizer"], registered_tasks())
    path.parent.mkdir(exist_ok=True)
    with temporary_name(path) as temporary:
        temporary.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))


def registered_tasks() -> set[str]:
    """The tasks in the leaderboard's `eval.yaml` on the Hub, which rejects results for other tasks."""
    try:
        path = HfApi().hf_hub_download(BENCHMARK, "eval.yaml", repo_type="dataset")
    except (EntryNotFoundError, HTTPError) as error:
        raise InputError(f"cannot download the tasks of {BENCHMARK} from the Hub ({error}); try again later") from error
    return {task["id"] for task in yaml.safe_load(Path(path).read_text(encoding="utf-8"))["tasks"]}


def eval_result_entries(results: Sequence[Result], normalizer: str, tasks: Collection[str]) -> list[EvalResultEntry]:
    """
    Creates leaderboard entries from results, rounded as on the leaderboard.

    The mean word error rate and the real-time factor are included if all datasets were evaluated. Results without a
    task on the leaderboard are left out with a warning.

    Args:
        results (`Sequence[Result]`): results of one model.
        normalizer (`str`): name of the text normalizer; each entry states it and the scoring.
        tasks (`Collection[str]`): tasks of the leaderboard.
    """
    values = {SHORT_FORM[result.dataset]: round(result.wer, 2) for result in results}
    if len(values) == len(SHORT_FORM):
        seconds = sum(result.audio_seconds / result.rtfx for result in results)
        mean = round(float(np.mean(list(values.values()))), 2)
        values |= {MEAN: mean, SPEED: round(sum(result.audio_seconds for result in results) / seconds, 2)}
    if unknown := sorted(values.keys() - tasks):
        logger.warning("left out of %s because %s has no such tasks: %s", LEADERBOARD, BENCHMARK, ", ".join(unknown))
    notes = f"words scored {SCORINGS[results[0].scoring]}; normalizer of Whisper: {normalizer}"
    return [EvalResultEntry(BENCHMARK, task, value, notes=notes) for task, value in values.items() if task in tasks]
