"""Model cards rendered from data, and repositories on the Hub."""
