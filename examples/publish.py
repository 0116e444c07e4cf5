"""Upload a model folder to the Hub and load it from there: python examples/publish.py FOLDER ORG/NAME FILE"""

import sys
from pathlib import Path

import soundfile
from transformers import pipeline
from transformers.utils import logging

from lite_whisper.publishing.hub import Destination, check_destination, prepare_upload, publish

logging.set_verbosity_error()
logging.disable_progress_bar()
folder, name, file = sys.argv[1:]
check_destination(Destination(name))
commit = publish(Path(folder), Destination(name), prepare_upload(Path(folder), name))

audio, rate = soundfile.read(file)  # 16 kHz, mono
recognizer = pipeline("automatic-speech-recognition", model=name, revision=commit.oid, trust_remote_code=True)
print(recognizer(audio, return_timestamps=True, generate_kwargs={"num_beams": 1})["text"])
