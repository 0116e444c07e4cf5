"""LiteWhisper for vLLM: what its entry point `vllm.general_plugins` calls."""

from vllm import ModelRegistry

ARCHITECTURE = "LiteWhisperForConditionalGeneration"  # what config.json names


def register() -> None:
    """
    Tells vLLM of LiteWhisper; vLLM calls it in each of its processes.

    transformers, and so vLLM, knows the configuration as soon as this package is imported. The model is named and not
    imported: vLLM does that in the process that runs it, since CUDA must not start before processes fork.
    """
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.vllm_model:{ARCHITECTURE}")
