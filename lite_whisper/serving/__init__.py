"""A server that transcribes what is uploaded to it, by the protocol of OpenAI."""
