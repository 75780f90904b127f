"""Media: tokens of frames with their places, and where they stand in a prompt."""

import pytest
import torch

from mmllm.errors import InputError
from mmllm.hosting.media import Medium, in_prompt


def test_frames_and_places_follow_from_frames_and_grid():
    medium = Medium(modality="video", frames=2, grid=(2, 3), count=12)
    assert medium.frame_of.tolist() == [0] * 6 + [1] * 6
    assert medium.place_of.tolist() == [*range(6), *range(6)]
    assert not medium.fixed.any()
    assert medium.source == "video"


def test_tokens_that_are_always_kept_have_no_frame():
    fixed = torch.tensor([False, False, True, False, False, True])
    medium = Medium(modality="image", frames=1, grid=(2, 2), count=6, fixed=fixed)
    assert medium.frame_of.tolist() == [0, 0, -1, 0, 0, -1]
    assert medium.place_of.tolist() == [0, 1, -1, 2, 3, -1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 2, "count": 5}, "5 tokens are not 2 frames"),
        ({"frames": 2, "count": 8, "grid": (3, 3)}, r"8 tokens are not 2 frames with a grid of \(3, 3\)"),
        ({"frames": 0, "count": 4}, "at least one frame"),
        ({"frames": 1, "count": 0}, "at least one frame and one token"),
        ({"frames": 1, "count": 4, "fixed": torch.zeros(3, dtype=torch.bool)}, "fixed of a medium must have 4"),
        ({"frames": 1, "count": 4, "places": torch.zeros(5)}, "places of a medium must have 4"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Medium(modality="video", **fields)


IDS = {"image": 8, "video": 9}


def test_media_stand_in_prompt_order():
    ids = torch.tensor([[0, 9, 1, 9, 8], [9, 9, 8, 8, 1]])
    media = [
        Medium(modality="image", frames=1, count=1),
        Medium(modality="image", frames=1, count=2),
        Medium(modality="video", frames=2, count=2),
        Medium(modality="video", frames=1, count=2),
    ]
    placed = in_prompt(media, IDS, ids)
    assert [(m.modality, m.row, m.places.tolist()) for m in placed] == [
        ("video", 0, [1, 3]),
        ("image", 0, [4]),
        ("video", 1, [0, 1]),
        ("image", 1, [2, 3]),
    ]


def test_a_medium_in_two_rows_is_refused():
    with pytest.raises(InputError, match="a video of 2 tokens does not fit into row 0"):
        in_prompt([Medium(modality="video", frames=1, count=2)], IDS, torch.tensor([[1, 9], [9, 1]]))
