"""An OpenAI-compatible server for transcriptions and translations."""
