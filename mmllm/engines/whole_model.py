"""A whole model in a folder that vLLM serves with our plugin: what vLLM does itself is written as we do it.

vLLM renders the chat template and gives the tokenizer the whole text; it knows nothing of our system prompt, nor of how
this text is cut into pieces here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmllm.engines.servable import require_servable
from mmllm.engines.vllm_plugin import VIDEO_BACKEND
from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.inference.plain_decoder import answer_settings
from mmllm.processor import MmllmProcessor
from mmllm.runtime.files import new_folder
from mmllm.video.sampling import UNIFORM

_PROBE = (
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When is 3.5 s? Say <12.0> <30.5>."}]},
    {"role": "assistant", "content": [{"type": "text", "text": "<1.0> <2.5> it spins."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And here?"}]},
)
"""A conversation with everything in it by which ids could differ."""


def save_whole(qa: VideoQA, folder: Path) -> None:
    """Writes model, processor, chat template and the ids that end answers.

    Args:
        qa: the model, with the reducers with which it is to be served.
        folder: to write; must not exist.

    Raises:
        ConfigError: naming what vLLM cannot run.
        MmllmError: if the folder cannot be written.
    """
    require_servable(qa.model.config, qa.processor)
    template = with_system_prompt(qa.processor)
    require_same_ids(qa.processor, template)
    with new_folder(folder) as written:
        for part in (qa.model, qa.processor, answer_settings(qa)):
            part.save_pretrained(written)
        (written / "chat_template.jinja").write_text(template, encoding="utf-8")


def with_system_prompt(processor: MmllmProcessor) -> str:
    """The processor's chat template, which says its system prompt itself where a conversation has none."""
    template = str(processor.chat_template)
    if not processor.system_prompt:
        return template
    said = json.dumps(processor.system_prompt, ensure_ascii=False)
    return (
        "{%- if messages and messages[0]['role'] != 'system' -%}"
        f"{{%- set messages = [{{'role': 'system', 'content': {said}}}] + messages -%}}"
        "{%- endif -%}" + template
    )


def require_same_ids(processor: MmllmProcessor, template: str) -> None:
    """Refuses a processor whose ids are not those of its tokenizer for the whole text of a conversation.

    Raises:
        ConfigError: saying what to do.
    """
    own = processor.encode(processor.apply_chat_template(list(_PROBE), add_generation_prompt=True)).input_ids.tolist()
    tokenizer = processor.tokenizer
    text = tokenizer.apply_chat_template(
        list(_PROBE), chat_template=template, add_generation_prompt=True, tokenize=False
    )
    if tokenizer(text, add_special_tokens=False)["input_ids"] != own:
        raise ConfigError(
            "the tokenizer cuts a whole text otherwise than the pieces that the model was trained with, and vLLM gives "
            "it whole texts: serve the model with `mmllm serve --engine`, which sends the engine embeddings"
        )


def serve_command(processor: MmllmProcessor, folder: Path) -> str:
    """The command that serves a folder, with frames chosen and timed and answers written as here."""
    video: dict[str, Any] = {"video_backend": VIDEO_BACKEND, "num_frames": processor.num_frames}
    if processor.frame_rule != UNIFORM:
        video["sampling"] = processor.sampling
    options = json.dumps({"video": video})
    return (
        f"vllm serve {folder} --media-io-kwargs '{options}' --chat-template-content-format openai "
        "--override-generation-config '{\"temperature\": 0}'"
    )
