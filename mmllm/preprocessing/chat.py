"""Chat messages: checks, protection against placeholders in typed text, and the parts that the assistant says."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from mmllm.errors import InputError
from mmllm.preprocessing.templates import IMAGE

Message = Mapping[str, Any]


def with_system(messages: Sequence[Message], prompt: str) -> list[Message]:
    """The messages, with `prompt` as a system message in front if there is no system message."""
    conversation = list(messages)
    if prompt and conversation:
        first = conversation[0]
        if not (isinstance(first, Mapping) and first.get("role") == "system"):
            conversation.insert(0, {"role": "system", "content": prompt})
    return conversation


def as_images(messages: Sequence[Message], kinds: Collection[str]) -> list[Message]:
    """The messages with an image in place of every medium of some kinds, for templates that cannot write these."""
    return [
        {**message, "content": [{"type": "image"} if item["type"] in kinds else item for item in message["content"]]}
        if not isinstance(message["content"], str)
        else message
        for message in messages
    ]


def with_own_words(text: str, messages: Sequence[Message], words: Mapping[str, str]) -> str:
    """A text in which media were written as images, with the placeholder of its own kind for each medium.

    Args:
        text: `as_images(messages, words)` as rendered by the template.
        messages: the conversation itself.
        words: kind of medium that was written as an image -> its placeholder.

    Raises:
        InputError: if the template did not write one placeholder for each medium.
    """
    content = [item for message in messages if not isinstance(message["content"], str) for item in message["content"]]
    placeholders = [
        words.get(item["type"], IMAGE) for item in content if item["type"] == "image" or item["type"] in words
    ]
    pieces = text.split(IMAGE)
    if len(pieces) != len(placeholders) + 1:
        raise InputError(
            f"the chat template must write one placeholder for each medium; it writes {len(pieces) - 1} for "
            f"{len(placeholders)}"
        )
    return "".join(piece + word for piece, word in zip(pieces, [*placeholders, ""], strict=True))


def assistant_turns(
    messages: Sequence[Message], text: str, render: Callable[[Sequence[Message], bool], str]
) -> Iterator[tuple[int, int]]:
    """Character ranges of `text` that the assistant says, the end-of-turn token included.

    Args:
        messages: the conversation.
        text: all of it rendered.
        render: messages, and whether the assistant is about to speak -> text.

    Raises:
        InputError: if the first messages of the conversation are not rendered as the beginning of its text.
    """
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = render(messages[:i], True), render(messages[: i + 1], False)
            if not (after.startswith(before) and text.startswith(after)):
                raise InputError(
                    "the chat template must render the first messages of a conversation as the beginning of its text"
                )
            yield len(before), len(after)


def escaped(messages: Sequence[Message], kinds: Collection[str]) -> list[Message]:
    """The messages with a space inside each typed placeholder (`< video>`), so that only media make placeholders.

    Args:
        messages: the conversation.
        kinds: all kinds of media.

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
            content = [
                {**item, "text": plain(item["text"])} if item["type"] == "text" else item
                for item in items(message, kinds)
            ]
            out.append({**message, "content": content})
    return out


def items(message: Message, kinds: Collection[str]) -> list[Mapping[str, Any]]:
    """The items of a message; none if its content is a plain text.

    Args:
        message: the message.
        kinds: all kinds of media.

    Raises:
        InputError: if the content is neither text nor a list, or an item has no allowed type or no text.
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
    """The file or value of an item of one kind of media.

    Raises:
        InputError: if the item has none.
    """
    for key in (kind, "path", "url"):
        if item.get(key) is not None:
            return item[key]
    raise InputError(f"a {kind} item needs its {kind}, path or url: {dict(item)!r:.200}")
