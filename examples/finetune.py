"""
Fine-tune a LiteWhisper or any other Whisper with Seq2SeqTrainer.

    python examples/finetune.py MODEL --train recordings/ --test held-out/ --output_dir OUTPUT [--max_steps 500 ...]

In addition to the options below, it accepts all of `Seq2SeqTrainingArguments`: --bf16, --gradient_accumulation_steps,
--gradient_checkpointing, --resume_from_checkpoint, --load_best_model_at_end, --push_to_hub ...
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperProcessor,
)
from transformers.trainer_utils import EvalPrediction

from lite_whisper.audio import SAMPLING_RATE, AudioDataset, Clip
from lite_whisper.evaluation.word_error_rate import WordErrorRate, text_normalizer


@dataclass
class Arguments:
    """Datasets and options of the training."""

    train: list[str] = field(
        metadata={"help": "training datasets: folders with metadata.csv, or Hub datasets as org/name:config:split"}
    )
    test: list[str] = field(metadata={"help": "evaluation datasets, given in the same way"})
    language: str | None = field(default=None, metadata={"help": "spoken language, for example en"})
    lora_rank: int = field(default=0, metadata={"help": "train LoRA adapters of this rank instead of all weights"})
    spec_augment: bool = field(default=False, metadata={"help": "mask spans of time and frequency during training"})


@dataclass
class Collator:
    """Turns clips into a batch of log-mel features and labels with masked padding."""

    processor: WhisperProcessor

    def __call__(self, clips: list[Clip]) -> dict[str, torch.Tensor]:
        audio = self.processor.feature_extractor(
            [clip.samples for clip in clips],
            sampling_rate=SAMPLING_RATE,
            return_attention_mask=True,
            return_tensors="pt",
        )
        # Whisper's transcripts start with a space; the model prepends the start token to the labels itself.
        text = self.processor.tokenizer([f" {clip.text}" for clip in clips], padding=True, return_tensors="pt")
        labels = text.input_ids.masked_fill(text.attention_mask == 0, -100)[:, 1:]
        return {**audio, "labels": labels}


def main() -> None:
    """Trains, evaluates and saves a model folder."""
    source, *options = sys.argv[1:]
    arguments, training = HfArgumentParser((Arguments, Seq2SeqTrainingArguments)).parse_args_into_dataclasses(options)
    training.remove_unused_columns, training.label_names = False, ["labels"]  # the collator needs whole clips
    training.predict_with_generate = True
    # Calling trainer.evaluate() before train() would stop several processes from synchronising their gradients.
    training.eval_on_start = True

    processor = AutoProcessor.from_pretrained(source, language=arguments.language, task="transcribe")
    model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(source, trust_remote_code=True)
    model.generation_config.language, model.generation_config.task = arguments.language, "transcribe"
    model.config.apply_spec_augment = arguments.spec_augment
    if arguments.lora_rank:
        from peft import LoraConfig, get_peft_model

        from lite_whisper.training.lora import low_rank_lora

        config = LoraConfig(
            target_modules=["q_proj", "v_proj"], r=arguments.lora_rank, lora_alpha=2 * arguments.lora_rank
        )
        model = get_peft_model(model, low_rank_lora(config, model))

    normalize = text_normalizer("basic", processor.tokenizer)

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        pad = processor.tokenizer.pad_token_id
        texts = [
            processor.batch_decode(np.where(tokens < 0, pad, tokens), skip_special_tokens=True)
            for tokens in (prediction.predictions, prediction.label_ids)
        ]
        predictions, references = ([normalize(text) for text in each] for each in texts)
        return {"wer": WordErrorRate().compute(predictions=predictions, references=references)}

    train, test = (list(AudioDataset(sources, need_text=True)) for sources in (arguments.train, arguments.test))
    trainer = Seq2SeqTrainer(
        model, training, Collator(processor), train, test, processing_class=processor, compute_metrics=metrics
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    results = trainer.evaluate()
    trainer.log_metrics("eval", results)
    trainer.save_metrics("eval", results)
    if arguments.lora_rank:
        trainer.model = model.merge_and_unload()
    trainer.save_model()


if __name__ == "__main__":
    main()
