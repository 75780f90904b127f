"""The page: its parts, their layout, and the handler of each event."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import gradio as gr

from mmllm.app.handlers import Handlers, Update, note, question_at
from mmllm.app.settings import (
    CHAIN_CHOICES,
    CHAIN_OFF,
    ONE_BY_ONE,
    Settings,
    context_choices,
    decoding_choices,
    path_choices,
    reducer_choices,
)
from mmllm.app.timeline import SCRIPT

STYLE = Path(__file__).with_name("style.css")
TITLE = "mmllm: ask a video when"
_CONTROL = 240
"""Least width of a control in pixels; two controls share a row if the screen is wide enough."""
_ASKING = ("session", "question", "chat", "timeline", "sight", "status", "send", "halt")
_FILES = ("status", "json", "vtt", "png")
"""The parts that an answer and its files change; few of them, because a browser checks each part for every word."""
_CHOICES = ("here", "remember", "chain", "decoding", "context")
"""The parts that another video does not change."""
_MODEL = "model"
"""Name of the group of events that run the model; one of them runs at a time."""


def theme() -> gr.themes.Base:
    """Gradio's soft theme with fonts of the visitor's system, so that no font is downloaded, and with more contrast."""
    soft = gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=("system-ui", "-apple-system", "Segoe UI", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    filled = {
        f"button_primary_{part}{state}{mode}": "*primary_800" if state else "*primary_700"
        for part in ("background_fill", "border_color")
        for state in ("", "_hover")
        for mode in ("", "_dark")
    }
    return soft.set(
        **filled,
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*primary_800",
        block_label_background_fill_dark="*primary_800",
        block_title_text_color="*primary_800",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
    )


def page(handlers: Handlers) -> gr.Blocks:
    """The demo as Gradio blocks, not yet launched."""
    limits, own = handlers.engine.limits, handlers.engine.own_settings
    parts: dict[str, Any] = {}
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as demo:
        parts["session"] = gr.State(None, time_to_live=limits.upload_age_s)
        _panel("mm-head", _heading(handlers))
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                _video_column(parts, handlers)
            with gr.Column(scale=5, min_width=320):
                _chat_column(parts, limits.question_characters)
        with gr.Tabs(elem_id="mm-tabs"):
            with gr.Tab("Settings"):
                _panel(
                    "mm-about-a", note("How the video is shown to the model. The next question uses these settings.")
                )
                *chosen, parts["context"] = _controls(handlers, own, "a")
                parts["remember"] = gr.Checkbox(
                    False, label="The model reads earlier turns", info="Off: each question is answered by itself."
                )
                parts["chain"] = gr.Dropdown(
                    list(CHAIN_CHOICES),
                    value=CHAIN_OFF,
                    allow_custom_value=True,
                    label="Look at parts first",
                    info="what is said of them is read before the question; auto: 2 from 10 minutes on, 3 from 15",
                    elem_id="mm-chain",
                )
                parts["decoding"] = gr.Dropdown(
                    decoding_choices(handlers.engine.own_methods),
                    value=ONE_BY_ONE,
                    allow_custom_value=True,
                    label="Decoding",
                    info="how tokens are written; or with settings: token-recycling:tree=40",
                    elem_id="mm-decoding",
                )
            with gr.Tab("What the model sees"):
                parts["sight"] = _panel("mm-sight")
            with gr.Tab("Compare"):
                _panel(
                    "mm-about-b", note("The same question under the settings of the first tab (A) and under these (B).")
                )
                other = _controls(handlers, own, "b")
                compare = gr.Button("Ask both", variant="primary", elem_id="mm-compare")
                parts["comparison"] = _panel("mm-comparison")
            with gr.Tab("Export"):
                _panel("mm-about-export", note("What was answered about this video."))
                with gr.Row():
                    for name, label in (
                        ("json", "Answers (JSON)"),
                        ("vtt", "Subtitles (WebVTT)"),
                        ("png", "Plot (PNG)"),
                    ):
                        parts[name] = gr.DownloadButton(label, interactive=False, elem_id=f"mm-{name}")
        _programs(handlers, parts, chosen)
        _wire(demo, parts, handlers, chosen, other, compare)
    return demo.queue(max_size=limits.waiting, default_concurrency_limit=1)


def _panel(name: str, value: str = "") -> gr.HTML:
    """A panel of HTML without Gradio's styles; its buttons with `data-time` move the player."""
    return gr.HTML(value, elem_id=name, js_on_load=SCRIPT, apply_default_css=False)


