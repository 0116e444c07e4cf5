"""
Transcribe a set of the Open ASR leaderboard with a LiteWhisper, in the form of the leaderboard's submissions.

    PYTHONPATH=open_asr_leaderboard python run_eval.py --model_id org/name --revision COMMIT \
        --dataset ami_cleaned --split test --device 0 --batch_size 1024

It needs the folder `normalizer` of github.com/huggingface/open_asr_leaderboard, which loads the set and writes the
manifest, and the model's own remote code; lite-whisper itself need not be installed. Before anything is timed it looks
for the largest batch that fits, runs the longest clips through it, and measures whether compiled decoding pays.
"""

import argparse
import io
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from accelerate.utils import find_executable_batch_size
from datasets import Audio, Dataset
from kaldialign import batch_error_rate
from normalizer import data_utils
from tqdm import tqdm
from transformers import AutoModelForSpeechSeq2Seq, CompileConfig, WhisperProcessor

RATE = 16_000
PROMPT = 4  # tokens that Whisper writes before the text: start, language, task, no times


class Recognizer:
    """
    A model that writes down batches of clips.

    Args:
        arguments (`argparse.Namespace`): those of the program.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        device = "cpu" if arguments.device < 0 else f"cuda:{arguments.device}"
        model = AutoModelForSpeechSeq2Seq.from_pretrained(
            arguments.model_id,
            revision=arguments.revision,
            dtype=getattr(torch, arguments.dtype),
            trust_remote_code=True,
        )
        self.model = model.to(device).eval()
        self.processor = WhisperProcessor.from_pretrained(arguments.model_id, revision=arguments.revision)
        multilingual = getattr(model.generation_config, "is_multilingual", False)
        self.speech = {"language": "en", "task": "transcribe"} if multilingual else {}
        self.max_length = model.config.max_target_positions
        self.batch_size = 1
        self.compiled: dict[str, Any] = {}
        print(f"Model size: {sum(p.numel() for p in model.parameters()) / 1e9:.2f}B parameters")

    def __call__(self, audios: Sequence[np.ndarray], min_new_tokens: int | None = None) -> tuple[list[str], float]:
        """The texts of clips of 16 kHz, at the most a batch, and the seconds from samples to text."""
        start = self.now()
        # A compiled decoder is compiled for one shape.
        filling = [audios[-1]] * (self.batch_size - len(audios) if self.compiled else 0)
        features = self.processor.feature_extractor(
            [*audios, *filling], sampling_rate=RATE, return_tensors="pt", device=str(self.model.device)
        )
        tokens = self.model.generate(
            features.input_features.to(self.model.device, self.model.dtype),
            **self.speech,
            **self.compiled,
            num_beams=1,
            do_sample=False,
            max_length=self.max_length,  # not in the settings of some published models
            min_new_tokens=min_new_tokens,
        )
        texts = self.processor.batch_decode(tokens[: len(audios)], skip_special_tokens=True)
        return texts, self.now() - start

    def now(self) -> float:
        """Seconds, when the device has done what it was told."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def prepare(self, longest: Sequence[np.ndarray], batch_size: int, steps: int, mode: str) -> None:
        """
        Chooses the batch size and whether to compile, and warms up.

        Args:
            longest (`Sequence[np.ndarray]`): the longest clips of the set; repeated where a batch is larger.
            batch_size (`int`): the largest to try; a tenth less where memory does not suffice, and so on.
            steps (`int`): batches to run before one is timed.
            mode (`str`): of `torch.compile`, or `none`.
        """

        @find_executable_batch_size(starting_batch_size=batch_size)
        def largest(size: int) -> list[np.ndarray]:
            self.batch_size = size
            if hasattr(self.model, "optimize_for_inference"):  # not in a stock Whisper, to compare with
                self.model.optimize_for_inference(batch_size=size)
            audios = list(itertools.islice(itertools.cycle(longest), size))
            self(audios, self.max_length - PROMPT - 1)  # the most memory that a batch can need
            return audios

        audios = largest()
        ways: dict[str, dict[str, Any]] = {"eager": {}}
        if mode != "none":
            ways[mode] = {"cache_implementation": "static", "compile_config": CompileConfig(mode=mode, fullgraph=False)}
        seconds = {}
        for name, settings in ways.items():
            self.compiled = settings
            try:
                seconds[name] = [self(audios)[1] for _ in range(steps + 1)][-1]
            except torch.OutOfMemoryError:
                print(f"{name} needs more memory than there is at this batch size")
        fastest = min(seconds, key=seconds.__getitem__)
        self.compiled = ways[fastest]
        print(f"batch size {self.batch_size}, {fastest}; seconds for a batch: {seconds}")


