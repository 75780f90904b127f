"""Chat messages: checks, protection against placeholders in typed text, and the parts that the assistant says.

An item's keys are its `type` and those that its modality takes; a key whose value is None is as if it were not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from mmllm.errors import InputError
from mmllm.fields import closest
from mmllm.preprocessing.addresses import from_base64
from mmllm.preprocessing.templates import IMAGE

Message = Mapping[str, Any]


def conversations(conversation: Any) -> tuple[list[Sequence[Message]], bool]:
    """A batch of conversations, and whether a single one was given.

    Raises:
        InputError: if there is no message.
    """
    if isinstance(conversation, Mapping) or not isinstance(conversation, Sequence) or isinstance(conversation, str):
        raise InputError(f"a conversation is a list of messages, not {type(conversation).__name__}")
    single = bool(conversation) and isinstance(conversation[0], Mapping)
    batch: list[Any] = (
        [conversation] if single else [getattr(messages, "messages", messages) for messages in conversation]
    )
    if not batch or not all(isinstance(messages, Sequence) and messages for messages in batch):
        raise InputError("a conversation needs at least one message")
    return batch, single


def items_of(message: Message) -> list[Mapping[str, Any]]:
    """The items of a message that `escaped` returned; none if its content is a plain text."""
    return [] if isinstance(message["content"], str) else list(message["content"])


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


def in_order(messages: Sequence[Message], words: Mapping[str, str], join: Callable[[], str]) -> list[Message]:
    """The messages, with text and media in turns as one text that has a placeholder for each medium.

    Templates write media first and then text, or one kind of media before another. A message whose content is already
    in that order is left to the template.

    Args:
        messages: checked by `escaped`.
        words: kind of medium -> its placeholder.
        join: gives what the template writes between a placeholder and text.
    """
    out: list[Message] = []
    for message in messages:
        content = [item for item in items_of(message) if item["type"] != "text" or item["text"]]
        kinds = [item["type"] for item in content]
        media = [kind for kind in kinds if kind != "text"]
        if kinds[: len(media)] == media and len(set(media)) <= 1:
            out.append({**message, "content": content} if content else message)
            continue
        text = ""
        for before, item in zip([None, *kinds], content, strict=False):
            piece = item["text"] if item["type"] == "text" else words[item["type"]]
            apart = before is None or before == item["type"] == "text" or text[-1:].isspace() or piece[:1].isspace()
            text += piece if apart else join() + piece
        out.append({**message, "content": [{"type": "text", "text": text}]})
    return out


def lost_texts(messages: Sequence[Message], text: str) -> bool:
    """Whether a message's plain text does not stand in the rendered text."""
    return any(isinstance(message["content"], str) and message["content"].strip() not in text for message in messages)


def text_items(messages: Sequence[Message]) -> list[Message]:
    """The messages with every plain text as a list of one item."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in messages
    ]


def without_sources(messages: Sequence[Message]) -> list[Message]:
    """The messages as a template needs them: an item of a medium only says its type."""
    return [
        message
        if isinstance(message["content"], str)
        else {
            **message,
            "content": [item if item["type"] == "text" else {"type": item["type"]} for item in message["content"]],
        }
        for message in messages
    ]


def escaped(messages: Sequence[Message], kinds: Mapping[str, Collection[str]]) -> list[Message]:
    """The messages with a space inside each typed placeholder (`< video>`), so that only media make placeholders.

    Args:
        messages: the conversation.
        kinds: kind of medium -> the keys that its items may have.

    Raises:
        InputError: if a message has a role or an item that cannot be used.
    """

    def plain(text: str) -> str:
        return re.sub(f"<({'|'.join(map(re.escape, kinds))})>", r"< \1>", text)

    out: list[Message] = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in ("system", "user", "assistant"):
            raise InputError(f"a message needs a role (system, user or assistant) and content: {message!r:.200}")
        message = {key: value for key, value in message.items() if value is not None}  # as transformers does
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


def items(message: Message, kinds: Mapping[str, Collection[str]]) -> list[Mapping[str, Any]]:
    """The items of a message, without keys that are None; no items if its content is a plain text.

    Args:
        message: the message.
        kinds: kind of medium -> the keys that its items may have.

    Raises:
        InputError: if the content is neither text nor a list, or an item has no allowed type, no text, or an unknown
            key.
    """
    content = message.get("content")
    if isinstance(content, str):
        return []
    if not isinstance(content, Sequence):
        raise InputError(f"content must be text or a list of items, not {content!r:.200}")
    return [_item(item, kinds) for item in content]


def _item(item: Any, kinds: Mapping[str, Collection[str]]) -> Mapping[str, Any]:
    """One checked item; one of OpenAI, such as `image_url`, as an item of transformers."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    if isinstance(kind, str) and kind.removesuffix("_url") in kinds and kind not in kinds:
        item, kind = _of_address(item, kind), kind.removesuffix("_url")
    if not isinstance(kind, str) or kind not in ("text", *kinds):
        raise InputError(f"an item needs a type ({', '.join(kinds)} or text): {item!r:.200}")
    item = {key: value for key, value in item.items() if value is not None}
    if kind == "text" and not isinstance(item.get("text"), str):
        raise InputError(f"a text item needs its text: {item!r:.200}")
    allowed = ("text",) if kind == "text" else kinds[kind]
    if unknown := [key for key in item if key not in ("type", *allowed)]:
        raise InputError(f"{kind} items have no key {unknown[0]!r}; {closest(str(unknown[0]), ('type', *allowed))}")
    return item


def _of_address(item: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """`{"type": "image_url", "image_url": {"url": address}}` as `{"type": "image", "url": address}`."""
    address = item.get(kind)
    options = {key: value for key, value in item.items() if key not in ("type", kind)}
    if isinstance(address, Mapping):
        inside = {
            key: value for key, value in address.items() if value is not None and (key, value) != ("detail", "auto")
        }
        address = inside.pop("url", None)
        options |= inside
    if address is None:
        raise InputError(f"an item of type {kind} needs {kind}, an address or a mapping with url: {dict(item)!r:.200}")
    return {"type": kind.removesuffix("_url"), "url": address, **options}


def source_of(item: Mapping[str, Any], kind: str) -> Any:
    """The file or value of an item of one kind of media.

    Raises:
        InputError: if the item has none, or several.
    """
    given = [key for key in (kind, "path", "url", "base64") if item.get(key) is not None]
    if not given:
        raise InputError(f"a {kind} item needs its {kind}, path or url (or base64): {dict(item)!r:.200}")
    if len(given) > 1:
        raise InputError(f"{kind} item with {' and '.join(given)}: give one of them")
    return from_base64(item["base64"]) if given == ["base64"] else item[given[0]]
