"""Loading and checking model folders, and access to the layers of a Whisper."""
