"""Chat templates by name: how messages become the text around the visual placeholders.

Messages are transformers': `{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When ...?"}]}`.
A template writes every video and image of a turn first, then its text, as LITA and LLaVA were trained. Where a turn has
text and media in another order, `mmllm.preprocessing.chat.in_order` makes one text of them, which any template keeps.
"""

from __future__ import annotations

from mmllm.errors import ConfigError
from mmllm.fields import closest

VIDEO, IMAGE = "<video>", "<image>"
"""The placeholders; each stands for all tokens of one video or image."""

# What a user turn holds, placeholders first; `join` is what stands between a placeholder and the text.
_TURN = """\
{%- macro turn(message, join) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for item in message['content'] if item['type'] == 'video' -%}<video>{{ join }}{%- endfor -%}
{%- for item in message['content'] if item['type'] == 'image' -%}<image>{{ join }}{%- endfor -%}
{%- for item in message['content'] if item['type'] == 'text' -%}{{ item['text'] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""

# `SYS USER: <image>\nQ ASSISTANT: A</s>`: the system sentence is the caller's, as a message of role "system".
_VICUNA = (
    _TURN
    + """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ turn(message, '') }}{{ ' ' }}
{%- elif message['role'] == 'user' -%}USER: {{ turn(message, '\n') }}{{ ' ' }}
{%- else -%}ASSISTANT: {{ turn(message, '') }}{{ eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}
"""
)

_PLAIN = (
    _TURN
    + """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}answer : {{ turn(message, '') }}{{ eos_token }}
{%- else -%}{{ turn(message, ' ') }}{{ ' ' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}answer :{%- endif -%}
"""
)

_CHATML = (
    _TURN
    + """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ turn(message, '\n') }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""
)

# `[INST] <image>\nQ [/INST] A</s>`, the system's words in front of the first question.
_MISTRAL = (
    _TURN
    + """\
{{- bos_token -}}
{%- set said = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{%- set said.system = turn(message, '') ~ '\n' -%}
{%- elif message['role'] == 'user' -%}[INST] {{ said.system ~ turn(message, '\n') }} [/INST]
{%- set said.system = '' -%}
{%- else -%}{{ ' ' ~ turn(message, '') }}{{ eos_token }}
{%- endif -%}
{%- endfor -%}
"""
)

_LLAMA3 = (
    _TURN
    + """\
{{- bos_token -}}
{%- for message in messages -%}
<|start_header_id|>{{ message['role'] }}<|end_header_id|>{{ '\n\n' }}{{ turn(message, '\n') }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}{%- endif -%}
"""
)

TEMPLATES = {"vicuna": _VICUNA, "plain": _PLAIN, "chatml": _CHATML, "mistral": _MISTRAL, "llama3": _LLAMA3}


def template(name: str) -> str:
    """The Jinja text of a template.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"unknown chat template {name!r}; {closest(name, TEMPLATES)}")
    return TEMPLATES[name]


_HELPFUL = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
SYSTEM_PROMPTS = {
    "vicuna": _HELPFUL.format("user"),
    "vicuna-human": _HELPFUL.format("human"),
    "qwen": "You are a helpful assistant.",
    "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
}
"""What the system says. LITA was trained with the first, and is evaluated and shown with the second."""


def named_system_prompt(name: str) -> str:
    """The system prompt of that name; any other text is a prompt itself."""
    return SYSTEM_PROMPTS.get(name, name)
