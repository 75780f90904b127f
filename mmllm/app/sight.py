"""The panel of what the model sees: tokens and seconds of each stage, and frames with their dropped patches dimmed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmllm.app.markup import interval, picture, readable, safe, seconds
from mmllm.app.session import ChatTurn
from mmllm.app.settings import Cost
from mmllm.inference import overlay
from mmllm.inference.encoded import EncodedVideo

MOST_FRAMES = 24
"""Most frames in the panel."""
_MIN_SIDE = 128
"""Least side of a frame on the page, in pixels."""
_STAGES = {
    "decode": "decode the video",
    "encode": "encode the frames",
    "reduce": "reduce, project, arrange",
    "prefill": "read tokens and question",
}


def sight(turn: ChatTurn, encoded: EncodedVideo) -> str:
    """HTML of the panel for one turn."""
    return (
        '<section class="mm-sight"><div class="mm-tables">'
        f"{_table('tokens', ('stage', 'tokens'), token_rows(encoded))}"
        f"{_table('time', ('stage', 'seconds'), time_rows(turn))}</div>{_frames(encoded)}</section>"
    )


def token_rows(encoded: EncodedVideo) -> list[tuple[str, str]]:
    """Each stage and its number of tokens, then the number that the LLM reads."""
    names = {"encoder": "encoder", "reducers": "after the reducer"}
    rows = [(names.get(name, f"path: {name} tokens"), f"{count:,}") for name, count in encoded.token_counts.items()]
    return [*rows, ("read by the LLM", f"{encoded.read_tokens:,}")]


def time_rows(turn: ChatTurn) -> list[tuple[str, str]]:
    """Each stage and its seconds; "kept from before" for a stage that did not run."""
    rows = [
        (label, f"{turn.stage_s[name]:.3f}" if name in turn.stage_s else "kept from before")
        for name, label in _STAGES.items()
    ]
    rows.append(("question to first token", f"{turn.first_token_s:.3f}"))
    speed = "" if turn.tokens_per_s is None else f", {turn.tokens_per_s:.0f} a second"
    return [*rows, (f"whole answer ({turn.tokens} tokens{speed})", f"{turn.seconds:.3f}")]


def cost_table(cost: Cost) -> str:
    """HTML table of the cost of settings."""
    rows = [(row["stage"], f"{row['tokens']:,}", row["detail"]) for row in cost.stages]
    size = cost.cache_bytes / 2**20
    note = f"The LLM will read at most {cost.tokens:,} visual tokens; they fill {size:,.2f} MiB of its cache."
    return _table("cost", ("stage", "tokens", ""), rows) + f'<p class="mm-note">{note}</p>'


def refusal(reason: str) -> str:
    """HTML of an error message."""
    return f'<p class="mm-refusal" role="alert">{safe(reason)}</p>'


def comparison(turns: Sequence[ChatTurn]) -> str:
    """HTML table of the same question under two settings."""

    def spans(turn: ChatTurn) -> str:
        return "; ".join(map(interval, turn.spans)) or turn.without_spans

    rows = [
        ("settings", *(turn.settings for turn in turns)),
        ("answer", *(readable(turn.answer.text) for turn in turns)),
        ("spans", *map(spans, turns)),
        ("visual tokens", *(f"{turn.visual_tokens:,}" for turn in turns)),
        ("first token", *(f"{turn.first_token_s:.3f} s" for turn in turns)),
        ("whole answer", *(f"{turn.seconds:.3f} s" for turn in turns)),
    ]
    if all(turn.truth is not None for turn in turns):
        rows.insert(3, ("overlap with the truth", *(f"{_overlap(turn):.0%}" for turn in turns)))
    return _table("comparison", ("", "A", "B"), rows)


def dimmed(encoded: EncodedVideo, frame: int) -> np.ndarray:
    """One frame, uint8 H W 3, with the dropped patches dimmed; small frames are enlarged by a whole factor."""
    pixels = encoded.clip.frames[frame]
    factor = max(1, -(-_MIN_SIDE // min(pixels.shape[:2])))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    if encoded.kept is None:
        return pixels
    return overlay.dimmed(pixels[None], encoded.of_pictures(encoded.kept)[frame][None])[0]


def _frames(encoded: EncodedVideo) -> str:
    """HTML of evenly spaced frames, each a button to its time."""
    if encoded.kept is None:
        return (
            '<p class="mm-note">These tokens have no position in the picture, so dropped patches cannot be marked.</p>'
        )
    kept = encoded.of_pictures(encoded.kept)
    visible_frames = np.unique(
        np.linspace(0, len(encoded.clip) - 1, min(MOST_FRAMES, len(encoded.clip))).round().astype(int)
    )
    pictures = "".join(
        f'<button type="button" class="mm-seen" data-time="{encoded.clip.times_s[i]:.3f}" '
        f'aria-label="go to {seconds(encoded.clip.times_s[i])}: {int(kept[i].sum())} of '
        f'{kept[i].size} patches kept">'
        f'<img alt="" src="{picture(dimmed(encoded, int(i)))}"><span>{seconds(encoded.clip.times_s[i])}</span></button>'
        for i in visible_frames
    )
    fraction = encoded.kept.mean()
    share = (
        "All patches are kept." if fraction == 1 else f"{fraction:.0%} of the patches are kept, the others are dimmed."
    )
    note = f"{share} {len(visible_frames)} of {len(encoded.times_s)} frames are shown."
    return f'<p class="mm-note">{note}</p><div class="mm-grid">{pictures}</div>'


def _table(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML table; the first cell of each row is its header."""
    head = "".join(f'<th scope="col">{safe(cell)}</th>' for cell in columns)
    body = "".join(
        f'<tr><th scope="row">{safe(row[0])}</th>' + "".join(f"<td>{safe(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="mm-table mm-{name}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _overlap(turn: ChatTurn) -> float:
    """Intersection over union of the first span and the true one; 0 if the answer names no time."""
    if turn.truth is None or not turn.spans:
        return 0.0
    span, truth = turn.spans[0], turn.truth
    intersection = max(0.0, min(span.end_s, truth.end_s) - max(span.start_s, truth.start_s))
    union = span.length_s + truth.length_s - intersection
    return intersection / union if union > 0 else 0.0