def _heading(handlers: Handlers) -> str:
    """HTML of the title, the model's name and the note on its training."""
    training_note = handlers.engine.qa.note
    warning = note(f"{training_note[0].upper()}{training_note[1:].rstrip('.')}.") if training_note else ""
    return f"<h1>Ask a video <em>when</em></h1>{note(f'Model: {handlers.model}.')}{warning}"


def _video_column(parts: dict[str, Any], handlers: Handlers) -> None:
    """Adds the list of clips, the player, the timeline and the status line."""
    parts["clip"] = gr.Dropdown(list(handlers.examples), label="Clip", elem_id="mm-clip")
    parts["video"] = gr.Video(label="Video", sources=["upload"], height=400, elem_id="mm-player", buttons=[])
    parts["timeline"] = _panel("mm-timeline")
    parts["status"] = _panel("mm-status")


def _chat_column(parts: dict[str, Any], max_characters: int) -> None:
    """Adds the chat, the question, its buttons and the suggestions."""
    parts["chat"] = gr.Chatbot(
        label="Questions and answers",
        height=400,
        show_label=False,
        elem_id="mm-chat",
        render_markdown=False,
        buttons=[],
        allow_tags=False,
    )
    parts["question"] = gr.Textbox(
        label="Question",
        placeholder="When does …?",
        max_length=max_characters,
        lines=1,
        max_lines=3,
        elem_id="mm-question",
    )
    with gr.Row():
        parts["send"] = gr.Button("Ask", variant="primary", min_width=80, scale=2, elem_id="mm-ask")
        parts["halt"] = gr.Button("Stop", variant="stop", interactive=False, min_width=80, scale=1, elem_id="mm-stop")
        parts["here"] = gr.Button("At this moment", min_width=160, scale=2, elem_id="mm-here")
    parts["suggestions"] = gr.Dataset(
        components=[parts["question"]], samples=[], label="Suggestions", elem_id="mm-suggestions"
    )


def _parts(choices: list[str], own: str, label: str, info: str, element: str) -> Any:
    """A list of parts, in which a description with settings can be typed, too."""
    return gr.Dropdown(
        choices, value=own, allow_custom_value=True, label=label, info=info, elem_id=element, min_width=_CONTROL
    )


def _controls(handlers: Handlers, own: Settings, side: str) -> list[Any]:
    """Controls of reducer, share, path, frames and context; the cost below them follows every change."""
    with gr.Row():
        reducer = _parts(
            reducer_choices(),
            own.reducer,
            "Reducer",
            "or with settings: hired:ratio=0.2,alpha=0.5",
            f"mm-reducer-{side}",
        )
        share = gr.Slider(
            0.05,
            1.0,
            own.share,
            step=0.05,
            label="Share of tokens kept",
            info="for a reducer named without settings",
            min_width=_CONTROL,
        )
    with gr.Row():
        path = _parts(
            path_choices(),
            own.path,
            "Path",
            "how the tokens of all frames become what the LLM reads",
            f"mm-path-{side}",
        )
        frames = gr.Slider(
            1,
            handlers.engine.limits.frames,
            own.frames,
            step=1,
            label="Frames",
            info="sampled evenly",
            min_width=_CONTROL,
        )
    context = _parts(
        context_choices(),
        own.context,
        "Context",
        "what the LLM still sees of what it has read; or with settings: h2o:heavy=0.1,recent=0.1",
        f"mm-context-{side}",
    )
    chosen = [reducer, share, path, frames, context]
    cost = _panel(f"mm-cost-{side}", handlers.cost(own.reducer, own.share, own.path, own.frames))
    for control in chosen:
        control.change(
            handlers.cost,
            chosen,
            cost,
            queue=False,
            show_progress="hidden",
            trigger_mode="always_last",
            api_name=f"cost_on_page_{side}",
            api_visibility="private",
        )
    return chosen


