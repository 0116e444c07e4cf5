"""Model folders, what was done to a model, and access to the layers of a Whisper."""
