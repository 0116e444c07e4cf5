"""
Every mode of transcription gives the same result with LiteWhisper and the stock Whisper from `to_whisper`.

With constant padding, the stock Whisper uses the outputs of the LiteWhisper encoder.
The tests use remote code only: the package is not imported, and not installed beside transformers 4.57.
"""

import copy
import sys
from threading import Thread

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSpeechSeq2Seq,
    TextIteratorStreamer,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    pipeline,
)

ENGLISH = {"language": "en", "task": "transcribe", "num_beams": 1}
FALLBACK = {
    "temperature": (0.0, 0.4, 0.8),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -0.5,
    "no_speech_threshold": 0.6,
}

PIPELINE_MODES = {
    "short": ("short", {}, {}),
    "short, 5 beams": ("short", {}, {"num_beams": 5}),
    "short, segments": ("short", {"return_timestamps": True}, {}),
    "short, words": ("short", {"return_timestamps": "word"}, {}),
    "short, language returned": ("short", {"return_language": True, "return_timestamps": True}, {"language": None}),
    "short, language detected": ("short", {}, {"language": None}),
    "short, translate": ("short", {}, {"task": "translate"}),
    "short, sampled": ("short", {}, {"do_sample": True, "temperature": 0.7}),
    "short, prompt": ("short", {}, {"prompt_ids": " seven eight"}),
    "batch": ("batch", {"batch_size": 4}, {}),
    "batch, words": ("batch", {"batch_size": 2, "return_timestamps": "word"}, {}),
    "long": ("long", {}, {}),
    "long, segments": ("long", {"return_timestamps": True}, {}),
    "long, words": ("long", {"return_timestamps": "word"}, {}),
    "long, 5 beams": ("long", {"return_timestamps": True}, {"num_beams": 5}),
    "long, previous tokens": ("long", {"return_timestamps": True}, {"condition_on_prev_tokens": True}),
    "long, fallback": ("long", {"return_timestamps": True}, FALLBACK),
    "long, fallback with previous tokens": (
        "long",
        {"return_timestamps": True},
        FALLBACK | {"condition_on_prev_tokens": True},
    ),
    "long, prompt for all segments": (
        "long",
        {"return_timestamps": True},
        {"prompt_ids": " seven", "prompt_condition_type": "all-segments", "condition_on_prev_tokens": True},
    ),
    "long, chunked": ("long", {"chunk_length_s": 6}, {}),
    "long, chunked in batches": ("long", {"chunk_length_s": 5, "stride_length_s": 1, "batch_size": 3}, {}),
    "long, chunked segments": ("long", {"chunk_length_s": 6, "return_timestamps": True}, {}),
    "long, chunked words": ("long", {"chunk_length_s": 6, "return_timestamps": "word"}, {}),
    "long, chunked language": (
        "long",
        {"chunk_length_s": 6, "return_language": True, "return_timestamps": True},
        {"language": None},
    ),
}

GENERATE_MODES = {
    "greedy": ("short", {}),
    "5 beams": ("short", {"num_beams": 5}),
    "static cache": ("short", {"cache_implementation": "static"}),
    "dynamic cache": ("short", {"cache_implementation": "dynamic"}),
    "no cache": ("short", {"use_cache": False}),
    "timestamps": ("short", {"return_timestamps": True}),
    "token timestamps": ("short", {"return_token_timestamps": True, "return_timestamps": True}),
    "batch": ("batch", {}),
    "batch, timestamps": ("batch", {"return_timestamps": True}),
    "batch, prompt": ("batch", {"prompt_ids": " seven eight"}),
    "batch, 3 sampled": ("batch", {"do_sample": True, "num_return_sequences": 3}),
    "long": ("long", {"return_timestamps": True}),
    "long, segments returned": ("long", {"return_timestamps": True, "return_segments": True}),
    "long, static cache": ("long", {"return_timestamps": True, "cache_implementation": "static"}),
    "long, previous tokens": ("long", {"return_timestamps": True, "condition_on_prev_tokens": True}),
    "long, fallback": ("long", {"return_timestamps": True, **FALLBACK}),
    "short, 2 beams with scores": ("short", {"num_beams": 2, "return_dict_in_generate": True, "output_scores": True}),
}


