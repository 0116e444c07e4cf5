"""The command line: compress the encoder of a Whisper and write a complete model folder."""

import argparse
import hashlib
import importlib.metadata
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lite_whisper.audio import AudioDataset, Clip
from lite_whisper.errors import InputError, exit_code
from lite_whisper.evaluation.transcription import transcribe
from lite_whisper.evaluation.word_error_rate import NORMALIZERS, text_normalizer, word_error_rate
from lite_whisper.lowrank.allocation import EncoderSpectra, Ranks, budget_ranks, threshold_ranks
from lite_whisper.lowrank.calibration import (
    EncoderMoments,
    collect_moments,
    feature_batches,
    load_moments,
    save_moments,
)
from lite_whisper.lowrank.compression import compress, encoder_spectra
from lite_whisper.lowrank.sensitivity import collect_sensitivities
from lite_whisper.lowrank.sequential import refit
from lite_whisper.model_folder import load_base_model, merge, save_model_folder, upgrade
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.saving import check_output_folder

logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).parent / "examples"
# Encoder parameters of the published checkpoints, in millions.
PRESETS: dict[str, dict[str, float]] = {
    "whisper-tiny": {"acc": 7.41, "plain": 7.00, "fast": 6.48},
    "whisper-base": {"acc": 18.64, "plain": 17.44, "fast": 16.07},
    "whisper-small": {"acc": 76.99, "plain": 70.16, "fast": 63.11},
    "whisper-medium": {"acc": 269.93, "plain": 239.99, "fast": 215.31},
    "whisper-large-v3": {"acc": 429, "plain": 377, "fast": 308},
    "whisper-large-v3-turbo": {"acc": 421, "plain": 374, "fast": 313},
}
PRESET_RATIOS = {name: size / 635 for name, size in PRESETS["whisper-large-v3"].items()}


