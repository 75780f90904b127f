"""Helpers that several panels share: escaped HTML, times as text, pictures as `data:` addresses."""

from __future__ import annotations

import base64
import io
import re
from html import escape

import numpy as np
from PIL import Image

from mmllm.times.answers import Span

_STAMP = re.compile(r"<(\d+(?:\.\d+)?)>")


def safe(text: str) -> str:
    """Text escaped for HTML; braces, dollar signs and backticks too, because Gradio's templates would read them."""
    text = escape(text, quote=True)
    return text.replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;").replace("`", "&#96;")


def seconds(time_s: float) -> str:
    """A time as text: `12.4 s`, and from one minute on `1:02.4`."""
    tenths = round(time_s * 10)
    return f"{tenths / 10:.1f} s" if tenths < 600 else f"{tenths // 600}:{tenths % 600 / 10:04.1f}"


def interval(span: Span) -> str:
    """A span as text: `2.0 s – 5.0 s`."""
    return f"{seconds(span.start_s)} – {seconds(span.end_s)}"


def readable(text: str) -> str:
    """The text with each stamp such as `<12.4>` replaced by `12.4 s`."""
    return _STAMP.sub(lambda match: seconds(float(match[1])), text)


def picture(frame: np.ndarray) -> str:
    """A frame, uint8 H W 3, as a `data:` address of a JPEG picture."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
