import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

FLOORS = (
    "audio",
    "cli",
    "common",
    "conversion",
    "evaluation",
    "export",
    "integrations",
    "lowrank",
    "models",
    "publishing",
    "serving",
    "training",
    "transcription",
)


class FreshBuild(build_py):
    """Builds from nothing: what was deleted since an earlier build would be packed otherwise."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    name="lite-whisper",
    version="0.1.0",
    description="Make OpenAI's Whisper smaller and faster without retraining it",
    license="Apache-2.0",
    python_requires=">=3.11",
    cmdclass={"build_py": FreshBuild},
    script_name="setup.py",  # by its name it is told from the modules beside it, which pip hides
    # The root is the package: its configuration and modeling files also travel alone, into every published model.
    package_dir={"lite_whisper": ".", "": "cli"},
    packages=["lite_whisper", *(f"lite_whisper.{floor}" for floor in FLOORS)],
    package_data={"lite_whisper.publishing": ["card_template.md"]},
    py_modules=["lite_whisper_commands"],  # the console script, which does not wait for the package
    entry_points={
        "console_scripts": ["lite-whisper=lite_whisper_commands:main"],
        "vllm.general_plugins": ["lite_whisper=lite_whisper.integrations.vllm:register"],
    },
    install_requires=[
        "accelerate",
        "datasets",
        "evaluate",
        "huggingface_hub>=1.0",
        "jinja2",
        "jiwer>=4.0",
        "matplotlib",
        "numpy",
        "pyyaml",
        "safetensors",
        "shtab",
        "soundfile",
        "soxr",
        "torch>=2.9",
        "tqdm",
        "transformers>=5,<6",
    ],
    extras_require={
        "faster-whisper": ["ctranslate2>=4.8", "faster-whisper>=1.2"],
        "onnx": ["onnx", "onnxruntime", "onnxscript"],
        "openvino": ["onnx", "onnxscript", "openvino", "openvino-genai", "openvino-tokenizers"],
        "ray": ["ray[data]"],
        "serve": ["fastapi", "prometheus-client", "python-multipart", "uvicorn"],
        "docs": ["mkdocs-material"],
        "test": [
            "fastapi",
            "faster-whisper>=1.2",
            "hypothesis",
            "import-linter",
            "jsonschema",
            "mypy",
            "onnx",
            "onnx-asr",
            "onnxruntime",
            "onnxscript",
            "openai",
            "openvino-genai",
            "parameterized",  # what the tests of transformers import
            "peft>=0.18",
            "prometheus-client",
            "pytest",
            "pytest-xdist",
            "python-multipart",
            "ray[data]",
            "ruff",
            "setuptools>=77",
            "uvicorn",
        ],
    },
)
