"""Transcribes the test clips with transformers in Python, as reference for the tests of transformers.js.

    python expected.py STOCK COMPRESSED AUDIO... --output FOLDER

writes `expected.json` and every clip as WAV file (for Chromium) and as raw float32 samples (for Node).
"""

import argparse
import json
from pathlib import Path

import soundfile
from transformers import pipeline

# The Python pipeline uses five beams by default; transformers.js decodes greedily.
GENERATE_KWARGS = {"language": "en", "task": "transcribe", "num_beams": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stock")
    parser.add_argument("compressed")
    parser.add_argument("audio", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    expected: dict[str, dict[str, dict]] = {}
    for which in ("stock", "compressed"):
        folder = getattr(arguments, which)
        recognizer = pipeline(
            "automatic-speech-recognition", folder, trust_remote_code=True, dtype="float32", device="cpu"
        )
        window = recognizer.feature_extractor.chunk_length
        for path in arguments.audio:
            samples, rate = soundfile.read(path, dtype="float32")
            soundfile.write(arguments.output / f"{path.stem}.wav", samples, rate, subtype="PCM_16")
            samples.tofile(arguments.output / f"{path.stem}.f32")
            transcripts = {}
            for kind in ("segments", "words"):
                transcripts[kind] = recognizer(
                    {"raw": samples, "sampling_rate": rate},
                    return_timestamps="word" if kind == "words" else True,
                    chunk_length_s=window if len(samples) > window * rate else 0,
                    generate_kwargs=GENERATE_KWARGS,
                )
            expected.setdefault(path.stem, {})[which] = transcripts
    (arguments.output / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
