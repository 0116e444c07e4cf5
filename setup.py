from setuptools import setup

setup(
    name="lite-whisper",
    version="0.1.0",
    description="Make OpenAI's Whisper smaller and faster without retraining it",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The root is the package: its configuration and modeling files also travel alone, into every published model.
    package_dir={"lite_whisper": "."},
    packages=[
        "lite_whisper",
        "lite_whisper.evaluation",
        "lite_whisper.lowrank",
        "lite_whisper.publishing",
        "lite_whisper.training",
        "lite_whisper.transcription",
    ],
    package_data={"lite_whisper.publishing": ["card_template.md"]},
    entry_points={"console_scripts": ["lite-whisper=lite_whisper.cli:main"]},
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
        "soundfile",
        "soxr",
        "torch>=2.4",
        "tqdm",
        "transformers>=5.0",
    ],
    extras_require={
        "test": ["hypothesis", "jsonschema", "mypy", "peft>=0.18", "pytest", "pytest-xdist", "ruff", "torchao"]
    },
)
