"""The pipeline of transformers for speech recognition with the decoder of CTranslate2, for recordings of a window."""

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
from ..export.faster_whisper_folder import QUANTIZATION, with_one_encoder_layer, write_ctranslate2


class CTranslate2Recognizer:
    """
    Recordings in, results as the pipeline of transformers gives them out.

    Features, encoder, tokens and text are those of transformers; CTranslate2 finds the tokens.

    Args:
        model (`WhisperForConditionalGeneration`): a stock Whisper or a LiteWhisper, as its encoder is to compute.
        processor (`WhisperProcessor`): its own.
        precision (`str`): of the decoder, `"fp32"`, `"fp16"` or `"int8"`.
    """

    def __init__(
        self, model: WhisperForConditionalGeneration, processor: WhisperProcessor, precision: str = "fp32"
    ) -> None:
        self.model, self.tokenizer, self.feature_extractor = model, processor.tokenizer, processor.feature_extractor
        self._pipeline = AutomaticSpeechRecognitionPipeline(
            model=model, tokenizer=self.tokenizer, feature_extractor=self.feature_extractor
        )
        whisper = with_one_encoder_layer(model).to("cpu")  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_ctranslate2(whisper, processor, precision, folder)
            self._decoder = ctranslate2.models.Whisper(
                name,
                device=model.device.type,
                device_index=model.device.index or 0,
                compute_type=QUANTIZATION[precision],
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
        Recognises recordings of a window at the most, `batch_size` of them at once.

        Args:
            inputs (`Sequence[dict]`): of each the samples, `raw`, 16 kHz.
            batch_size (`int`): windows that run at once.
            return_timestamps (`bool` or `str`): whether there are times of segments; words have none here.
            generate_kwargs (`dict`): `task`, `num_beams` and `language`, one for all or a list of one for each.

        Returns:
            `list[dict]`: of each the `text` and, with times, `chunks`.
        """
        told = generate_kwargs.get("language")
        languages = told if isinstance(told, list) else [told] * len(inputs)
        results = []
        for start in range(0, len(inputs), batch_size):
            part = slice(start, start + batch_size)
            states = self._encoded([each["raw"] for each in inputs[part]])
            prompts = self._prompts(states, languages[part], generate_kwargs.get("task"), bool(return_timestamps))
            for tokens in self._decoded(states, prompts, generate_kwargs.get("num_beams", 1)):
                outputs = [{"tokens": torch.tensor([tokens])}]
                results.append(self._pipeline.postprocess(outputs, return_timestamps=return_timestamps))
        return results

    @torch.inference_mode()
    def _encoded(self, recordings: Sequence[np.ndarray]) -> torch.Tensor:
        """States of shape `(batch, positions, d_model)`."""
        features = self.feature_extractor(recordings, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        return self.model.get_encoder()(features.to(self.model.device, self.model.dtype))[0]

    def _prompts(
        self, states: torch.Tensor, languages: Sequence[str | None], task: str | None, timestamps: bool
    ) -> list[list[int]]:
        """The tokens that a transcript starts with, as `generate()` puts them."""
        settings: Any = self.model.generation_config
        prompts = [[settings.decoder_start_token_id] for _ in languages]
        if getattr(settings, "is_multilingual", False):
            found: list[int] = []
            if None in languages:
                encoded: Any = BaseModelOutput(states)
                found = self.model.detect_language(encoder_outputs=encoded).tolist()  # type: ignore[call-arg]
            for place, language in enumerate(languages):
                told = None if language is None else settings.lang_to_id[f"<|{language.strip('<|>')}|>"]
                prompts[place] += [found[place] if told is None else told, settings.task_to_id[task or "transcribe"]]
        return prompts if timestamps else [[*prompt, settings.no_timestamps_token_id] for prompt in prompts]

    def _decoded(self, states: torch.Tensor, prompts: list[list[int]], num_beams: int) -> list[list[int]]:
        """The tokens that follow each prompt."""
        settings: Any = self.model.generation_config
        shared = states.device.type == "cuda" and states.dtype != torch.bfloat16
        rows = states.contiguous() if shared else states.float().cpu().contiguous().numpy()
        results = self._decoder.generate(
            ctranslate2.StorageView.from_array(rows),
            prompts,
            beam_size=num_beams,
            max_length=self.model.config.max_target_positions,
            suppress_tokens=settings.suppress_tokens or [],
            suppress_blank=bool(settings.begin_suppress_tokens),
            max_initial_timestamp_index=getattr(settings, "max_initial_timestamp_index", None) or 50,
        )
        return [result.sequences_ids[0] for result in results]
