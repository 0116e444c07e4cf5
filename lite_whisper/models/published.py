"""The checkpoints published on the Hub under efficient-speech/; figures from their model cards."""

import re
from pathlib import Path

_NAME = re.compile(r"lite-whisper-(tiny|base|small|medium|large-v3-turbo|large-v3)(-acc|-fast)?")

# Encoder parameters in millions, and word error rate in per cent, averaged over the utterances of ESB.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "whisper-tiny": {"": (7.63, 22.01), "acc": (7.41, 22.97), "plain": (7.00, 23.95), "fast": (6.48, 27.09)},
    "whisper-base": {"": (19.82, 17.67), "acc": (18.64, 19.07), "plain": (17.44, 19.71), "fast": (16.07, 23.05)},
    "whisper-small": {"": (87.0, 15.89), "acc": (76.99, 15.37), "plain": (70.16, 14.96), "fast": (63.11, 14.92)},
    "whisper-medium": {"": (305.68, 15.12), "acc": (269.93, 13.46), "plain": (239.99, 14.5), "fast": (215.31, 14.52)},
    "whisper-large-v3": {"": (635, 10.1), "acc": (429, 10.1), "plain": (377, 10.2), "fast": (308, 11.3)},
    "whisper-large-v3-turbo": {"": (635, 10.1), "acc": (421, 10.2), "plain": (374, 12.6), "fast": (313, 20.1)},
}


def base_of_published(name: str) -> str | None:
    """The Hub id of the base model of a published checkpoint; None for any other name."""
    published = _NAME.fullmatch(Path(name).name)
    return f"openai/whisper-{published[1]}" if published else None
