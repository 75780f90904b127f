"""Places visual tokens in the text: one placeholder becomes as many positions as its video has tokens.

    text      When does it spin ? <video> answer        one placeholder for each video or image
    expanded  When does it spin ? v v v v v answer      one position for each visual token
    or        When ... ? 0.0 s: v v 1.5 s: v v answer   with the time of each frame before its tokens

Several questions about one video can share its visual tokens in one row. `segments` numbers the questions; 0 is the
shared part. A position sees the shared part and its own segment. The positions of each segment start after the shared
part.

B rows, L text positions, P positions after expansion, M visual tokens of a row, S tokens beside the row, D width
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.tokens import IGNORED, TIME_TEXT, VisualSequence


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """A batch of rows in which every visual token has a position of its own."""

    input_ids: Tensor
    """int64, B P. The placeholder's id at visual positions; text between frames has its own ids."""
    attention_mask: Tensor
    """int64, B P."""
    visual: Tensor
    """B M D. The visual tokens of each row in reading order, zero after the last one."""
    labels: Tensor | None
    """int64, B P; `IGNORED` at visual positions."""
    segments: Tensor | None
    """int64, B P; -1 at padding."""
    frame: Tensor
    """int64, B P. The frame a visual position shows; -1 at text, and where it shows several."""
    which: Tensor
    """int64, B P. Number of the video or image within its row; -1 at text."""
    place: Tensor
    """int64, B P. Raster position of a visual token on its frame's grid; for pooled tokens, its number. -1 at text, and
    `TIME_TEXT` at text before a frame."""
    ends: Tensor
    """int64, B L. Where each given position is now; for a placeholder, the last token in its place. 0 at padding."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the grid of `place`; None if tokens were pooled, or grids differ."""
    cross_attention_states: Tensor | None = None
    """B S D. The visual tokens of each row that have no position; None if no row has some."""
    cross_attention_mask: Tensor | None = None
    """bool, B S. False at padding, and in a whole row without such tokens."""

    def as_given(self, values: Tensor) -> Tensor:
        """Values B P ... at the given positions: B L ..."""
        rows = torch.arange(len(self.ends), device=values.device).unsqueeze(1)
        return values[rows, self.ends.to(values.device)]


def place(
    input_ids: Tensor,
    attention_mask: Tensor,
    sequences: dict[int, VisualSequence],
    *,
    labels: Tensor | None = None,
    segments: Tensor | None = None,
    pad_side: Literal["left", "right"] = "right",
) -> Placed:
    """Expands every placeholder to the positions of its visual tokens.

    Args:
        input_ids: int64, B L.
        attention_mask: B L, 0 at padding on either side.
        sequences: placeholder id -> its videos (or images), in the order in which they appear, from the first row
            to the last.
        labels: int64, B L.
        segments: int64, B L.
        pad_side: the side on which shorter rows are padded.

    Raises:
        InputError: if the number of placeholders is not the number of videos or images, or a row has several videos
            with tokens beside the sequence.
    """
    _as_many_placeholders(input_ids, attention_mask, sequences)
    used = dict.fromkeys(sequences, 0)
    rows: list[dict[str, Tensor]] = []
    for b, ids in enumerate(input_ids):
        valid = attention_mask[b].bool()
        row = {"input_ids": ids[valid]}
        if labels is not None:
            row["labels"] = labels[b][valid]
        if segments is not None:
            row["segments"] = segments[b][valid]
        rows.append(_expanded(row, sequences, used))
    filled = {"input_ids": 0, "labels": IGNORED, "segments": -1, "frame": -1, "which": -1, "place": -1}
    width = max(len(row["input_ids"]) for row in rows)
    merged = {
        name: torch.stack([_padded(row[name], width, fill, pad_side) for row in rows])
        for name, fill in filled.items()
        if name in rows[0]
    }
    mask = torch.stack([_padded(torch.ones_like(row["input_ids"]), width, 0, pad_side) for row in rows])
    visual = torch.nn.utils.rnn.pad_sequence([row["visual"] for row in rows], batch_first=True)
    ends = torch.zeros_like(input_ids)
    for b, row in enumerate(rows):
        skipped = width - len(row["input_ids"]) if pad_side == "left" else 0
        ends[b, attention_mask[b].bool()] = row["ends"] + skipped
    states, states_mask = _beside(input_ids, attention_mask, sequences)
    return Placed(
        ends=ends,
        attention_mask=mask,
        visual=visual,
        labels=merged.pop("labels", None),
        segments=merged.pop("segments", None),
        grid=_common_grid(sequences.values()),
        cross_attention_states=states,
        cross_attention_mask=states_mask,
        **merged,
    )


