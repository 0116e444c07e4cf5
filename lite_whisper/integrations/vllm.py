"""Plugin for vLLM, registered under the entry point `vllm.general_plugins`."""

from vllm import ModelRegistry

ARCHITECTURE = "LiteWhisperForConditionalGeneration"  # as in config.json


def register() -> None:
    """
    Registers LiteWhisper with vLLM, which calls this function in each of its processes.

    Importing the package registers the configuration with transformers. The model is registered by name: vLLM imports
    it in the process that runs it, since CUDA must not be initialised before processes fork.
    """
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.vllm_model:{ARCHITECTURE}")