def _wire(
    demo: gr.Blocks, parts: dict[str, Any], handlers: Handlers, chosen: list[Any], other: list[Any], compare: gr.Button
) -> None:
    """Connects the events of the page's parts with the handlers."""
    video_parts = [part for name, part in parts.items() if name not in _CHOICES]
    session, video, question = parts["session"], parts["video"], parts["question"]
    model = {"concurrency_id": _MODEL, "concurrency_limit": 1, "api_visibility": "private"}
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    def as_event(handler: Callable[..., Update]) -> Callable[..., dict[Any, Any]]:
        return lambda *values: _by_part(parts, handler(*values))

    def ask(request: gr.Request, *values: Any) -> Generator[dict[Any, Any], None, None]:
        for update in handlers.ask(request.session_hash or "", *values):
            yield _by_part(parts, update)

    def stop(request: gr.Request) -> None:
        handlers.stop(request.session_hash or "")

    def seek(event: gr.EventData) -> Any:
        return gr.Video(playback_position=float(event.time_s))

    def here(player: gr.Video, text: str) -> str:
        return question_at(text, float(player.playback_position or 0))

    # another video
    opening = {**model, "show_progress_on": [video]}
    demo.load(as_event(handlers.open_first), None, video_parts, **opening)
    parts["clip"].input(as_event(handlers.open_named), [parts["clip"], session], video_parts, **opening)
    video.upload(as_event(handlers.open_upload), [video, session], video_parts, **opening)
    parts["chat"].clear(as_event(handlers.forget), [session], video_parts, **quick)
    video.clear(as_event(handlers.close), [session], video_parts, **quick)
    # a question, and the files of its answer
    asking = [parts["send"].click, question.submit]
    gr.on(asking, as_event(handlers.no_files), None, [parts[name] for name in _FILES], **quick)
    answered = gr.on(
        asking,
        ask,
        [question, session, *chosen, *(parts[name] for name in ("remember", "chain", "decoding", "context"))],
        [parts[name] for name in _ASKING],
        show_progress="hidden",
        **model,
    )
    answered.then(
        as_event(handlers.files), [session], [parts[name] for name in _FILES], show_progress="hidden",
        concurrency_limit=2, api_visibility="private",
    )  # fmt: skip
    parts["halt"].click(stop, None, None, **quick)
    demo.unload(stop)
    # times in the video; with `always_last`, a press during another event is not lost
    for panel in (parts["timeline"], parts["sight"], parts["comparison"]):
        panel.select(seek, None, video, trigger_mode="always_last", **quick)
    parts["here"].click(here, [video, question], question, **quick)
    parts["suggestions"].click(lambda sample: sample[0], parts["suggestions"], question, **quick)
    both = [*chosen, parts["context"], *other]
    compare.click(as_event(handlers.compare), [question, session, *both], [parts["comparison"]], **model)


def _programs(handlers: Handlers, parts: dict[str, Any], chosen: list[Any]) -> None:
    """Endpoints for gradio_client and other programs."""
    answer = gr.JSON(visible=False)
    call = {"concurrency_id": _MODEL, "concurrency_limit": 1}
    asked = [parts["video"], parts["question"], *chosen]
    gr.Button(visible=False).click(handlers.ask_api, asked, answer, api_name="ask", **call)
    gr.Button(visible=False).click(
        handlers.ask_in_chain_api, [*asked, parts["chain"]], answer, api_name="ask_in_chain", **call
    )
    gr.Button(visible=False).click(handlers.cost_api, chosen, answer, api_name="cost", queue=False)


def _by_part(parts: dict[str, Any], update: Update) -> dict[Any, Any]:
    """An update as Gradio takes it: component -> value, in place of name -> value."""
    return {parts[name]: value for name, value in update.items()}