def _beside(ids: Tensor, mask: Tensor, sequences: dict[int, VisualSequence]) -> tuple[Tensor | None, Tensor | None]:
    """Tokens beside the sequence of each row (B S D) and their mask (B S); None if no video has some.

    Raises:
        InputError: if a row with such tokens has several videos or images. Its tokens would be one set, in which
            nothing says to which video a token belongs.
    """
    used = dict.fromkeys(sequences, 0)
    rows: list[Tensor | None] = []
    for b, row in enumerate(ids):
        row = row[mask[b].bool()]
        media = [int(row[position]) for position in _positions(row, sequences)]
        own = []
        for placeholder in media:
            own.append(sequences[placeholder].beside(used[placeholder]))
            used[placeholder] += 1
        if len(own) > 1 and any(states is not None for states in own):
            raise InputError(
                f"row {b} has {len(own)} videos and images; a path with tokens beside the sequence takes one in a row: "
                "ask about each on its own, or choose another path"
            )
        rows.append(own[0] if own else None)
    filled = [states for states in rows if states is not None]
    if not filled:
        return None, None
    whole = torch.nn.utils.rnn.pad_sequence(
        [filled[0][:0] if states is None else states for states in rows], batch_first=True
    )
    counts = torch.tensor([0 if states is None else len(states) for states in rows], device=whole.device)
    return whole, torch.arange(whole.shape[1], device=whole.device) < counts.unsqueeze(1)


def _common_grid(sequences: Iterable[VisualSequence]) -> tuple[int, int] | None:
    grids = {sequence.grid for sequence in sequences}
    return grids.pop() if len(grids) == 1 else None


def require_room(longest: int, visual: int, limit: int | None) -> None:
    """Refuses a prompt that is longer than the LLM can read. Visual tokens are never cut off.

    Args:
        longest: positions of the longest prompt.
        visual: how many of them are visual tokens.
        limit: how many positions the LLM can read; None if its configuration does not say.

    Raises:
        InputError: saying what to lower.
    """
    if limit is not None and longest > limit:
        raise InputError(
            f"the prompt has {longest} positions, {visual} of them visual tokens; the LLM can read {limit}. Take fewer "
            "frames, a token reducer or another path, or shorten the text"
        )


def _as_many_placeholders(ids: Tensor, mask: Tensor, sequences: dict[int, VisualSequence]) -> None:
    for placeholder, sequence in sequences.items():
        expected, given = int(((ids == placeholder) & mask.bool()).sum()), len(sequence.embeddings)
        if expected != given:
            raise InputError(f"the text has {expected} placeholders of id {placeholder} for {given} videos or images")


