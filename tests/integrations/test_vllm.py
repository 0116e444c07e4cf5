"""vLLM's Whisper with the encoder of a LiteWhisper, against transformers."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import EXAMPLES, MINIATURE
from torch import nn
from transformers import WhisperForConditionalGeneration, WhisperProcessor

pytest.importorskip("vllm")  # which has an environment of its own: make vllm-test

import openai
import soundfile
from safetensors.torch import load_file, save_file
from vllm_ranks import encode, vllm_model

from lite_whisper import LiteWhisperConfig, LiteWhisperForConditionalGeneration, LowRankLinear
from lite_whisper.integrations.vllm import ARCHITECTURE, register
from lite_whisper.integrations.vllm_model import LiteWhisperForConditionalGeneration as OfVllm
from lite_whisper.integrations.vllm_model import LowRankPair, LowRankQKV

ALL = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), 96) | {"fc1": 160, "fc2": 160}
# Ranks of no common multiple, dense layers among pairs, pairs among dense layers.
RANKS: list[dict[str, int]] = [
    ALL | {"q_proj": 101, "k_proj": 77, "v_proj": 131},
    {},
    {"k_proj": 90},
    {"q_proj": 97, "v_proj": 112, "fc2": 190},
    {"out_proj": 103, "fc1": 165},
    ALL,
]
CLIPS = sorted((EXAMPLES / "digits/test").glob("*.flac"))[:10]


@torch.no_grad()
def compressed(base: WhisperForConditionalGeneration, folder: Path, ranks: list[dict[str, int]], **more: Any) -> Path:
    """Writes the miniature with projections of these ranks; no bias of a key is zero."""
    config = LiteWhisperConfig(**base.config.to_dict() | {"low_rank_config": ranks, **more})
    model = LiteWhisperForConditionalGeneration(config).eval()
    model.load_state_dict(base.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(0)
    for name, pair in model.named_modules():
        if isinstance(pair, LowRankLinear):
            dense: Any = base.get_submodule(name)
            left, values, right = torch.linalg.svd(dense.weight.t(), full_matrices=False)
            pair.weight1.copy_(left[:, : pair.rank] * values[: pair.rank])
            pair.weight2.copy_(right[: pair.rank])
            pair.bias.copy_(
                dense.bias if dense.bias is not None else torch.randn(pair.out_features, generator=generator)
            )
    for name, parameter in model.named_parameters():
        if ".padding_states." in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    model.generation_config = base.generation_config
    model.save_pretrained(folder)
    for path in MINIATURE.glob("*.json"):
        if path.name not in ("config.json", "generation_config.json"):
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def lite(base_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pairs and dense layers in every combination, and of tables of padding that are switched off."""
    padding = {"rank": 4, "margin": 2, "enabled": False}
    return compressed(base_model, tmp_path_factory.mktemp("lite") / "lite", RANKS, constant_padding=padding)


