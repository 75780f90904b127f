"""Training rows of which a part is talk without a video, so that a model still speaks after it has learned to look.

L text positions
"""

from __future__ import annotations

from typing import Any

import torch

from mmllm.train.packing import Row
from mmllm.train.rows import DialogueRows


class WithTalk(torch.utils.data.Dataset[Any]):
    """Rows about videos, some of which are replaced by talk, evenly spread.

    Args:
        videos: rows about videos.
        talk: rows of text alone.
        share: part of all rows that is talk, from 0 to below 1.
    """

    def __init__(self, videos: torch.utils.data.Dataset[Any], talk: DialogueRows, share: float) -> None:
        self.videos, self.talk, self.share = videos, talk, share

    def __len__(self) -> int:
        return len(self.videos)  # type: ignore[arg-type]

    def __getitem__(self, number: int) -> Row:
        earlier, with_this = int(number * self.share), int((number + 1) * self.share)
        if with_this == earlier:
            return self.videos[number - earlier]
        row = self.talk[earlier]
        segments = torch.zeros_like(row.text["input_ids"])  # one segment: each word attends to all before it
        return Row(name=row.name, text={**row.text, "segment_ids": segments})
