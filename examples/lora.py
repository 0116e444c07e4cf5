"""Adapt a LiteWhisper to a folder of transcribed recordings with LoRA: python examples/lora.py MODEL FOLDER OUTPUT"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import WhisperProcessor

from lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.audio import AudioDataset
from lite_whisper.training.lora import low_rank_lora

source, folder, output = sys.argv[1:]
processor = WhisperProcessor.from_pretrained(source, language="en", task="transcribe")
model = LiteWhisperForConditionalGeneration.from_pretrained(source)
config = LoraConfig(target_modules=["q_proj", "v_proj"], r=8, lora_alpha=16)
model = get_peft_model(model, low_rank_lora(config, model))
model.print_trainable_parameters()

optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
clips = list(AudioDataset([folder], seed=0))
for start in range(0, len(clips), 4):
    batch = clips[start : start + 4]
    audio = [clip.samples for clip in batch]
    features = processor.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt").input_features
    # Whisper's transcripts start with a space; the model prepends the start token to the labels itself.
    text = processor.tokenizer([f" {clip.text}" for clip in batch], padding=True, return_tensors="pt")
    labels = text.input_ids.masked_fill(text.attention_mask == 0, -100)[:, 1:]
    loss = model(input_features=features, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"{start + len(batch):4} clips, loss {loss.item():.3f}")

model.merge_and_unload().save_pretrained(output)
processor.save_pretrained(output)