@pytest.fixture(scope="module")
def padded(base_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its tables, of random numbers, in use."""
    padding = {"rank": 4, "margin": 2, "enabled": True}
    return compressed(base_model, tmp_path_factory.mktemp("padded") / "padded", RANKS, constant_padding=padding)


@pytest.fixture(scope="module")
def features(processor: WhisperProcessor) -> torch.Tensor:
    samples = [soundfile.read(clip, dtype="float32")[0] for clip in CLIPS[:3]]
    return processor.feature_extractor(samples, sampling_rate=16000, return_tensors="pt").input_features


@pytest.fixture(scope="module")
def states(lite: Path, features: torch.Tensor) -> torch.Tensor:
    """What transformers encodes."""
    with torch.no_grad():
        return LiteWhisperForConditionalGeneration.from_pretrained(lite).get_encoder()(features)[0]


@pytest.fixture(scope="module")
def in_vllm(lite: Path) -> nn.Module:
    return vllm_model(lite)


def test_it_encodes_what_transformers_does(in_vllm, features: torch.Tensor, states: torch.Tensor) -> None:
    torch.testing.assert_close(encode(in_vllm, features), states, atol=2e-4, rtol=1e-4)


def test_pairs_are_where_the_configuration_has_them(in_vllm) -> None:
    """q, k and v share one product, of their ranks together; what is not compressed is vLLM's own layer."""
    for layer, ranks in zip(in_vllm.model.encoder.layers, RANKS, strict=True):
        for projection, module in (("out_proj", layer.self_attn), ("fc1", layer.mlp), ("fc2", layer.mlp)):
            assert isinstance(getattr(module, projection), LowRankPair) == (projection in ranks)
        stacked = [ranks[name] for name in ("q_proj", "k_proj", "v_proj") if name in ranks]
        assert isinstance(layer.self_attn.qkv_proj, LowRankQKV) == bool(stacked)
        if stacked:
            assert layer.self_attn.qkv_proj.first.output_size == sum(stacked)


def test_the_bias_of_keys_is_loaded(in_vllm, lite: Path) -> None:
    """It cancels in the softmax, so that no state shows it."""
    attention = LiteWhisperForConditionalGeneration.from_pretrained(lite).get_encoder().layers[2].self_attn
    bias = in_vllm.model.encoder.layers[2].self_attn.qkv_proj.second["k"].bias
    torch.testing.assert_close(bias.data, attention.k_proj.bias.data)
    assert bias.abs().max() > 0


def test_padding_that_is_known_is_not_computed(padded: Path, lite: Path, features, states) -> None:
    in_vllm, ours = vllm_model(padded), LiteWhisperForConditionalGeneration.from_pretrained(padded).get_encoder()
    lengths = []
    hook = in_vllm.model.encoder.layers[0].register_forward_hook(lambda *args: lengths.append(args[1][0].shape[1]))
    for batch in (features, features[:1]):
        with torch.no_grad():
            wanted = ours(batch)[0]
        torch.testing.assert_close(encode(in_vllm, batch), wanted, atol=1e-3, rtol=1e-3)
        assert (wanted - states[: len(batch)]).abs().max() > 0.1  # the tables count
    assert lengths[1] < lengths[0] < 300
    full = features[:1].clone()
    full[0, 0, -1] += 1
    torch.testing.assert_close(encode(in_vllm, full), ours(full)[0].detach(), atol=2e-4, rtol=1e-4)
    hook.remove()
    assert lengths[2] == 300


def test_constant_padding_is_switched_off(padded: Path, features: torch.Tensor, states: torch.Tensor) -> None:
    in_vllm = vllm_model(padded, hf_overrides={"constant_padding": None})
    torch.testing.assert_close(encode(in_vllm, features), states, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_two_ranks_of_tensor_parallelism(padded: Path, features: torch.Tensor, tmp_path: Path) -> None:
    with torch.no_grad():
        states = LiteWhisperForConditionalGeneration.from_pretrained(padded).get_encoder()(features)[0]
    torch.save(features, tmp_path / "features")
    program = Path(__file__).parents[1] / "vllm_ranks.py"
    same = {"VLLM_DIST_IDENT": tmp_path.name}  # by which vLLM's ranks on a CPU find their shared memory
    ranks = [
        subprocess.Popen([sys.executable, program, padded, tmp_path, str(rank), "2"], env=environment() | same)
        for rank in range(2)
    ]
    assert [rank.wait(timeout=900) for rank in ranks] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"states-{rank}")
        torch.testing.assert_close(found["states"], states, atol=1e-3, rtol=1e-3)
        assert found["first of q, k and v"] == 309 and found["second of q"] == 256 // 2
        assert found["first of fc2"] == 1024 // 2 and found["second of fc2"] == 256


def test_ranks_not_supported_by_quantisation_are_merged(lite: Path, features, states, caplog) -> None:
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    class Quantisation(QuantizationConfig):
        """Quantises nothing."""

        get_name = get_supported_act_dtypes = get_min_capability = get_config_filenames = from_config = None

        def get_quant_method(self, layer: nn.Module, prefix: str) -> UnquantizedLinearMethod | None:
            return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None

    model = vllm_model(lite, quant_config=Quantisation())
    refused = {name for name, rank in RANKS[0].items() if rank % 16}
    assert refused == {"q_proj", "k_proj", "v_proj"}
    layers = model.model.encoder.layers
    assert not isinstance(layers[0].self_attn.qkv_proj, LowRankQKV) and isinstance(layers[0].mlp.fc1, LowRankPair)
    assert [*layers[3].self_attn.qkv_proj.ranks] == ["v"]
    torch.testing.assert_close(encode(model, features), states, atol=2e-4, rtol=1e-4)


def test_missing_factors_are_named(lite: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(lite, tmp_path / "lite"))
    weights = load_file(folder / "model.safetensors")
    gone = "model.encoder.layers.0.self_attn.v_proj.weight1"
    del weights[gone]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"factors missing from the file: 1, e.g. {gone}"):
        vllm_model(folder)


def test_a_prompt_is_as_in_transformers(processor: WhisperProcessor) -> None:
    wanted = processor.get_prompt_ids("one two").tolist()
    request = SimpleNamespace(
        audio=None,
        stt_config=SimpleNamespace(sample_rate=16000),
        language="en",
        task_type="transcribe",
        request_prompt="one two",
    )
    text = OfVllm.get_generation_prompt(request)["decoder_prompt"]["prompt"]
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    forced = processor.get_decoder_prompt_ids(language="en", task="transcribe")
    start = processor.tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    assert ids == [*wanted, start, *(token for _, token in forced)]
    request.request_prompt = None
    assert "<|startofprev|>" not in OfVllm.get_generation_prompt(request)["decoder_prompt"]["prompt"]