def parse_arguments(argv: Sequence[str] | None = None, program: str = "convert.py") -> argparse.Namespace:
    """The arguments of `convert.py`, with the bundled miniature filled in where no model is named."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Compress the encoder of a Whisper by low-rank factorisation. "
        "Without arguments: the bundled miniature Whisper, calibrated and evaluated on its bundled audio.",
    )
    parser.add_argument("--model", help="Hub id or folder of a Whisper, for example openai/whisper-small")
    parser.add_argument(
        "--dataset",
        nargs="+",
        action="extend",
        help="calibration audio: files, folders, or Hub datasets as org/name[:config[:split]]; may be repeated",
    )
    parser.add_argument(
        "--merge",
        metavar="LITE_WHISPER",
        help="instead of compressing: multiply the pairs of a compressed model out and write a stock Whisper",
    )
    parser.add_argument(
        "--upgrade",
        metavar="LITE_WHISPER",
        help="instead of compressing: rewrite a checkpoint of efficient-speech/ as a complete model folder",
    )
    parser.add_argument("--base-model", help="with --upgrade: the Whisper that it was made from, if unknown")
    parser.add_argument("--output", type=Path, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the model folder at --output")
    parser.add_argument(
        "--recipe",
        choices=("loss-aware", "liteasr"),
        help="loss-aware (default): what the recognition loss feels least is cut, to a size of one's choice; "
        "liteasr: the published recipe, variance by thresholds",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--encoder-params", type=_parameters, metavar="313M", help="parameters the encoder may have")
    size.add_argument("--ratio", type=_ratio, help="share of the encoder's parameters to keep")
    size.add_argument(
        "--preset",
        choices=("acc", "plain", "fast"),
        help="the sizes of the published checkpoints, or the same shares of other models (default plain)",
    )
    size.add_argument(
        "--thresholds",
        type=_thresholds,
        metavar="ATTENTION:MLP",
        help="with liteasr: share of the variance to keep in attention and in the MLP (default 0.99:0.999)",
    )
    parser.add_argument("--rank-multiple", type=_positive, default=16, help="ranks are multiples of this (default 16)")
    parser.add_argument(
        "--num-samples",
        type=_positive,
        default=100,
        help="windows of calibration audio, 30 s each for the published Whispers (default 100)",
    )
    parser.add_argument("--seed", type=int, default=0, help="which samples are taken from the dataset (default 0)")
    parser.add_argument("--batch-size", type=_positive, default=8, help="windows that run at once (default 8)")
    parser.add_argument(
        "--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="what the model computes in meanwhile (default float32); it is saved in the base model's own",
    )
    parser.add_argument(
        "--moments",
        type=Path,
        help="keep the calibration in this file; where it exists already, no audio is read",
    )
    parser.add_argument(
        "--evaluate",
        nargs="+",
        metavar="DATASET",
        help="transcribe these before and after; word error rate and encoder time go into the report",
    )
    parser.add_argument("--normalizer", choices=NORMALIZERS, default="basic", help="of the texts (default basic)")
    arguments = parser.parse_args(argv)
    sources = [name for name in ("model", "merge", "upgrade") if getattr(arguments, name)]
    if len(sources) > 1:
        parser.error(f"--{sources[0]} and --{sources[1]} exclude each other")
    if arguments.base_model and not arguments.upgrade:
        parser.error("--base-model goes with --upgrade; the model to compress is --model")
    if not sources:
        if not EXAMPLES.exists():
            parser.error("the bundled miniature only comes with a clone of the repository; give --model and --dataset")
        arguments.model = str(EXAMPLES / "whisper-digits")
        arguments.dataset = arguments.dataset or [str(EXAMPLES / "digits" / "calibration")]
        arguments.evaluate = arguments.evaluate or [str(EXAMPLES / "digits" / "test")]
        arguments.output = arguments.output or Path("build/lite-whisper-digits")
    arguments.recipe = arguments.recipe or ("liteasr" if arguments.thresholds else "loss-aware")
    if arguments.recipe == "liteasr":
        if arguments.encoder_params or arguments.ratio or arguments.preset:
            parser.error("--recipe liteasr takes no size; choose --thresholds, or leave --recipe out")
        arguments.thresholds = arguments.thresholds or (0.99, 0.999)
    elif arguments.thresholds:
        parser.error("--thresholds belong to --recipe liteasr; choose --encoder-params, --ratio or --preset")
    elif arguments.moments:
        parser.error("--moments goes with --recipe liteasr; the loss-aware one reads the audio more than once")
    if arguments.model and arguments.dataset is None and not (arguments.moments and arguments.moments.exists()):
        parser.error("--dataset is needed: files, folders or Hub datasets with audio like that of the use to come")
    if arguments.output is None:
        parser.error("--output is needed: the folder to write")
    return arguments


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _thresholds(text: str) -> tuple[float, float]:
    try:
        attention, mlp = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0.99:0.999") from None
    if not (0 < attention < 1 and 0 < mlp < 1):
        raise argparse.ArgumentTypeError(f"both shares of {text} must lie between 0 and 1, for example 0.99:0.999")
    return attention, mlp


def _parameters(text: str) -> int:
    units = {"K": 1e3, "M": 1e6, "B": 1e9}
    try:
        count = float(text[:-1]) * units[text[-1].upper()] if text[-1:].upper() in units else float(text)
    except ValueError:
        count = 0
    if not 0 < count < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of parameters such as 313M")
    return int(count)


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0
    if not 0 < ratio <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1, such as 0.5")
    return ratio


def _device(text: str) -> str:
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text} cannot be used ({reason}); use cpu, or cuda with a GPU") from None
    return text


def fingerprint(model: WhisperForConditionalGeneration) -> str:
    """A digest of the encoder's weights, by which stored moments are known to belong to them."""
    digest = hashlib.sha256()
    for parameter in model.get_encoder().parameters():
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def calibration_settings(arguments: argparse.Namespace, weights: str) -> dict[str, Any]:
    """What decides the outcome of a calibration: the encoder, by its fingerprint, and the options."""
    return {
        "encoder_weights": weights,
        "datasets": arguments.dataset,
        "num_samples": arguments.num_samples,
        "seed": arguments.seed,
        "dtype": arguments.dtype,
    }


def calibrate(
    arguments: argparse.Namespace, model: WhisperForConditionalGeneration, processor: WhisperProcessor, weights: str
) -> tuple[EncoderMoments, dict[str, Any]]:
    """The moments of the encoder and what they were computed from, read from `--moments` where it exists."""
    wanted = calibration_settings(arguments, weights)
    if arguments.moments and arguments.moments.exists():
        if arguments.moments.is_dir():
            raise InputError(f"--moments {arguments.moments} is a folder; name a file to keep the calibration in")
        moments, origin = load_moments(arguments.moments)
        if arguments.dataset is None:
            wanted |= {name: origin.get(name) for name in ("datasets", "num_samples", "seed", "dtype")}
        differences = [
            f"{name} {origin.get(name)} there, {wanted[name]} here"
            for name in wanted
            if origin.get(name) != wanted[name]
        ]
        if differences:
            raise InputError(
                f"{arguments.moments} holds moments of something else: {'; '.join(differences)}. "
                "Name another file, or remove this one to compute them anew"
            )
        return moments, origin
    audio = AudioDataset(arguments.dataset, seed=arguments.seed)
    batches = feature_batches(audio, processor.feature_extractor, arguments.num_samples, arguments.batch_size)
    moments = collect_moments(model, batches, arguments.num_samples)
    if audio.skipped:
        logger.warning("skipped %d clips that could not be read", len(audio.skipped))
    origin = {**wanted, "frames": moments[0]["q_proj"].count, "skipped": audio.skipped}
    if arguments.moments:
        save_moments(moments, arguments.moments, origin)
    return moments, origin


