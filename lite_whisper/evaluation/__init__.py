"""Transcribing a set of clips and scoring the result."""