def with_encoder_of(stock, lite):
    """Replaces the encoder outputs of the stock Whisper by those of the LiteWhisper."""
    encoder = copy.deepcopy(lite).get_encoder()
    encoder.config._attn_implementation = "eager"  # as generate() sets it to get attention weights

    def replaced(module, args, kwargs, output):
        return encoder(*args, **kwargs)

    stock.get_encoder().register_forward_hook(replaced, with_kwargs=True)
    return stock


@pytest.fixture(scope="module", params=["compressed", "padded"])
def pair(request, models):
    """A LiteWhisper, the stock Whisper it converts to, and their processor."""
    folder = models / request.param
    lite = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(lite).__module__.startswith("transformers_modules") and "lite_whisper" not in sys.modules
    stock = lite.to_whisper()
    assert type(stock) is WhisperForConditionalGeneration
    if request.param == "padded":
        with_encoder_of(stock, lite)
    return lite, stock, WhisperProcessor.from_pretrained(folder)


def outcome(call):
    """The result or the error of a call, with a fixed random seed."""
    torch.manual_seed(0)
    try:
        return call()
    except (ValueError, IndexError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        return type(error).__name__, str(error)[:60]


def assert_same(ours, stock, where: str = "result") -> None:
    """Compares nested results: floating-point numbers with a tolerance, everything else exactly."""
    if isinstance(stock, dict):
        assert ours.keys() == stock.keys(), where
        for key in stock:
            assert_same(ours[key], stock[key], f"{where}.{key}")
    elif isinstance(stock, list | tuple):
        assert len(ours) == len(stock), where
        for index, (a, b) in enumerate(zip(ours, stock, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    elif isinstance(stock, torch.Tensor) and stock.is_floating_point():
        torch.testing.assert_close(ours, stock, rtol=1e-3, atol=1e-3, msg=lambda message: f"{where}: {message}")
    elif isinstance(stock, torch.Tensor):
        assert torch.equal(ours, stock), where
    elif isinstance(stock, float):
        assert ours == pytest.approx(stock, abs=1e-4), where
    elif isinstance(stock, str | int | type(None)):
        assert ours == stock, where


def falls_back_differently(mode: str, lite) -> bool:
    """With constant padding, the first fallback computes all positions, see tests/models/test_fallback.py."""
    return "fallback" in mode and bool(lite.config.constant_padding)


def arguments_for(generate_arguments: dict, processor) -> dict:
    prompt = generate_arguments.get("prompt_ids")
    prompt = {"prompt_ids": processor.get_prompt_ids(prompt, return_tensors="pt")} if prompt else {}
    return {**ENGLISH, **generate_arguments, **prompt}


@pytest.mark.parametrize("mode", PIPELINE_MODES)
def test_pipeline(mode: str, pair, short, long) -> None:
    *models, processor = pair
    material, pipeline_arguments, generate_arguments = PIPELINE_MODES[mode]
    audio = {"short": short[1], "batch": short, "long": long}[material]
    results = []
    for model in models:
        recognizer = pipeline(
            "automatic-speech-recognition",
            model=model,
            tokenizer=processor.tokenizer,
            feature_extractor=processor.feature_extractor,
        )
        generate_kwargs = arguments_for(generate_arguments, processor)
        given = [clip.copy() for clip in audio] if isinstance(audio, list) else audio.copy()
        results.append(outcome(lambda: recognizer(given, generate_kwargs=generate_kwargs, **pipeline_arguments)))  # noqa: B023
    if not falls_back_differently(mode, models[0]):
        assert_same(*results)
    assert not isinstance(results[0], tuple), f"both fail: {results[0]}"


@pytest.mark.parametrize("mode", GENERATE_MODES)
def test_generate(mode: str, pair, short, long) -> None:
    *models, processor = pair
    material, generate_arguments = GENERATE_MODES[mode]
    audio = {"short": short[1], "batch": short, "long": long}[material]
    lengths = {"truncation": False, "padding": "longest"} if material == "long" else {}
    features = processor.feature_extractor(
        audio, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True, **lengths
    )
    results = [
        outcome(lambda: model.generate(**features, **arguments_for(generate_arguments, processor)))  # noqa: B023
        for model in models
    ]
    if not falls_back_differently(mode, models[0]):
        assert_same(*results)
    assert not isinstance(results[0], tuple), f"both fail: {results[0]}"


@pytest.mark.parametrize("roles", ["lite assists", "lite is assisted"])
def test_assistant(roles: str, pair, short) -> None:
    """Speculative decoding gives the tokens of the main model with either assistant."""
    lite, stock, processor = pair
    main, assistant = (stock, lite) if roles == "lite assists" else (lite, stock)
    features = processor.feature_extractor(short[1], sampling_rate=16_000, return_tensors="pt")
    expected = main.generate(**features, **ENGLISH)
    assert torch.equal(main.generate(**features, **ENGLISH, assistant_model=assistant), expected)


def test_streaming(pair, short) -> None:
    lite, stock, processor = pair
    texts = []
    for model in (lite, stock):
        features = processor.feature_extractor(short[1], sampling_rate=16_000, return_tensors="pt")
        streamer = TextIteratorStreamer(processor.tokenizer, skip_special_tokens=True, timeout=60)
        thread = Thread(target=model.generate, kwargs={**features, **ENGLISH, "streamer": streamer})
        thread.start()
        texts.append(list(streamer))
        thread.join()
    assert texts[0] == texts[1] and len(texts[0]) > 3


def test_constant_padding_computes_fewer_positions(pair, short) -> None:
    lite, _, processor = pair
    features = processor.feature_extractor(short[1], sampling_rate=16_000, return_tensors="pt").input_features
    seen = []
    hook = (
        lite.get_encoder().layers[-1].register_forward_hook(lambda m, inputs, output: seen.append(inputs[0].shape[1]))
    )
    lite.generate(features, **ENGLISH)
    hook.remove()
    assert len(seen) == 1 and (seen[0] < lite.config.max_source_positions) == bool(lite.config.constant_padding)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, pair, short) -> None:
    """As close to float32 as stock Whisper, with plain and optimised layers."""
    lite, stock, processor = pair
    features = processor.feature_extractor(short[1], sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        exact = lite.get_encoder()(features)[0]
        plain = lite.to_whisper().to(dtype).get_encoder()(features.to(dtype))[0].float()
        rounding = (plain - stock.get_encoder()(features)[0]).abs().mean()
        half = copy.deepcopy(lite).to(dtype)
        for optimized in (False, True):
            ours = half.optimize_for_inference(optimized).get_encoder()(features.to(dtype))[0]
            assert ours.dtype == dtype
            assert (ours.float() - exact).abs().mean() < 3 * rounding + 0.01


def test_compiled(pair, short) -> None:
    lite, _, processor = pair
    features = processor.feature_extractor(short[1], sampling_rate=16_000, return_tensors="pt").input_features
    encoder = copy.deepcopy(lite).get_encoder()
    with torch.no_grad():
        compiled = torch.compile(encoder, backend="eager")
        torch.testing.assert_close(compiled(features)[0], encoder(features)[0], rtol=1e-4, atol=1e-4)


def test_detected_language(pair, short) -> None:
    lite, stock, processor = pair
    features = processor.feature_extractor(short, sampling_rate=16_000, return_tensors="pt").input_features
    assert torch.equal(lite.detect_language(features), stock.detect_language(features))


def test_prompt_reaches_the_decoder_once(pair, short, monkeypatch) -> None:
    """With any model type other than Whisper's, a second start token would silently precede the prompt."""
    lite, _, processor = pair
    prompt = processor.get_prompt_ids(" seven eight", return_tensors="pt")
    features = processor.feature_extractor(short[1], sampling_rate=16_000, return_tensors="pt")
    seen = []
    forward = type(lite).forward

    def recorded(self, *args, **kwargs):
        seen.append(kwargs["decoder_input_ids"][0].tolist())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(lite), "forward", recorded)
    lite.generate(**features, **ENGLISH, prompt_ids=prompt)
    first = next(tokens for tokens in seen if len(tokens) > 1)
    assert first[: len(prompt)] == prompt.tolist()
    assert first.count(lite.generation_config.decoder_start_token_id) == 1


def test_pipeline_by_folder_alone(pair, models, request, short) -> None:
    """The usual call: a folder and trust_remote_code."""
    lite, _, processor = pair
    folder = models / request.node.callspec.params["pair"]
    recognizer = pipeline("automatic-speech-recognition", model=str(folder), trust_remote_code=True)
    assert recognizer.type == "seq2seq_whisper"
    generate_kwargs = {"language": "en", "num_beams": 1}
    features = processor.feature_extractor(short[2], sampling_rate=16_000, return_tensors="pt")
    expected = processor.batch_decode(lite.generate(**features, **ENGLISH), skip_special_tokens=True)[0]
    assert recognizer(np.copy(short[2]), generate_kwargs=generate_kwargs)["text"] == expected