def measure(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    arguments: argparse.Namespace,
    stored_dtype: torch.dtype,
) -> dict[str, float]:
    """Sizes of a model and, where there are clips, its word error rate and encoder time."""
    figures = {
        "encoder_parameters": sum(parameter.numel() for parameter in model.get_encoder().parameters()),
        "total_parameters": model.num_parameters(),
        "weight_bytes": model.num_parameters() * stored_dtype.itemsize,
    }
    if clips:
        transcripts = transcribe(model, processor, clips, arguments.batch_size)
        normalize = text_normalizer(arguments.normalizer, processor.tokenizer)
        figures["word_error_rate"] = word_error_rate([clip.text or "" for clip in clips], transcripts.texts, normalize)
        figures["encoder_milliseconds"] = transcripts.encoder_time.milliseconds_per_window
    return figures


def print_report(before: dict[str, float], after: dict[str, float]) -> None:
    """Prints the figures of both models as a table."""
    rows = {
        "encoder parameters": ("encoder_parameters", 1e6, "M"),
        "total parameters": ("total_parameters", 1e6, "M"),
        "weights on disk": ("weight_bytes", 1e6, "MB"),
        "word error rate": ("word_error_rate", 1, "%"),
        "encoder, per window": ("encoder_milliseconds", 1, "ms"),
    }
    print(f"\n{'':20}{'before':>14}{'after':>14}{'after/before':>14}")
    for label, (key, unit, name) in rows.items():
        if key in before:
            ratio = f"{after[key] / before[key]:13.1%}" if before[key] else f"{'-':>13}"
            print(f"{label:20}{before[key] / unit:11.2f} {name:<2}{after[key] / unit:11.2f} {name:<2} {ratio}")


def encoder_budget(arguments: argparse.Namespace, parameters: int) -> int:
    """How many parameters the encoder may have, of which it has `parameters` now."""
    if arguments.encoder_params:
        return arguments.encoder_params
    if arguments.ratio:
        return int(arguments.ratio * parameters)
    preset = arguments.preset or "plain"
    published = PRESETS.get(Path(arguments.model).name)
    return int(published[preset] * 1e6) if published else int(PRESET_RATIOS[preset] * parameters)


def as_stored(
    arguments: argparse.Namespace, model: WhisperForConditionalGeneration, stored_dtype: torch.dtype
) -> WhisperForConditionalGeneration:
    """The model, loaded again where `--dtype` has rounded its weights: calibration may be rough, the result may not."""
    if torch.promote_types(model.dtype, stored_dtype) == model.dtype:
        return model
    return load_base_model(arguments.model)[0].to(arguments.device)  # type: ignore[arg-type]


def compress_liteasr(
    arguments: argparse.Namespace, model: WhisperForConditionalGeneration, processor: WhisperProcessor, weights: str
) -> tuple[LiteWhisperForConditionalGeneration, dict[str, Any]]:
    """The published recipe; returns the model and what there is to say of it."""
    stored_dtype = model.dtype
    model.to(device=arguments.device, dtype=getattr(torch, arguments.dtype))  # type: ignore[call-arg]
    moments, calibration = calibrate(arguments, model, processor, weights)
    model = as_stored(arguments, model, stored_dtype)
    spectra = encoder_spectra(model, moments)
    ranks = threshold_ranks(spectra, arguments.thresholds, arguments.rank_multiple)
    return compress(model, moments, ranks), {
        "recipe": {"name": "liteasr", "thresholds": arguments.thresholds, "rank_multiple": arguments.rank_multiple},
        "calibration": calibration,
        "variance_kept": variance_kept(spectra, ranks),
    }


