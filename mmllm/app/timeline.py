"""The timeline under the player: a strip of frames, answered and true spans as bars, and the spans as a list.

Frames, bars and spans are buttons with a time of the video in `data-time`. The script sends this time as the
component's `select` event, and moves a line with the player's position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from PIL import Image

from mmllm.app.markup import interval, picture, readable, safe, seconds
from mmllm.app.session import ChatTurn, Visit
from mmllm.times.answers import Span
from mmllm.tokens import VideoClip

STRIP_FRAMES = 12
"""Most frames in the strip."""
LANES = 6
"""Only the latest answers have bars, so many of them; the list below has all answers."""
_THUMBNAIL = 96
"""Longer side of a frame in the strip, in pixels."""
_MIN_BAR_PERCENT = 0.6
"""Least width of a bar in per cent of the axis, so that a visitor can see and press it."""


def timeline(visit: Visit, clip: VideoClip | None) -> str:
    """HTML of the whole timeline.

    Args:
        visit: the video and its turns.
        clip: its frames; None if they can no longer be read.
    """
    strip = "" if clip is None else _lane("frames", _strip(clip), "mm-strip")
    numbered = list(enumerate(visit.turns, start=1))[-LANES:]
    lanes = "".join(_turn(number, turn, visit.duration_s) for number, turn in numbered)
    return _section(visit.duration_s, f"timeline of {visit.name}", strip + lanes, _list(visit))


def bars(duration_s: float, lanes: Iterable[tuple[str, tuple[Span, ...], str]]) -> str:
    """HTML of several lanes over one axis.

    Args:
        duration_s: length of the axis in seconds.
        lanes: for each a name, its spans, and their kind: `answer`, `other` or `truth`.
    """
    drawn = "".join(_lane(name, _bars(spans, duration_s, name, kind)) for name, spans, kind in lanes)
    return _section(duration_s, "answers on one timeline", drawn)


def _strip(clip: VideoClip) -> str:
    """HTML of evenly spaced frames, each a button to its time."""
    visible_frames = np.unique(np.linspace(0, len(clip) - 1, min(STRIP_FRAMES, len(clip))).round().astype(int))
    return "".join(
        f'<button type="button" class="mm-frame" data-time="{clip.times_s[i]:.3f}" '
        f'aria-label="go to {seconds(clip.times_s[i])}" title="{seconds(clip.times_s[i])}">'
        f'<img alt="" src="{picture(_thumbnail(clip.frames[i]))}"></button>'
        for i in visible_frames
    )


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    """A frame, uint8 H W 3, reduced to the strip's size."""
    image = Image.fromarray(frame)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return np.asarray(image)


def _section(duration_s: float, label: str, lanes: str, below: str = "") -> str:
    """The section of a timeline: lanes, an axis, and HTML below it."""
    axis = _lane("", _axis(duration_s), "mm-axis")
    head = f'<section class="mm-timeline" data-duration="{duration_s:.3f}" aria-label="{safe(label)}">'
    return f"{head}{lanes}{axis}{below}</section>"


def _lane(name: str, content: str, kind: str = "") -> str:
    """One row: a name and its track."""
    track = f'<div class="mm-track {kind}">{content}</div>'
    return f'<div class="mm-lane"><span class="mm-name">{safe(name)}</span>{track}</div>'


def _turn(number: int, turn: ChatTurn, duration_s: float) -> str:
    """The lane of an answer, and below it the lane of the truth if the turn has one."""
    name = f"answer {number}"
    lane = _lane(name, _bars(turn.spans, duration_s, name, "answer", turn.without_spans))
    if turn.truth is None:
        return lane
    return lane + _lane("truth", _bars((turn.truth,), duration_s, "truth", "truth"))


def _bars(spans: Iterable[Span], duration_s: float, name: str, kind: str, without: str = "no time was named") -> str:
    """The bars of one lane, or a text if there are no spans."""
    bars = "".join(_bar(span, duration_s, name, kind) for span in spans)
    return bars or f'<span class="mm-empty">{safe(without)}</span>'


def _bar(span: Span, duration_s: float, name: str, kind: str) -> str:
    """A bar as a button to its start; its place is in per cent of the axis."""
    left = min(100 * span.start_s / duration_s, 100 - _MIN_BAR_PERCENT)
    width = max(min(100 * span.length_s / duration_s, 100 - left), _MIN_BAR_PERCENT)
    label = safe(f"{name}: {interval(span)}")
    return (
        f'<button type="button" class="mm-bar mm-{kind}" data-time="{span.start_s:.3f}" title="{label}" '
        f'aria-label="go to {label}" style="left:{left:.3f}%;width:{width:.3f}%"></button>'
    )


def _axis(duration_s: float) -> str:
    """Ticks at round numbers of seconds, with a step of 1, 2 or 5 times a power of ten."""
    min_step = duration_s / 6
    power = 10 ** math.floor(math.log10(min_step))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= min_step)
    digits = max(0, -math.floor(math.log10(step)))
    return "".join(
        f'<span class="mm-tick" style="left:{100 * i * step / duration_s:.3f}%">{i * step:.{digits}f}</span>'
        for i in range(int(duration_s / step + 1e-9) + 1)
        if i * step <= 0.97 * duration_s
    )


def _list(visit: Visit) -> str:
    """The answered spans of all turns, each a button to its start with the answer's text."""
    items = [
        f'<li><button type="button" class="mm-span" data-time="{span.start_s:.3f}">{interval(span)}</button> '
        f"<span>{safe(readable(turn.answer.text or turn.question))}</span></li>"
        for turn in visit.turns
        for span in turn.spans
    ]
    return f'<ol class="mm-spans" aria-label="answered spans">{"".join(items)}</ol>' if items else ""


SCRIPT = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-time]");
  if (button) trigger("select", { time_s: Number(button.dataset.time) });
});
const follow = () => {
  const player = document.querySelector("#mm-player video");
  const section = element.querySelector(".mm-timeline");
  if (!player || !section) return;
  const fraction = Math.min(Math.max(player.currentTime / Number(section.dataset.duration), 0), 1);
  if (Number.isFinite(fraction)) section.style.setProperty("--mm-now", fraction);
};
for (const name of ["timeupdate", "seeked", "loadedmetadata"]) document.addEventListener(name, follow, true);
"""
"""The page's script. Media events do not bubble, so the document listens for them in the capture phase."""
