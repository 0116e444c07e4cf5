"""lite-whisper makes Whisper smaller and faster by low-rank compression of its encoder."""

from importlib.metadata import version

from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq

from .configuration_lite_whisper import LiteWhisperConfig
from .modeling_lite_whisper import LiteWhisperForConditionalGeneration, LiteWhisperModel, LowRankLinear

__version__ = version("lite-whisper")

AutoConfig.register("lite-whisper", LiteWhisperConfig)
AutoModel.register(LiteWhisperConfig, LiteWhisperForConditionalGeneration)
AutoModelForSpeechSeq2Seq.register(LiteWhisperConfig, LiteWhisperForConditionalGeneration)

__all__ = ["LiteWhisperConfig", "LiteWhisperForConditionalGeneration", "LiteWhisperModel", "LowRankLinear"]