def compress_loss_aware(
    arguments: argparse.Namespace, model: WhisperForConditionalGeneration, processor: WhisperProcessor, weights: str
) -> tuple[LiteWhisperForConditionalGeneration, dict[str, Any]]:
    """The default recipe: errors in units of the loss, one budget, sequential refit."""
    audio = AudioDataset(arguments.dataset, seed=arguments.seed)
    batches = list(feature_batches(audio, processor.feature_extractor, arguments.num_samples, arguments.batch_size))
    if audio.skipped:
        logger.warning("skipped %d clips that could not be read", len(audio.skipped))
    windows, stored_dtype = sum(map(len, batches)), model.dtype
    model.to(device=arguments.device, dtype=getattr(torch, arguments.dtype))  # type: ignore[call-arg]
    moments = collect_moments(model, batches, windows)
    sensitivities = collect_sensitivities(model, batches, arguments.seed, windows)
    model = as_stored(arguments, model, stored_dtype)
    spectra = encoder_spectra(model, moments, sensitivities)
    dense = sum(spectrum.dense_parameters for of_layer in spectra for spectrum in of_layer.values())
    parameters = sum(parameter.numel() for parameter in model.get_encoder().parameters())
    budget = encoder_budget(arguments, parameters)
    ranks = budget_ranks(spectra, budget - (parameters - dense), arguments.rank_multiple)
    return refit(model, batches, ranks, sensitivities), {
        "recipe": {"name": "loss-aware", "encoder_parameters": budget, "rank_multiple": arguments.rank_multiple},
        "calibration": {
            **calibration_settings(arguments, weights),
            "frames": moments[0]["q_proj"].count,
            "skipped": audio.skipped,
        },
        "predicted_loss": predicted_loss(spectra, ranks, model.config.max_source_positions),
    }


def convert(arguments: argparse.Namespace) -> None:
    """Compresses the model that the arguments name and writes the result."""
    evaluated = list(AudioDataset(arguments.evaluate)) if arguments.evaluate else []
    if not all(clip.text for clip in evaluated):
        raise InputError("--evaluate needs transcripts: a folder with metadata.csv, or a dataset with a text column")
    model, base_folder = load_base_model(arguments.model)
    processor = WhisperProcessor.from_pretrained(base_folder)
    weights, stored_dtype = fingerprint(model), model.dtype
    recipe = compress_liteasr if arguments.recipe == "liteasr" else compress_loss_aware
    lite, account = recipe(arguments, model, processor, weights)
    before = measure(model, processor, evaluated, arguments, stored_dtype)
    after = measure(lite, processor, evaluated, arguments, stored_dtype)
    lite.to(dtype=stored_dtype)  # type: ignore[call-arg]
    calibration = account["calibration"]
    report = {
        "base_model": _public_name(arguments.model),
        **account,
        "calibration": {**calibration, "datasets": [_public_name(source) for source in calibration["datasets"]]},
        "low_rank_config": lite.config.low_rank_config,
        "before": before,
        "after": after,
        "versions": {
            name: importlib.metadata.version(name) for name in ("lite-whisper", "torch", "transformers", "numpy")
        },
    }
    save_model_folder(lite, base_folder, arguments.output, report)
    print_report(before, after)
    print(f"\nwritten to {arguments.output} (what was done: compression.json, the ranks: ranks.png)")


def _public_name(source: str) -> str:
    """What a published file may say of a model or dataset: the Hub id, but of a path on this machine only the name."""
    path = Path(source)
    # A dataset may be gone by now where its moments were kept.
    return path.resolve().name if path.exists() or path.is_absolute() or source.startswith((".", "~")) else source


def variance_kept(spectra: EncoderSpectra, ranks: Ranks) -> list[dict[str, float]]:
    """The share of the output variance that each projection keeps; 1 where it stays dense."""
    return [
        {
            projection: spectrum.share(of_layer[projection]) if projection in of_layer else 1.0
            for projection, spectrum in spectra_of_layer.items()
        }
        for spectra_of_layer, of_layer in zip(spectra, ranks, strict=True)
    ]


def predicted_loss(spectra: EncoderSpectra, ranks: Ranks, frames: int) -> list[dict[str, float]]:
    """What each projection is predicted to add to the loss, in nats per window of `frames` frames; 0 if dense."""
    return [
        {
            projection: frames / 2 * float(spectrum.eigenvalues[of_layer[projection] :].sum())
            if projection in of_layer
            else 0.0
            for projection, spectrum in spectra_of_layer.items()
        }
        for spectra_of_layer, of_layer in zip(spectra, ranks, strict=True)
    ]


def run(arguments: argparse.Namespace) -> None:
    """Does what the arguments ask for, once the output is known to be writable."""
    source = arguments.model or arguments.merge or arguments.upgrade
    check_output_folder(arguments.output, arguments.overwrite)
    if arguments.output.resolve() == Path(source).resolve():
        raise InputError(f"--output is {source} itself; choose another folder")
    if arguments.model:
        convert(arguments)
    else:
        if arguments.merge:
            merge(arguments.merge, arguments.output)
        else:
            upgrade(arguments.upgrade, arguments.base_model, arguments.output)
        print(f"written to {arguments.output}")


def main(argv: Sequence[str] | None = None, program: str = "convert.py") -> int:
    """Runs the command line; returns the exit code."""
    logging.basicConfig(format="%(message)s")
    arguments = parse_arguments(argv, program)
    with logging_redirect_tqdm():
        return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
