"""The text of an answer while it comes. The joined pieces are the whole text, streamed or not.

A piece is given when the text can no longer change: times, letters of several ids and words that end an answer are
held back until they are complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_LONGEST_STAMP = 16
"""Characters after which a text that begins with `<` is no stamp."""
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""How tokenizers write the first ids of a letter that has several."""


class Speech:
    """Ids to pieces of text.

    Args:
        read: ids -> their text.
        stops: texts before which the answer ends.
    """

    def __init__(self, read: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.read, self.stops = read, [stop for stop in stops if stop]
        self.ids: list[int] = []
        self.text = ""
        """All pieces so far."""
        self.ended = False
        """Whether a text of `stops` came."""

    def add(self, token: int) -> str:
        """The next piece; empty if there is nothing that cannot change."""
        self.ids.append(token)
        return self._piece(self._held_back(self._until_stop(self.read(self.ids))))

    def end(self) -> str:
        """The last piece."""
        return self._piece(self._until_stop(self.read(self.ids)) if self.ids else "")

    def kept(self) -> tuple[Sequence[int], str]:
        """The ids before the first text of `stops`, and the part of a further id that is before it, too."""
        if not self.ended:
            return self.ids, ""
        for count in range(len(self.ids), 0, -1):
            text = self.read(self.ids[:count])
            if self.text.startswith(text):
                return self.ids[:count], self.text[len(text.rstrip()) :]
        return [], self.text

    def _piece(self, text: str) -> str:
        """What a text has beyond the pieces so far; a tokenizer that rewrites what it wrote is not followed."""
        piece = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += piece
        return piece

    def _until_stop(self, text: str) -> str:
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        self.ended = self.ended or bool(places)
        return text[: min(places)] if places else text

    def _held_back(self, text: str) -> str:
        """The text without an end that can still change."""
        text = text.rstrip(_INCOMPLETE)
        begin = text.rfind("<")
        if begin >= 0 and ">" not in text[begin:] and len(text) - begin <= _LONGEST_STAMP:
            text = text[:begin]
        if self.ended:
            return text
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    text = text[:-length]
                    break
        return text
