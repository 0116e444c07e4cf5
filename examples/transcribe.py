"""Transcribe an audio file with a LiteWhisper: python examples/transcribe.py MODEL FILE"""

import sys

import soundfile
import soxr
from transformers import pipeline

model, file = sys.argv[1:]
samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
audio = soxr.resample(samples.mean(axis=1), rate, 16_000)
recognizer = pipeline("automatic-speech-recognition", model=model, trust_remote_code=True)
print(recognizer(audio, generate_kwargs={"task": "transcribe", "num_beams": 1})["text"])
