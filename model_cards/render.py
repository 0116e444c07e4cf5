"""
Renders the model cards in this folder from their `compression.json`: make cards

The expected time and memory of planned conversions come from the results of `benchmarks/conversion.py`.
"""

import json
from pathlib import Path

from lite_whisper.models.compression_json import read_compression, write_compression
from lite_whisper.publishing.card import write_card

CARDS = Path(__file__).parent
MEASURED = CARDS.parent / "benchmarks/results/conversion-shapes.json"


def main() -> None:
    """Writes the expected costs into each `compression.json`, and renders all cards."""
    measured = json.loads(MEASURED.read_text())
    rows = {row["shape"]: row for row in measured["rows"]}
    for data in sorted(CARDS.glob("*/compression.json")):
        compression = read_compression(data.parent)
        assert compression is not None
        shape = compression["base_model"].removeprefix("openai/whisper-").removeprefix("large-v3-")
        if "after" not in compression and shape in rows:
            compression["expected"] = {
                "machine": measured["machine"],
                "dtype": rows[shape]["dtype"],
                "minutes": rows[shape]["minutes"],
                "memory": rows[shape]["peak"],
            }
            write_compression(data.parent, compression)
        write_card(data.parent, data.parent.name)


if __name__ == "__main__":
    main()
