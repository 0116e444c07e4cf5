"""Transcribe an audio file of any length, with timestamps: python examples/transcribe.py MODEL FILE"""

import sys

import soundfile
import soxr
from transformers import pipeline
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
model, file = sys.argv[1:]
samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
audio = soxr.resample(samples.mean(axis=1), rate, 16_000)

recognizer = pipeline("automatic-speech-recognition", model=model, trust_remote_code=True)
result = recognizer(audio, return_timestamps=True, generate_kwargs={"task": "transcribe", "num_beams": 1})
for segment in result["chunks"]:
    start, end = segment["timestamp"]
    print(f"{start:7.2f} {'' if end is None else f'{end:.2f}':>7}  {segment['text'].strip()}")
