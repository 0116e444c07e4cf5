"""The common model tests of transformers, on models that are fully, partly and not compressed."""

import contextlib
import unittest
from typing import Any
from unittest import mock

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers_tests import load

from lite_whisper import LiteWhisperConfig, LiteWhisperForConditionalGeneration, LiteWhisperModel
from lite_whisper.configuration_lite_whisper import PROJECTIONS
from lite_whisper.modeling_lite_whisper import CompleteWeights

INAPPLICABLE = {
    name: f"Whisper {reason}"
    for reason, names in {
        "is not composed of models with their own configurations": (
            "test_attn_implementation_composite_models",
            "test_can_set_attention_dynamically_composite_model",
            "test_internal_model_config_and_subconfig_are_same",
            "test_sdpa_can_dispatch_composite_models",
        ),
        "has no embeddings besides those of the decoder's tokens": (
            "test_inputs_embeds",
            "test_inputs_embeds_matches_input_ids",
        ),
        "has no experts": (
            "test_eager_matches_batched_and_grouped_inference_0_fp16",
            "test_eager_matches_batched_and_grouped_inference_1_fp32",
            "test_eager_matches_batched_and_grouped_inference_2_bf16",
            "test_moe_models_record_router_logits",
            "test_output_router_logits_from_config",
        ),
        "has no rotary embeddings": (
            "test_model_rope_scaling_frequencies",
            "test_model_rope_scaling_from_config_0_linear",
            "test_model_rope_scaling_from_config_1_dynamic",
            "test_model_rope_scaling_from_config_2_yarn",
            "test_model_rope_with_partial_rotation",
            "test_vision_axial_rope",
        ),
        "has no sliding window": ("test_sliding_window_mask",),
        "has no stand-alone decoder here": ("test_causal_lm_loss_honors_shift_labels",),
        "has an encoder with a fixed length": ("test_resize_position_vector_embeddings",),
        "keeps no module in float32": (
            "test_keep_in_fp32_modules",
            "test_keep_in_fp32_modules_exist",
            "test_keep_in_fp32_modules_strict_also_hardcode_fp32",
        ),
        "has the same weight names in every version": (
            "test_can_load_from_already_mapped_keys",
            "test_reverse_loading_mapping",
        ),
        "has no tensor-parallel plan": ("test_tp_plan_matches_params",),
        "returns hidden states by encoder and decoder": ("test_can_capture_specific_layers_hidden_states",),
        "does not name output_attentions in the signature of its forward": (
            "test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions",
        ),
    }.items()
    for name in names
}

# These tests derive from the class name whether a model has a loss, and which.
NAMES = (
    (MODEL_MAPPING_NAMES, LiteWhisperModel),
    (MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, LiteWhisperForConditionalGeneration),
)

# These load models with missing weights, which ours reject; test_weights.py covers that.
WITH_MISSING_WEIGHTS = (
    "test_can_init_all_missing_weights",
    "test_correct_missing_keys",
    "test_model_weights_reload_no_missing_tied_weights",
)


class SmallModel:
    """A configuration and inputs, under the names that these tests use."""

    batch_size, seq_length, encoder_seq_length = 3, 7, 30
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 16
    is_training = True
    tokens = "decoder_input_ids"

    def __init__(self, ranks: list[dict[str, int]] | None) -> None:
        self.ranks = ranks

    def get_config(self) -> LiteWhisperConfig:
        return LiteWhisperConfig(
            low_rank_config=self.ranks,
            vocab_size=200,
            d_model=self.hidden_size,
            encoder_layers=self.num_hidden_layers,
            decoder_layers=self.num_hidden_layers,
            encoder_attention_heads=self.num_attention_heads,
            decoder_attention_heads=self.num_attention_heads,
            encoder_ffn_dim=4 * self.hidden_size,
            decoder_ffn_dim=4 * self.hidden_size,
            max_source_positions=self.encoder_seq_length,
            max_target_positions=40,
            pad_token_id=0,
            bos_token_id=98,
            eos_token_id=98,
            decoder_start_token_id=85,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[LiteWhisperConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        features = torch.randn(self.batch_size, config.num_mel_bins, 2 * self.encoder_seq_length)
        tokens = torch.randint(2, 80, (self.batch_size, self.seq_length))
        return config, {"input_features": features, self.tokens: tokens, "decoder_attention_mask": tokens.ne(0)}

    def prepare_config_and_inputs_for_model_class(self, _: type) -> tuple[LiteWhisperConfig, dict[str, torch.Tensor]]:
        return self.prepare_config_and_inputs_for_common()


def from_partial_weights(cls: type, *args: Any, **kwargs: Any) -> Any:
    """The `from_pretrained` of transformers, which initialises missing weights."""
    return super(CompleteWeights, cls).from_pretrained(*args, **kwargs)


class CommonTests(load("test_modeling_common").ModelTesterMixin):
    """Settings shared by the three test classes."""

    ranks: list[dict[str, int]] | None
    is_encoder_decoder = True
    all_model_classes: tuple[type, ...] = (LiteWhisperModel, LiteWhisperForConditionalGeneration)
    all_generative_model_classes = ()  # generate() is compared with stock Whisper's in tests/compatibility

    def setUp(self) -> None:
        name = self._testMethodName
        if reason := INAPPLICABLE.get(name):
            raise unittest.SkipTest(reason)
        torch.manual_seed(0)
        self.model_tester = SmallModel(self.ranks)
        if name.startswith("test_resize"):
            self.model_tester.tokens = "input_ids"  # these tests write to input_ids
        patches = [mock.patch.dict(names, {"lite-whisper": our_class.__name__}) for names, our_class in NAMES]
        if name in WITH_MISSING_WEIGHTS:
            patches.append(mock.patch.object(CompleteWeights, "from_pretrained", classmethod(from_partial_weights)))
        for patch in patches:
            patch.start()
            self.addCleanup(patch.stop)

    def skipTest(self, reason: str) -> None:  # noqa: N802
        """Tests may only be skipped through INAPPLICABLE, so that no test disappears unnoticed."""
        raise AssertionError(f"{self._testMethodName} would be skipped: {reason}")

    def subTest(self, *_: Any, **__: Any) -> contextlib.nullcontext:  # noqa: N802
        """Avoids thousands of separately reported subtests."""
        return contextlib.nullcontext()

    def _prepare_for_class(self, inputs: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs, model_class, return_labels)
        inputs["decoder_input_ids"] = inputs.pop(self.model_tester.tokens)
        if return_labels and model_class is LiteWhisperForConditionalGeneration:
            inputs["labels"] = inputs["decoder_input_ids"]
        return inputs


class TestAllLowRank(CommonTests, unittest.TestCase):
    ranks = [dict.fromkeys(PROJECTIONS, 4)] * 2


class TestSomeDense(CommonTests, unittest.TestCase):
    ranks = [{"q_proj": 4, "fc2": 4}, {}]


class TestNone(CommonTests, unittest.TestCase):
    ranks = None


def test_listed_tests_exist() -> None:
    assert not {*INAPPLICABLE, *WITH_MISSING_WEIGHTS} - set(dir(CommonTests))
