"""Chat messages: checked, with typed placeholders taken apart, and where in the text the assistant speaks."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from mmllm.errors import InputError
from mmllm.preprocessing.templates import IMAGE

Message = Mapping[str, Any]


def with_system(messages: Sequence[Message], prompt: str) -> list[Message]:
    """The messages, with `prompt` as the system's in front if it has said nothing."""
    spoken = list(messages)
    if prompt and spoken and not (isinstance(spoken[0], Mapping) and spoken[0].get("role") == "system"):
        spoken.insert(0, {"role": "system", "content": prompt})
    return spoken


def as_images(messages: Sequence[Message], kinds: Collection[str]) -> list[Message]:
    """The messages with an image in place of every medium of some kinds, for templates that do not know these."""
    return [
        {**message, "content": [{"type": "image"} if item["type"] in kinds else item for item in message["content"]]}
        if not isinstance(message["content"], str)
        else message
        for message in messages
    ]


def with_own_words(text: str, messages: Sequence[Message], words: Mapping[str, str]) -> str:
    """A text in which media were written as images, with their own placeholder where such a medium stands.

    Args:
        text: what the template made of `as_images(messages, words)`.
        messages: the conversation itself.
        words: kind of medium that was written as images -> its placeholder.

    Raises:
        InputError: if the template has not written a placeholder for each of them.
    """
    shown = [item for message in messages if not isinstance(message["content"], str) for item in message["content"]]
    own = [words.get(item["type"], IMAGE) for item in shown if item["type"] == "image" or item["type"] in words]
    pieces = text.split(IMAGE)
    if len(pieces) != len(own) + 1:
        raise InputError(f"the chat template writes {len(pieces) - 1} placeholders for {len(own)} images and the like")
    return "".join(piece + word for piece, word in zip(pieces, [*own, ""], strict=True))


def assistant_turns(
    messages: Sequence[Message], text: str, render: Callable[[Sequence[Message], bool], str]
) -> Iterator[tuple[int, int]]:
    """Character ranges of `text` that the assistant says, the end-of-turn token included.

    Args:
        messages: the conversation.
        text: all of it rendered.
        render: messages, and whether the assistant is about to speak -> text.

    Raises:
        InputError: if a beginning of the conversation is not rendered as a beginning of the text.
    """
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt, told = render(messages[:i], True), render(messages[: i + 1], False)
            if not (told.startswith(prompt) and text.startswith(told)):
                raise InputError("the chat template does not render a conversation's beginning as its beginning")
            yield len(prompt), len(told)


def escaped(messages: Sequence[Message], kinds: Collection[str]) -> list[Message]:
    """The messages with placeholders that somebody typed taken apart, so that only media make placeholders.

    Args:
        messages: the conversation.
        kinds: the kinds of media that there are.

    Raises:
        InputError: if a message has a role or an item that cannot be used.
    """

    def plain(text: str) -> str:
        return re.sub(f"<({'|'.join(map(re.escape, kinds))})>", r"< \1>", text)

    out: list[Message] = []
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") not in ("system", "user", "assistant"):
            raise InputError(f"a message needs a role (system, user or assistant) and content: {message!r:.200}")
        content = message.get("content")
        if isinstance(content, str):
            out.append({**message, "content": plain(content)})
        else:
            shown = [{**i, "text": plain(i["text"])} if i["type"] == "text" else i for i in items(message, kinds)]
            out.append({**message, "content": shown})
    return out


def items(message: Message, kinds: Collection[str]) -> list[Mapping[str, Any]]:
    """What a message holds, item by item; nothing if it is a plain text.

    Args:
        message: the message.
        kinds: the kinds of media that there are.

    Raises:
        InputError: if an item is none.
    """
    content = message.get("content")
    if isinstance(content, str):
        return []
    if not isinstance(content, Sequence):
        raise InputError(f"content must be text or a list of items, not {content!r:.200}")
    for item in content:
        if not isinstance(item, Mapping) or item.get("type") not in ("text", *kinds):
            raise InputError(f"an item needs a type ({', '.join(kinds)} or text): {item!r:.200}")
        if item["type"] == "text" and not isinstance(item.get("text"), str):
            raise InputError(f"a text item needs its text: {item!r:.200}")
    return list(content)


def source_of(item: Mapping[str, Any], kind: str) -> Any:
    """What an item shows.

    Raises:
        InputError: if it does not say.
    """
    for key in (kind, "path", "url"):
        if item.get(key) is not None:
            return item[key]
    raise InputError(f"a {kind} item needs its {kind}, path or url: {dict(item)!r:.200}")
