"""Small pieces of HTML and of wording that the panels share."""

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
    """Text for HTML, with the braces, dollars and backticks too that Gradio's templates would read."""
    text = escape(text, quote=True)
    return text.replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;").replace("`", "&#96;")


def seconds(time_s: float) -> str:
    """Seconds as people read them: `12.4 s`, and from a minute on `1:02.4`."""
    tenths = round(time_s * 10)
    return f"{tenths / 10:.1f} s" if tenths < 600 else f"{tenths // 600}:{tenths % 600 / 10:04.1f}"


def interval(span: Span) -> str:
    """A span as people read it."""
    return f"{seconds(span.start_s)} – {seconds(span.end_s)}"


def readable(text: str) -> str:
    """A sentence in which stamps such as `<12.4>` are written as people read them."""
    return _STAMP.sub(lambda match: seconds(float(match[1])), text)


def picture(frame: np.ndarray) -> str:
    """A uint8 frame (H W 3) as a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
