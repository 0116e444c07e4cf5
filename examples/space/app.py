"""Web page that compares two models: python examples/space/app.py --stock MODEL --compressed MODEL"""

import argparse
import html
import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import gradio as gr
from comparison import ACCEPTED, compare, load, rows, verdict
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from lite_whisper.cli import exit_codes
from lite_whisper.common.errors import InputError
from lite_whisper.serving.batches import Batches, RequestOptions
from lite_whisper.serving.request_fields import Capabilities

TITLE = "Whisper, stock and compressed"
INTRODUCTION = f"""# {TITLE}

Both models transcribe the same clip: stock Whisper in transformers, and a Whisper whose encoder was compressed by
lite-whisper ([paper](https://arxiv.org/abs/2502.20583)), with optimised inference. A compressed model with constant
padding skips the silence that Whisper appends to short clips."""
FAIRNESS = """Each model transcribes the clip three times on the same machine, one at a time, in float32 and with greedy
decoding. The models alternate, and the order changes every round. The first round is a warm-up; the faster of the other
two counts. The real-time factor is seconds of computation per second of audio: below 1 is faster than real time."""
UPLOAD_LIFETIME = 3600  # seconds until an uploaded file is deleted


def transcribe(
    models: Mapping[str, Batches], file: str | None, language: str, task: Literal["transcribe", "translate"]
) -> list[Any]:
    """
    Returns the outputs of the page for a clip: the verdict, then text, seconds and segments of each model.

    Raises:
        gr.Error: the clip cannot be used.
    """
    try:
        outcomes = compare(models, file, RequestOptions(task, language or None))
    except InputError as error:
        raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error
    shown: list[Any] = [f"### {verdict(**outcomes)}"]
    for outcome in outcomes.values():
        seconds = f"**{outcome.seconds:.2f} seconds**, real-time factor {outcome.real_time_factor:.3f}"
        shown += [outcome.transcript.text or "(no speech found)", seconds, rows(outcome.transcript)]
    return shown


def build_page(models: Mapping[str, Batches], capabilities: Mapping[str, Capabilities]) -> gr.Blocks:
    """
    Builds the page.

    Args:
        models (`Mapping[str, Batches]`): `"stock"` and `"compressed"`.
        capabilities (`Mapping[str, Capabilities]`): the features of each model.
    """
    codes = frozenset.intersection(*(supported.languages for supported in capabilities.values()))
    languages = sorted((LANGUAGES[code].capitalize(), code) for code in codes)
    tasks = [("Transcribe", "transcribe")]
    if all(supported.translates for supported in capabilities.values()):
        tasks.append(("Translate into English", "translate"))

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(UPLOAD_LIFETIME, UPLOAD_LIFETIME)) as page:
        gr.Markdown(INTRODUCTION)
        audio = gr.Audio(sources=["upload", "microphone"], type="filepath", buttons=[], label=f"Audio: {ACCEPTED}")
        with gr.Row():
            language = gr.Dropdown([("Detect", ""), *languages], value="", label="Spoken language")
            task = gr.Radio(tasks, value="transcribe", label="Task")
        button = gr.Button("Transcribe", variant="primary")
        outputs: list[Any] = [gr.Markdown()]
        with gr.Row():
            for which, supported in capabilities.items():
                with gr.Column(min_width=320):
                    gr.Markdown(f"## {which.capitalize()}\n\n{supported.name}")
                    outputs += [
                        gr.Textbox(label=f"Text of the {which} model"),
                        gr.Markdown(),
                        gr.Dataframe(
                            headers=["From", "To", "Text"], label=f"Segments of the {which} model, seconds", wrap=True
                        ),
                    ]
        gr.Markdown(FAIRNESS)
        # One clip at a time, since a second one would slow down the model that is being timed.
        button.click(partial(transcribe, models), [audio, language, task], outputs, concurrency_limit=1)
    return page


def main() -> int:
    """Serves the page until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for which, default in (("stock", "openai/whisper-base"), ("compressed", "efficient-speech/lite-whisper-base")):
        variable = f"{which.upper()}_MODEL"
        parser.add_argument(
            f"--{which}",
            metavar="MODEL",
            default=os.environ.get(variable, default),
            help=f"Hub id or folder (default: the environment variable {variable}, or {default})",
        )
    arguments = parser.parse_args()

    def serve() -> None:
        loaded = {which: load(getattr(arguments, which)) for which in ("stock", "compressed")}
        models = {which: model for which, (model, _) in loaded.items()}
        capabilities = {which: supported for which, (_, supported) in loaded.items()}
        build_page(models, capabilities).launch(
            server_name="0.0.0.0"
            if "SPACE_ID" in os.environ
            else "127.0.0.1",  # a Space receives connections from outside
            share=False,
            ssr_mode=False,
            run_history=False,
            max_file_size="25mb",
            footer_links=["gradio"],
            theme=gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        )

    return exit_codes.run(parser, serve)


if __name__ == "__main__":
    sys.exit(main())
