"""A recognizer that encodes with torch and decodes with CTranslate2, for audio of up to one window."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from transformers import AutomaticSpeechRecognitionPipeline, WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput

from ..audio import SAMPLING_RATE
from ..export.faster_whisper_folder import with_one_encoder_layer, write_ctranslate2


class CTranslate2Recognizer:
    """
    Recognises audio with the results of the transformers pipeline, but decodes with CTranslate2.

    Feature extraction, encoder, prompt and text processing are those of transformers; CTranslate2 generates the tokens.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper, on the device and in the dtype in
            which its encoder computes.
        processor (`WhisperProcessor`): its processor.
        dtype (`str`): data type of the decoder, `"float32"`, `"float16"` or `"int8"`.
    """

    def __init__(
        self, model: WhisperForConditionalGeneration, processor: WhisperProcessor, dtype: str = "float32"
    ) -> None:
        self.model, self.tokenizer, self.feature_extractor = model, processor.tokenizer, processor.feature_extractor
        self._pipeline = AutomaticSpeechRecognitionPipeline(
            model=model, tokenizer=self.tokenizer, feature_extractor=self.feature_extractor
        )
        whisper = with_one_encoder_layer(model).to("cpu")  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_ctranslate2(whisper, processor, dtype, folder)
            self._decoder = ctranslate2.models.Whisper(
                name,
                device=model.device.type,
                device_index=model.device.index or 0,
                compute_type=dtype,
                intra_threads=torch.get_num_threads(),
            )

    def __call__(
        self,
        inputs: Sequence[dict[str, Any]],
        *,
        batch_size: int,
        return_timestamps: bool | str,
        generate_kwargs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """
        Recognises recordings of at most one window each.

        Args:
            inputs (`Sequence[dict]`): one dictionary per recording, with 16 kHz samples under `raw`.
            batch_size (`int`): windows per batch.
            return_timestamps (`bool` or `str`): whether to return segment timestamps; word timestamps are not
                supported.
            generate_kwargs (`dict`): `task`, `num_beams` and `language` (one for all recordings, or a list).

        Returns:
            `list[dict]`: `text` of each recording and, with timestamps, `chunks`.
        """
        language = generate_kwargs.get("language")
        languages = language if isinstance(language, list) else [language] * len(inputs)
        results = []
        for start in range(0, len(inputs), batch_size):
            batch = slice(start, start + batch_size)
            states = self._encode([recording["raw"] for recording in inputs[batch]])
            prompts = self._prompts(states, languages[batch], generate_kwargs.get("task"), bool(return_timestamps))
            for tokens in self._decode(states, prompts, generate_kwargs.get("num_beams", 1)):
                outputs = [{"tokens": torch.tensor([tokens])}]
                results.append(self._pipeline.postprocess(outputs, return_timestamps=return_timestamps))
        return results

    @torch.inference_mode()
    def _encode(self, recordings: Sequence[np.ndarray]) -> torch.Tensor:
        """Encoder states of shape `(batch, positions, d_model)`."""
        features = self.feature_extractor(recordings, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        return self.model.get_encoder()(features.to(self.model.device, self.model.dtype))[0]

    def _prompts(
        self, states: torch.Tensor, languages: Sequence[str | None], task: str | None, timestamps: bool
    ) -> list[list[int]]:
        """The initial tokens of each transcript, as `generate()` sets them."""
        settings: Any = self.model.generation_config
        prompts = [[settings.decoder_start_token_id] for _ in languages]
        if getattr(settings, "is_multilingual", False):
            detected: list[int] = []
            if None in languages:
                encoded: Any = BaseModelOutput(states)
                detected = self.model.detect_language(encoder_outputs=encoded).tolist()  # type: ignore[call-arg]
            for index, language in enumerate(languages):
                token = detected[index] if language is None else settings.lang_to_id[f"<|{language.strip('<|>')}|>"]
                prompts[index] += [token, settings.task_to_id[task or "transcribe"]]
        return prompts if timestamps else [[*prompt, settings.no_timestamps_token_id] for prompt in prompts]

    def _decode(self, states: torch.Tensor, prompts: list[list[int]], num_beams: int) -> list[list[int]]:
        """Generates the tokens that follow each prompt."""
        settings: Any = self.model.generation_config
        share_memory = states.device.type == "cuda" and states.dtype != torch.bfloat16
        array = states.contiguous() if share_memory else states.float().cpu().contiguous().numpy()
        results = self._decoder.generate(
            ctranslate2.StorageView.from_array(array),
            prompts,
            beam_size=num_beams,
            max_length=self.model.config.max_target_positions,
            suppress_tokens=settings.suppress_tokens or [],
            suppress_blank=bool(settings.begin_suppress_tokens),
            max_initial_timestamp_index=getattr(settings, "max_initial_timestamp_index", None) or 50,
        )
        return [result.sequences_ids[0] for result in results]
