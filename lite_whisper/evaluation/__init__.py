"""Transcribe datasets and score the transcripts."""
