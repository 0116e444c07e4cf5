"""
Fine-tune a LiteWhisper, or any Whisper, with Seq2SeqTrainer.

    python examples/finetune.py MODEL --train recordings/ --test held-out/ --output_dir OUTPUT [--max_steps 500 ...]

Besides the options below it takes all of `Seq2SeqTrainingArguments`: --bf16, --gradient_accumulation_steps,
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
    """What is trained on what."""

    train: list[str] = field(metadata={"help": "folders with metadata.csv, or Hub datasets as org/name:config:split"})
    test: list[str] = field(metadata={"help": "the same, to measure on"})
    language: str | None = field(default=None, metadata={"help": "that is spoken, for example en"})
    lora_rank: int = field(default=0, metadata={"help": "train LoRA adapters of this rank instead of all weights"})
    spec_augment: bool = field(default=False, metadata={"help": "mask stretches of time and frequency in training"})


@dataclass
class Collator:
    """Clips to a batch: log-mel features, and tokens with the padding masked."""

    processor: WhisperProcessor

    def __call__(self, clips: list[Clip]) -> dict[str, torch.Tensor]:
        audio = self.processor.feature_extractor(
            [clip.samples for clip in clips],
            sampling_rate=SAMPLING_RATE,
            return_attention_mask=True,
            return_tensors="pt",
        )
        # Whisper's transcripts begin with a space; the start token is put in front of the labels by the model itself.
        text = self.processor.tokenizer([f" {clip.text}" for clip in clips], padding=True, return_tensors="pt")
        labels = text.input_ids.masked_fill(text.attention_mask == 0, -100)[:, 1:]
        return {**audio, "labels": labels}


def main() -> None:
    """Trains, measures, and saves a folder that loads like any Whisper."""
    source, *options = sys.argv[1:]
    ours, training = HfArgumentParser((Arguments, Seq2SeqTrainingArguments)).parse_args_into_dataclasses(options)
    training.remove_unused_columns, training.label_names = False, ["labels"]  # clips are turned into columns later
    training.predict_with_generate = True
    # Not trainer.evaluate() before train(): several processes would then train without adding up their gradients.
    training.eval_on_start = True

    processor = AutoProcessor.from_pretrained(source, language=ours.language, task="transcribe")
    model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(source, trust_remote_code=True)
    model.generation_config.language, model.generation_config.task = ours.language, "transcribe"
    model.config.apply_spec_augment = ours.spec_augment
    if ours.lora_rank:
        from peft import LoraConfig, get_peft_model

        from lite_whisper.training.lora import low_rank_lora

        config = LoraConfig(target_modules=["q_proj", "v_proj"], r=ours.lora_rank, lora_alpha=2 * ours.lora_rank)
        model = get_peft_model(model, low_rank_lora(config, model))

    normalize = text_normalizer("basic", processor.tokenizer)

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        pad = processor.tokenizer.pad_token_id
        texts = [
            processor.batch_decode(np.where(tokens < 0, pad, tokens), skip_special_tokens=True)
            for tokens in (prediction.predictions, prediction.label_ids)
        ]
        found, wanted = ([normalize(text) for text in each] for each in texts)
        return {"wer": WordErrorRate().compute(predictions=found, references=wanted)}

    train, test = (list(AudioDataset(sources, need_text=True)) for sources in (ours.train, ours.test))
    trainer = Seq2SeqTrainer(
        model, training, Collator(processor), train, test, processing_class=processor, compute_metrics=metrics
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    measured = trainer.evaluate()
    trainer.log_metrics("eval", measured)
    trainer.save_metrics("eval", measured)
    if ours.lora_rank:
        trainer.model = model.merge_and_unload()
    trainer.save_model()


if __name__ == "__main__":
    main()
