"""Batch transcription of any number of recordings to text and subtitles."""
