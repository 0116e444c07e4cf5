"""Renders the cards in this folder anew from the data beside them: make cards"""

from pathlib import Path

from lite_whisper.publishing.card import write_card

for data in sorted(Path(__file__).parent.glob("*/compression.json")):
    write_card(data.parent, data.parent.name)
