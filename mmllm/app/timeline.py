"""The timeline under the player: a strip of frames, answered and true spans as bars, and the spans as a list.

Everything that can be pressed is a button with the instant it leads to in `data-time`; the script hands that on as the
component's `select` event, and keeps a line at the player's position.
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
LANES = 6
"""Answers that have bars; the list below has all of them."""
NO_TIME = '<span class="mm-empty">no time was named</span>'
_THUMBNAIL = 96
_LEAST_SHARE = 0.6
"""Least width of a bar in per cent, so that it can be seen and pressed."""


def timeline(visit: Visit, clip: VideoClip | None) -> str:
    """HTML of the whole timeline.

    Args:
        visit: the video and its turns.
        clip: its frames; None where they are no longer at hand.
    """
    strip = "" if clip is None else _lane("frames", _strip(clip), "mm-strip")
    numbered = list(enumerate(visit.turns, start=1))[-LANES:]
    lanes = "".join(_turn(number, turn, visit.duration_s) for number, turn in numbered)
    return _section(visit.duration_s, f"timeline of {visit.name}", strip + lanes, _list(visit))


def bars(duration_s: float, lanes: Iterable[tuple[str, tuple[Span, ...], str]]) -> str:
    """HTML of a few lanes over one axis: a name, its spans, and their kind (`answer`, `other` or `truth`)."""
    drawn = "".join(_lane(name, _bars(spans, duration_s, name, kind)) for name, spans, kind in lanes)
    return _section(duration_s, "answers on one timeline", drawn)


def _strip(clip: VideoClip) -> str:
    """Evenly spread frames, each over the part of the axis that it stands for."""
    shown = np.unique(np.linspace(0, len(clip) - 1, min(STRIP_FRAMES, len(clip))).round().astype(int))
    return "".join(
        f'<button type="button" class="mm-frame" data-time="{clip.times_s[i]:.3f}" '
        f'aria-label="go to {seconds(clip.times_s[i])}" title="{seconds(clip.times_s[i])}">'
        f'<img alt="" src="{picture(_small(clip.frames[i]))}"></button>'
        for i in shown
    )


def _small(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return np.asarray(image)


def _section(duration_s: float, label: str, lanes: str, below: str = "") -> str:
    axis = _lane("", _axis(duration_s), "mm-axis")
    head = f'<section class="mm-timeline" data-duration="{duration_s:.3f}" aria-label="{safe(label)}">'
    return f"{head}{lanes}{axis}{below}</section>"


def _lane(name: str, content: str, kind: str = "") -> str:
    track = f'<div class="mm-track {kind}">{content}</div>'
    return f'<div class="mm-lane"><span class="mm-name">{safe(name)}</span>{track}</div>'


def _turn(number: int, turn: ChatTurn, duration_s: float) -> str:
    name = f"answer {number}"
    lane = _lane(name, _bars(turn.spans, duration_s, name, "answer"))
    if turn.truth is None:
        return lane
    return lane + _lane("truth", _bars((turn.truth,), duration_s, "truth", "truth"))


def _bars(spans: Iterable[Span], duration_s: float, name: str, kind: str) -> str:
    return "".join(_bar(span, duration_s, name, kind) for span in spans) or NO_TIME


def _bar(span: Span, duration_s: float, name: str, kind: str) -> str:
    left = min(100 * span.start_s / duration_s, 100 - _LEAST_SHARE)
    width = max(min(100 * span.length_s / duration_s, 100 - left), _LEAST_SHARE)
    label = safe(f"{name}: {interval(span)}")
    return (
        f'<button type="button" class="mm-bar mm-{kind}" data-time="{span.start_s:.3f}" title="{label}" '
        f'aria-label="go to {label}" style="left:{left:.3f}%;width:{width:.3f}%"></button>'
    )


def _axis(duration_s: float) -> str:
    """Four to eight round numbers of seconds."""
    rough = duration_s / 6
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    digits = max(0, -math.floor(math.log10(step)))
    return "".join(
        f'<span class="mm-tick" style="left:{100 * i * step / duration_s:.3f}%">{i * step:.{digits}f}</span>'
        for i in range(int(duration_s / step + 1e-9) + 1)
        if i * step <= 0.97 * duration_s
    )


def _list(visit: Visit) -> str:
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
  const share = Math.min(Math.max(player.currentTime / Number(section.dataset.duration), 0), 1);
  if (Number.isFinite(share)) section.style.setProperty("--mm-now", share);
};
for (const name of ["timeupdate", "seeked", "loadedmetadata"]) document.addEventListener(name, follow, true);
"""
"""Media events do not bubble, so they are caught on their way down."""
