"""Compute error rates and speed from manifests, and write tables, plots and model card metadata."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..common.errors import InputError
from ..common.files import temporary_name
from .calls import whole_calls
from .manifest import CallChunk, Utterance, read_manifest, read_settings
from .plots import plot_error_by_set, plot_error_by_size
from .significance import Difference, paired_bootstrap
from .word_error_rate import check_scoring, error_rates, word_errors


@dataclass(frozen=True)
class Result:
    """
    Error rates and speed of one model on one dataset.

    Args:
        model (`str`): name of the model.
        dataset (`str`): name of the dataset.
        wer (`float`): word error rate in per cent.
        cer (`float`): character error rate in per cent.
        substitutions (`int`): substituted words.
        deletions (`int`): deleted words.
        insertions (`int`): inserted words.
        words (`int`): words in all references.
        rtfx (`float`): real-time factor (seconds of audio transcribed per second), without loading.
        encoder_seconds (`float`): time spent in the encoder.
        decoder_seconds (`float`): time spent in the decoder.
        peak_memory (`int`, *optional*): bytes; `None` if the run was not completed.
        fallbacks (`int`, *optional*, defaults to 0): utterances decoded again with all positions computed.
        audio_seconds (`float`, *optional*, defaults to 0): total duration of the audio.
        scoring (`str`, *optional*, defaults to `"plain"`): how word errors were counted, one of `SCORINGS`.
    """

    model: str
    dataset: str
    wer: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    words: int
    rtfx: float
    encoder_seconds: float
    decoder_seconds: float
    peak_memory: int | None
    fallbacks: int = 0
    audio_seconds: float = 0.0
    scoring: str = "plain"


@dataclass(frozen=True)
class Evaluation:
    """
    A manifest with its settings and results.

    Args:
        path (`Path`): path of the manifest.
        settings (`dict`): settings with which it was written.
        utterances (`list[Utterance]`): its lines, with the chunks of each call joined.
        result (`Result`): error rates and speed.
    """

    path: Path
    settings: dict
    utterances: list[Utterance]
    result: Result


def score(manifests: Sequence[Path], scoring: str = "plain") -> list[Evaluation]:
    """
    Computes error rates and speed from manifests.

    Args:
        manifests (`Sequence[Path]`): manifests written by `evaluate_models`.
        scoring (`str`, *optional*, defaults to `"plain"`): how word errors are counted, one of `SCORINGS`.

    Returns:
        `list[Evaluation]`: one per manifest, in the same order.

    Raises:
        InputError: if a manifest is damaged or empty, has no settings file, or lacks chunks of a call; or if a package
            required by the scoring is not installed.
    """
    check_scoring(scoring)
    evaluations = []
    for path in manifests:
        lines, settings = read_manifest(path), read_settings(path)
        if not lines:
            raise InputError(f"{path} is empty; evaluate again")
        utterances = whole_calls(lines)
        if any(isinstance(line, CallChunk) for line in lines) and settings.get("skipped") != []:
            raise InputError(f"{path} lacks chunks of its calls, which are scored as a whole; complete the evaluation")
        rates = error_rates([u.text for u in utterances], [u.pred_text for u in utterances], scoring)
        result = Result(
            model=settings["model"],
            dataset=settings["dataset"],
            **asdict(rates),
            rtfx=sum(u.duration for u in utterances) / sum(u.time for u in utterances),
            encoder_seconds=sum(u.encoder_time for u in utterances),
            decoder_seconds=sum(u.decoder_time for u in utterances),
            peak_memory=settings.get("peak_memory"),
            fallbacks=sum(u.fallback for u in lines),
            audio_seconds=sum(u.duration for u in lines),
            scoring=scoring,
        )
        evaluations.append(Evaluation(path, settings, utterances, result))
    return evaluations


def differences(evaluations: Sequence[Evaluation]) -> list[tuple[Result, Result, Difference]]:
    """
    Compares every model with the first one on the same dataset, by paired bootstrap over utterances.

    Returns:
        `list[tuple[Result, Result, Difference]]`: result of the model, result of the first model, and the difference.

    Raises:
        InputError: if the manifests of a dataset contain different utterances.
    """
    found = []
    first: dict[str, Evaluation] = {}
    for evaluation in evaluations:
        base = first.setdefault(evaluation.result.dataset, evaluation)
        if base is evaluation:
            continue
        if [(u.index, u.text) for u in base.utterances] != [(u.index, u.text) for u in evaluation.utterances]:
            raise InputError(
                f"{base.path} and {evaluation.path} contain different utterances; complete both evaluations"
            )
        errors, base_errors = (
            np.array([word_errors(u.text, u.pred_text, each.result.scoring) for u in each.utterances])
            for each in (evaluation, base)
        )
        words = np.array([len(u.text.split()) for u in base.utterances])
        found.append((evaluation.result, base.result, paired_bootstrap(errors, base_errors, words)))
    return found


def write_json(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Writes the results as a JSON list with one object per model and dataset."""
    with temporary_name(path) as temporary:
        temporary.write_text(json.dumps([asdict(e.result) for e in evaluations], indent=2) + "\n")


def figures(result: Result) -> list[tuple[str, str, float]]:
    """The error rates of a result in the form expected by `eval_results`."""
    return [(result.dataset, "wer", result.wer), (result.dataset, "cer", result.cer)]


def eval_results(figures: Iterable[tuple[str, str, float]]) -> list[EvalResult]:
    """
    Converts error rates to the metadata of a model card.

    Args:
        figures (`Iterable[tuple]`): tuples of dataset (name, or name:config:split), metric (`"wer"` or `"cer"`) and
            value in per cent.
    """
    names = {"wer": "Word error rate (%)", "cer": "Character error rate (%)"}
    found = []
    for source, metric, value in figures:
        dataset, config, split = [*source.split(":"), None, None][:3]
        assert dataset is not None
        result = EvalResult(
            task_type="automatic-speech-recognition",
            task_name="Automatic Speech Recognition",
            dataset_type=dataset,
            dataset_name=source,
            dataset_config=config,  # the card merges results with equal type, configuration and split
            dataset_split=split,
            metric_type=metric,
            metric_name=names[metric],
            metric_value=round(value, 3),
        )
        found.append(result)
    return found


def write_summary(evaluations: Sequence[Evaluation], folder: Path) -> None:
    """Writes `summary.csv`, the `model-index` metadata of each model and the plots to a folder."""
    with temporary_name(folder / "summary.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, asdict(evaluations[0].result))
        writer.writeheader()
        writer.writerows(asdict(e.result) for e in evaluations)
    for model in dict.fromkeys(e.result.model for e in evaluations):
        results = eval_results(figure for e in evaluations if e.result.model == model for figure in figures(e.result))
        index = {"model-index": eval_results_to_model_index(model, results)}
        with temporary_name(folder / f"{model.replace('/', '-')}.model-index.yml") as temporary:
            temporary.write_text(yaml.safe_dump(index, sort_keys=False))
    with temporary_name(folder / "error_by_set.png") as temporary:
        plot_error_by_set([e.result for e in evaluations], temporary)
    sizes = {e.result.model: e.settings["encoder_parameters"] for e in evaluations}
    bases = {e.settings["base_model"].split("/")[-1] for e in evaluations}
    with temporary_name(folder / "error_by_size.png") as temporary:
        plot_error_by_size([e.result for e in evaluations], sizes, bases, temporary)
