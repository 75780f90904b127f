"""Messages to the text that a chat template makes of them, with every medium at its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mmllm.errors import InputError
from mmllm.preprocessing.chat import (
    Message,
    as_images,
    in_order,
    lost_texts,
    text_items,
    with_own_words,
    without_sources,
)
from mmllm.preprocessing.foreign_code import render_template
from mmllm.preprocessing.templates import IMAGE, template


class ChatRendering:
    """What the processor does with a chat template; its options are those of `MmllmProcessor`."""

    tokenizer: PreTrainedTokenizerBase
    chat_template: Any

    def chosen_template(self, name: str | None) -> str:
        """Jinja text: that of the processor, one of several that it has by name, one of ours by name, or `name` itself.

        Raises:
            InputError: if there is none.
        """
        own = self.chat_template
        if name is not None and not isinstance(name, str):
            raise InputError(f"chat_template must be Jinja text or a name, not {name!r:.80}")
        if isinstance(own, Mapping):
            if (name or "default") in own:
                return own[name or "default"]
            if name is None:
                raise InputError(
                    f"this processor has several chat templates: give chat_template, one of {', '.join(own)}"
                )
        if name is None and own is None:
            raise InputError("this processor has no chat template: give chat_template")
        chosen = own if name is None else name
        return chosen if "{" in chosen else template(chosen)

    def rendered(
        self,
        messages: Sequence[Message],
        chosen: str,
        words: Mapping[str, str],
        *,
        prompt: bool = False,
        continued: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: checked by `mmllm.preprocessing.chat.escaped`.
            chosen: Jinja text.
            words: kind of medium -> its placeholder.
            prompt: end where the assistant's answer begins.
            continued: end inside the last message.
            variables: of the template.

        Raises:
            InputError: if the template refuses the conversation, or does not write one placeholder for each medium.
        """

        def write(messages: Sequence[Message], **flags: bool) -> str:
            known = {**self.tokenizer.special_tokens_map, **variables, **flags}
            try:
                return render_template(chosen, messages, known)
            except InputError:
                raise
            except (TemplateError, ValueError) as problem:
                raise InputError(f"the chat template refuses the conversation: {problem}") from None

        def join() -> str:
            shown: Message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "@@"}]}
            between = re.search(f"{re.escape(IMAGE)}(.*?)@@", write([shown]), flags=re.DOTALL)
            return between[1] if between and not between[1].strip() else "\n"

        foreign = {kind: word for kind, word in words.items() if kind not in chosen}
        plain = in_order(as_images(without_sources(messages), foreign), words, join)
        text = write(plain, add_generation_prompt=prompt, continue_final_message=continued)
        if lost_texts(plain, text):  # templates of some published models read lists of items only
            in_items = write(text_items(plain), add_generation_prompt=prompt, continue_final_message=continued)
            text = text if lost_texts(plain, in_items) else in_items
        return with_own_words(text, messages, foreign) if foreign else text
