"""The commands `lite-whisper evaluate` and `lite-whisper score`."""

import argparse
import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from ..arguments import device_name, positive
from ..audio import AudioDataset
from ..common.errors import InputError, exit_code
from ..common.files import check_same
from ..common.memory import PeakMemory
from ..common.processes import all_gather, is_main_process, join
from ..models.compression_json import public_name
from ..models.folders import base_model_of, encoder_parameters, fingerprint, load_model
from .decoding import Decoding
from .evaluate import evaluate
from .manifest import manifest_path, read_settings, settings_path, write_settings
from .report import print_report, score, write_json, write_summary
from .robustness import print_robustness, robustness
from .word_error_rate import NORMALIZERS, text_normalizer

logger = logging.getLogger(__name__)

ESB = "hf-audio/esb-datasets-test-only-sorted"
SETS = {
    "esb": [
        f"{ESB}:{name}"
        for name in (
            "voxpopuli:test",
            "ami:test",
            "earnings22:test",
            "gigaspeech:test",
            "librispeech:test.clean",
            "librispeech:test.other",
            "spgispeech:test",
            "tedlium:test",
        )
    ]
}
VARYING = ("peak_memory", "left_out", "skipped", "batch_size", "versions", "device")  # do not change a transcript


def parse_arguments(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    """The arguments of `lite-whisper evaluate`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Transcribe datasets with any number of models and report error rates and speed. Every model and "
        "set has a manifest in --output, to which a run that was interrupted adds what is missing.",
    )
    parser.add_argument("models", nargs="+", help="Hub ids or folders of Whispers, compressed or not")
    parser.add_argument(
        "--dataset",
        nargs="+",
        action="extend",
        required=True,
        help="audio with transcripts: folders with metadata.csv, Hub datasets as org/name[:config[:split]], "
        "or esb, the eight sets of the Open ASR leaderboard",
    )
    parser.add_argument("--text-column", help="of the transcripts, where it has none of the usual names")
    add_decoding_arguments(parser)
    parser.add_argument(
        "--normalizer",
        choices=NORMALIZERS,
        help="of the texts (default english, or basic where --language names another)",
    )
    parser.add_argument("--num-samples", type=positive, help="clips of each set (default all)")
    parser.add_argument("--batch-size", type=positive, default=8, help="clips that run at once (default 8)")
    parser.add_argument(
        "--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1"
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument(
        "--output", type=Path, default=Path("results"), help="folder of the manifests (default results)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="also compare timestamps, words in silence and noise, language and translation with the first model",
    )
    arguments = parser.parse_args(argv)
    arguments.dataset = [source for name in arguments.dataset for source in SETS.get(name, [name])]
    if arguments.normalizer is None:
        arguments.normalizer = "english" if arguments.language in (None, "en") else "basic"
    return arguments


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of how text is generated."""
    parser.add_argument(
        "--language", type=_language, help="that is spoken, such as de; by default the model detects it"
    )
    parser.add_argument("--task", choices=("transcribe", "translate"), default="transcribe")
    parser.add_argument("--num-beams", type=positive, default=1, help="default 1, greedy")


def _language(text: str) -> str:
    code = TO_LANGUAGE_CODE.get(text.lower(), text.lower())
    if code not in LANGUAGES:
        raise argparse.ArgumentTypeError(f"{text} is not a language that Whisper knows, such as de or german")
    return code


def check_language(language: str | None, model: WhisperForConditionalGeneration, name: str) -> None:
    """
    Makes sure that a model knows a language.

    Raises:
        InputError: it knows English only.
    """
    if language not in (None, "en") and not getattr(model.generation_config, "is_multilingual", False):
        raise InputError(f"{name} knows English only; leave --language {language} out, or take another model")


def model_settings(arguments: argparse.Namespace, model: WhisperForConditionalGeneration, name: str) -> dict[str, Any]:
    """
    What the manifests of a model are made with, whatever the set.

    With the set's name all of it except `VARYING` must be the same when a run goes on.
    """
    return {
        "model": public_name(name),
        "base_model": base_model_of(name),
        "encoder_weights": fingerprint(model),
        "encoder_parameters": encoder_parameters(model),
        "text_column": arguments.text_column,
        "num_samples": arguments.num_samples,
        "generation": asdict(Decoding(arguments.num_beams, arguments.language, arguments.task)),
        "normalizer": arguments.normalizer,
        "dtype": arguments.dtype,
        "batch_size": arguments.batch_size,
        "device": arguments.device,
        "versions": {package: importlib.metadata.version(package) for package in ("torch", "transformers", "jiwer")},
    }


def evaluate_model(arguments: argparse.Namespace, name: str) -> list[Path]:
    """Evaluates one model on every set; returns the manifests."""
    model, processor = load_model(name)
    check_language(arguments.language, model, name)
    settings = model_settings(arguments, model, name)
    model.to(device=arguments.device, dtype=getattr(torch, arguments.dtype))  # type: ignore[call-arg]
    model.eval()
    return [
        evaluate_set(arguments, model, processor, source, settings | {"dataset": public_name(source)})
        for source in arguments.dataset
    ]


def evaluate_set(
    arguments: argparse.Namespace,
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    source: str,
    settings: dict[str, Any],
) -> Path:
    """Evaluates a model on one set, going on with the manifest where there is one; returns its path."""
    path = manifest_path(arguments.output, settings["model"], settings["dataset"])
    peak = 0
    if is_main_process():
        if path.exists():
            kept = read_settings(path)
            check_same(kept, {key: value for key, value in settings.items() if key not in VARYING}, settings_path(path))
            peak = kept.get("peak_memory") or 0
        path.parent.mkdir(parents=True, exist_ok=True)
        write_settings(path, settings)
    clips = AudioDataset([source], text_column=arguments.text_column, need_text=True)
    decoding = Decoding(**settings["generation"])
    normalize = text_normalizer(arguments.normalizer, processor.tokenizer)
    with PeakMemory(model.device) as memory:
        left_out = evaluate(
            model, processor, clips, path, normalize, arguments.batch_size, decoding, arguments.num_samples
        )
    if left_out:
        logger.warning("%s: left out %d clips whose reference is empty", source, left_out)
    peak = max(peak, *all_gather([memory.peak]))
    if is_main_process():
        write_settings(path, settings | {"peak_memory": peak, "left_out": left_out, "skipped": clips.skipped})
    return path


def run(arguments: argparse.Namespace) -> None:
    """Evaluates the models, then reports."""
    names = [public_name(name) for name in arguments.models]
    for kind, called in (("models", names), ("datasets", [public_name(source) for source in arguments.dataset])):
        if len(set(called)) < len(called):
            raise InputError(f"two of the {kind} are called {max(called, key=called.count)}; rename the folder of one")
    arguments.device = join(arguments.device)
    manifests = [path for name in arguments.models for path in evaluate_model(arguments, name)]
    if not is_main_process():
        return
    report(manifests, arguments.json)
    if arguments.robustness:
        print_robustness(robustness(arguments, names))


def report(manifests: Sequence[Path], json_file: Path | None) -> None:
    """Prints what manifests say and writes tables and plots beside the first."""
    evaluations = score(manifests)
    print_report(evaluations)
    folder = manifests[0].parent
    write_summary(evaluations, folder)
    if json_file:
        write_json(evaluations, json_file)
    print(f"\nwritten to {folder} (summary.csv, error_by_set.png, error_by_size.png, *.model-index.yml)")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper evaluate") -> int:
    """Runs `lite-whisper evaluate`; returns the exit code."""
    logging.basicConfig(format="%(message)s")
    arguments = parse_arguments(argv, program)
    with logging_redirect_tqdm():
        return exit_code(lambda: run(arguments))


def main_score(argv: Sequence[str] | None = None, program: str = "lite-whisper score") -> int:
    """Runs `lite-whisper score`; returns the exit code."""
    parser = argparse.ArgumentParser(prog=program, description="Compute every figure again from manifests.")
    parser.add_argument("manifests", nargs="+", type=Path, help="files that lite-whisper evaluate has written")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: report(arguments.manifests, arguments.json))