def decode(audio: dict[str, Any]) -> np.ndarray:
    """The samples at 16 kHz, mono, of a clip as `datasets` stores it."""
    samples, rate = soundfile.read(io.BytesIO(audio["bytes"]) if audio["bytes"] else audio["path"], dtype="float32")
    mono = samples.mean(axis=1) if samples.ndim > 1 else samples
    return soxr.resample(mono, rate, RATE) if rate != RATE else mono


def load(arguments: argparse.Namespace) -> Dataset:
    """The clips of a set that are scored, the longest first where the set says how long they are."""
    dataset = data_utils.prepare_data(data_utils.load_data(arguments)).cast_column("audio", Audio(decode=False))
    if arguments.max_eval_samples > 0:
        dataset = dataset.select(range(min(arguments.max_eval_samples, len(dataset))))
    return dataset.sort("audio_length_s", reverse=True) if "audio_length_s" in dataset.column_names else dataset


def transcribe(recognizer: Recognizer, dataset: Dataset, arguments: argparse.Namespace) -> dict[str, list]:
    """What the manifest says of each clip, by the leaderboard's names for it."""
    kept = data_utils.CHUNK_METADATA_KEYS if data_utils.is_chunked_dataset(arguments.dataset_path) else []
    names = ("references", "predictions", "audio_length", "transcription_time", "audio_filepaths", *kept)
    found: dict[str, list] = {name: [] for name in names}
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(decode, dataset[: arguments.batch_size]["audio"])
        size = min(arguments.batch_size, len(dataset))
        recognizer.prepare(list(decoded), size, arguments.warmup_steps, arguments.torch_compile)
        for start in tqdm(range(0, len(dataset), recognizer.batch_size)):
            rows = dataset[start : start + recognizer.batch_size]
            audios = list(pool.map(decode, rows["audio"]))
            texts, seconds = recognizer(audios)
            found["references"] += rows["original_text"]
            found["predictions"] += texts
            found["audio_length"] += [len(audio) / RATE for audio in audios]
            found["transcription_time"] += [seconds / len(audios)] * len(audios)
            found["audio_filepaths"] += data_utils.extract_audio_filepaths_from_batch(rows, len(audios))
            for name in kept:
                found[name] += rows[name]
    return found


def report(manifest: str, found: dict[str, list]) -> None:
    """Prints the error rate as the leaderboard counts it, and the seconds of audio written down in a second."""
    lines = data_utils.merge_chunked_manifest(data_utils.read_manifest(manifest))
    texts = ([tuple(data_utils.normalizer(line[name]).split()) for line in lines] for name in ("text", "pred_text"))
    rtfx = sum(found["audio_length"]) / sum(found["transcription_time"])
    print(f"WER: {100 * batch_error_rate(*texts, merge_compounds=True)['err_rate']:.2f} % RTFx: {rtfx:.2f}")
    print(f"manifest: {manifest}")


def main() -> None:
    """Writes the manifest of one set into `results`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_id", required=True)
    parser.add_argument("--revision", help="the commit of the model, whose code is run")
    parser.add_argument("--dataset_path", default="hf-audio/open-asr-leaderboard")
    parser.add_argument("--dataset", required=True, help="its configuration")
    parser.add_argument("--split", default="test")
    parser.add_argument("--device", type=int, default=-1, help="number of the GPU; -1 is the CPU")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--batch_size", type=int, default=1024, help="the largest to try")
    parser.add_argument("--max_eval_samples", type=int, default=-1)
    parser.add_argument("--warmup_steps", type=int, default=2)
    parser.add_argument("--torch_compile", default="reduce-overhead", metavar="MODE", help="of torch.compile, or none")
    parser.set_defaults(streaming=False)  # the set is there before the time is taken
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    found = transcribe(Recognizer(arguments), load(arguments), arguments)
    manifest = data_utils.write_manifest(
        found["references"],
        found["predictions"],
        arguments.model_id,
        arguments.dataset_path,
        arguments.dataset,
        arguments.split,
        audio_length=found["audio_length"],
        transcription_time=found["transcription_time"],
        audio_filepaths=found["audio_filepaths"],
        extra_fields={name: found[name] for name in data_utils.CHUNK_METADATA_KEYS if name in found},
    )
    report(manifest, found)


if __name__ == "__main__":
    main()
