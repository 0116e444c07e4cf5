"""From a stock Whisper to a compressed one: calibrate, compress, recover, measure, save."""