def test_it_is_registered_by_name_alone() -> None:
    """The model is not imported by that, which would be too early where processes fork."""
    register()
    program = (
        "import sys; from lite_whisper.integrations.vllm import register; register(); register()\n"
        "from vllm import ModelRegistry\n"
        f"print('{ARCHITECTURE}' in ModelRegistry.get_supported_archs())\n"
        "print('vllm.model_executor.models.whisper' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert result.stdout.split()[-2:] == ["True", "False"], result.stderr


def environment() -> dict[str, str]:
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **settings}


class Served:
    """`vllm serve` on a folder, on the loopback address, and OpenAI's client for it."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "lite"]
        command = [str(Path(sys.executable).with_name("vllm")), "serve", str(folder), *options, "--enforce-eager"]
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment())
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600)

    def wait(self, seconds: int = 900) -> "Served":
        for _ in range(seconds):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                self.client.models.list()
                return self
            except openai.APIConnectionError:
                time.sleep(1)
        raise TimeoutError(self.log.read_text()[-3000:])

    def transcribe(self, clip: Path, **options: Any) -> Any:
        with clip.open("rb") as audio:
            return self.client.audio.transcriptions.create(model="lite", file=audio, temperature=0, **options)


@pytest.fixture(scope="module")
def served(lite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(lite, tmp_path_factory.mktemp("served") / "log")
    try:
        yield server.wait()
    finally:
        server.process.terminate()
        server.process.wait(timeout=120)


@pytest.fixture(scope="module")
def transcribe(lite: Path, processor: WhisperProcessor) -> Any:
    """What transformers writes."""
    model = LiteWhisperForConditionalGeneration.from_pretrained(lite).eval()

    def of(clip: Path, prompt: str | None = None, language: str | None = "en") -> str:
        samples, rate = soundfile.read(clip, dtype="float32")
        features = processor.feature_extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
        prompt_ids = None if prompt is None else processor.get_prompt_ids(prompt, return_tensors="pt")
        tokens = model.generate(features, language=language, task="transcribe", prompt_ids=prompt_ids, max_length=96)
        return processor.decode(tokens[0], skip_special_tokens=True).strip()

    return of


@pytest.mark.slow
def test_transcripts_are_those_of_transformers(served: Served, transcribe) -> None:
    found = [served.transcribe(clip, language="en").text.strip() for clip in CLIPS]
    assert found == [transcribe(clip) for clip in CLIPS]


@pytest.mark.slow
def test_prompts_and_languages(served: Served, transcribe) -> None:
    prompt = "one two three"
    for clip in CLIPS[:4]:
        found = served.transcribe(clip, language="en", prompt=prompt).text
        # The miniature knows no prompts, and writes times, which transformers leaves out.
        assert re.sub(r"<\|[\d.]+\|>", "", found).strip() == transcribe(clip, prompt)
        assert served.transcribe(clip, language="de").text.strip() == transcribe(clip, language="de")
        assert served.transcribe(clip).text.strip() == transcribe(clip, language=None)
    with pytest.raises(openai.BadRequestError):
        served.transcribe(CLIPS[0], language="xx")


@pytest.mark.slow
def test_segments_and_streams(served: Served) -> None:
    for clip in CLIPS[:3]:
        whole = served.transcribe(clip, language="en").text
        deltas = list(served.transcribe(clip, language="en", stream=True))
        assert "".join(delta.choices[0]["delta"].get("content") or "" for delta in deltas) == whole
        verbose = served.transcribe(clip, language="en", response_format="verbose_json")
        length = soundfile.info(clip).duration
        assert verbose.language == "en" and float(verbose.duration) == pytest.approx(length, abs=0.01)
        assert verbose.segments and all(0 <= segment.start <= segment.end <= length + 1 for segment in verbose.segments)
        assert "".join(segment.text for segment in verbose.segments).strip()


@pytest.mark.slow
def test_fifty_at_once(served: Served) -> None:
    """None is lost, and each gets the text of its own clip."""
    alone = [served.transcribe(clip, language="en").text for clip in CLIPS]
    with ThreadPoolExecutor(50) as threads:
        texts = list(threads.map(lambda index: served.transcribe(CLIPS[index % 10], language="en").text, range(50)))
    assert texts == alone * 5


@pytest.mark.slow
def test_the_entry_point_was_found(served: Served) -> None:
    assert ARCHITECTURE in served.log.read_text()