def _expanded(row: dict[str, Tensor], sequences: dict[int, VisualSequence], used: dict[int, int]) -> dict[str, Tensor]:
    """One row's unpadded tensors, with every placeholder expanded.

    `used` counts the videos and images of each placeholder that earlier rows have; it is updated.
    """
    ids = row["input_ids"]
    counts = torch.ones_like(ids)
    id_runs: list[Tensor] = []
    tokens: list[Tensor] = []
    frames: list[Tensor] = []
    places: list[Tensor] = []
    for position in _positions(ids, sequences):
        placeholder = int(ids[position])
        sequence, number = sequences[placeholder], used[placeholder]
        used[placeholder] += 1
        keep = sequence.mask[number]
        tokens.append(sequence.embeddings[number][keep])
        frames.append(sequence.frame[number][keep])
        text = None if sequence.frame_text is None else sequence.frame_text[number]
        id_runs.append(run_of_ids(placeholder, frames[-1], text))
        counts[position] = len(id_runs[-1])
        numbers = torch.arange(len(keep), device=keep.device)
        places.append((numbers if sequence.place is None else sequence.place[number])[keep])
    # text is repeated once, a placeholder as often as its video has positions
    out = {name: values.repeat_interleave(counts) for name, values in row.items()}
    out["ends"] = (counts.cumsum(0) - 1).clamp(min=0)
    is_visual = torch.zeros_like(ids, dtype=torch.bool)
    is_visual[_positions(ids, sequences)] = True
    expanded = is_visual.repeat_interleave(counts)
    is_token = expanded.clone()
    out["frame"] = torch.full_like(out["input_ids"], -1)
    out["which"], out["place"] = out["frame"].clone(), out["frame"].clone()
    # ids, places and frames of the visual tokens; text between frames keeps its own ids
    if tokens:
        run = torch.cat(id_runs)
        out["input_ids"][expanded] = run
        is_token[expanded] = torch.isin(run, run.new_tensor(list(sequences)))
        out["place"][expanded & ~is_token] = TIME_TEXT
        out["place"][is_token] = torch.cat(places)
        out["frame"][is_token] = torch.cat(frames)
        out["which"][is_token] = torch.cat([torch.full_like(f, i) for i, f in enumerate(frames)])
        out["visual"] = torch.cat(tokens)
    else:
        any_sequence = next(iter(sequences.values()), None)
        out["visual"] = torch.zeros(0, 0) if any_sequence is None else any_sequence.embeddings[0, :0]
    if "labels" in out:
        out["labels"] = out["labels"].masked_fill(expanded, IGNORED)
    return out


def run_of_ids(placeholder: int, frames: Tensor, text: Tensor | None) -> Tensor:
    """Ids in place of one placeholder: its own id for each visual token, and each frame's text before the frame.

    Args:
        placeholder: the id.
        frames: int64, M. The frame that each token shows; -1 where it shows several.
        text: int64, F K; see `VisualSequence.frame_text`.
    """
    run = torch.full_like(frames, placeholder).unsqueeze(1)  # M 1
    if text is not None:
        before = torch.cat([frames.new_full((1,), -1), frames[:-1]])
        begins = (frames >= 0) & (frames != before)
        run = torch.cat([text[frames.clamp(0, len(text) - 1)].where(begins.unsqueeze(1), -1), run], dim=1)  # M K+1
    return run[run >= 0]


def _positions(ids: Tensor, placeholders: Sequence[int] | dict[int, VisualSequence]) -> list[int]:
    return [i for i, value in enumerate(ids.tolist()) if value in placeholders]


def _padded(row: Tensor, width: int, fill: int, side: str) -> Tensor:
    missing = width - len(row)
    return torch.nn.functional.pad(row, (missing, 0) if side == "left" else (0, missing), value=fill)


def fill_in(embeddings: Tensor, is_visual: Tensor, visual: Tensor) -> Tensor:
    """Embeddings B P D in which visual position i of each row has the row's visual token i (of B M D)."""
    if not visual.shape[1]:
        return embeddings
    rank = (is_visual.long().cumsum(dim=1) - 1).clamp(min=0)  # B P
    chosen = visual.gather(1, rank.unsqueeze(-1).expand(*rank.shape, visual.shape[-1]))
    return torch.where(is_visual.unsqueeze(-1), chosen.to(embeddings.dtype), embeddings)


def positions(attention_mask: Tensor, segments: Tensor | None) -> Tensor:
    """Position ids B P. Padding is not counted; every segment continues from the end of the shared part."""
    in_row = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    if segments is None:
        return in_row
    shared = (segments == 0).sum(dim=1, keepdim=True)
    out = in_row
    for segment in range(1, int(segments.max()) + 1):
        inside = segments == segment
        start = torch.where(inside, in_row, in_row.max() + 1).min(dim=1, keepdim=True).values
        out = torch.where(inside, in_row - start + shared, out)
    return out


def block_mask(attention_mask: Tensor, segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask B 1 P P. It is causal; each segment sees the shared part and itself."""
    p = segments.shape[1]
    causal = torch.ones(p, p, dtype=torch.bool, device=segments.device).tril()
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    visible = causal & ((key == 0) | (key == query)) & attention_mask.bool().unsqueeze(1)
    visible = visible | torch.eye(
        p, dtype=torch.bool, device=segments.device
    )  # padding sees itself: no empty softmax row
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min).unsqueeze(1)
