"""Where a frame is pointed at: at its first token, or at its sound."""

import torch

from mmllm.modeling.losses import _first_one_frame_positions
from mmllm.modeling.placeholders import place
from mmllm.tokens import HEARD, PATCHLESS, VisualSequence


def first_positions(places):
    """Of two frames with tokens at these places, behind one word."""
    sequence = VisualSequence(
        embeddings=torch.zeros(1, 2 * len(places), 4),
        mask=torch.ones(1, 2 * len(places), dtype=torch.bool),
        frame=torch.arange(2).repeat_interleave(len(places)).unsqueeze(0),
        blocks=(("frames", 2 * len(places)),),
        place=torch.tensor(places * 2).unsqueeze(0),
        grid=(1, 2),
    )
    placed = place(torch.tensor([[5, 9]]), torch.ones(1, 2, dtype=torch.long), {9: sequence})
    return _first_one_frame_positions(placed, 2).tolist()[0]


def test_sound_is_pointed_at_and_row_ends_are_not():
    assert first_positions([0, 1, PATCHLESS]) == [1, 4]
    assert first_positions([0, 1, PATCHLESS, HEARD]) == [4, 8]
