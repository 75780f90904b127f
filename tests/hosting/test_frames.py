"""Which pictures of a prompt are one medium."""

import pytest
import torch

from mmllm.errors import InputError
from mmllm.hosting.frames import FRAMES_APART, check_count, grouped, runs, side_by_side, tokens_of_each, with_cls

PICTURE = 9


def ids(*parts):
    """A prompt of one row: a number is so many ids of text, `n * "p"` placeholders."""
    return torch.tensor(
        [[i for part in parts for i in ([1] * part if isinstance(part, int) else [PICTURE] * len(part))]]
    )


def test_runs_begin_and_end_at_the_border_of_a_row():
    found = [(run.row, run.start, run.length) for run in runs(torch.tensor([[9, 9, 1, 9], [9, 1, 1, 1]]), PICTURE)]
    assert found == [(0, 0, 2), (0, 3, 1), (1, 0, 1)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (ids(2, "pppp", 3), [("image", 1)]),
        (ids("pppp"), [("image", 1)]),
        (ids(1, "pppp" * 3, 2), [("image", 3)]),
        (ids(1, "pppp", 5, "pppp", FRAMES_APART, "pppp", 1), [("video", 3)]),
        (ids(1, "pppp", FRAMES_APART + 1, "pppp", 1), [("image", 1), ("image", 1)]),
        (ids(1, "pppp", 5, "pppp", 30, "pppp", 5, "pppp", 1), [("video", 2), ("video", 2)]),
        (ids(1, "pppp" * 2, 5, "pppp", 5, "pppp", 1), [("image", 2), ("video", 2)]),
        (ids(1, "pppp", 5, "pppp", 5, "pppp" * 2, 1), [("video", 2), ("image", 2)]),
        (ids(1, "pppp" * 2, 5, "pppp" * 2, 1), [("image", 2), ("image", 2)]),
        (ids(4), []),
    ],
)
def test_pictures_that_stand_close_are_one_medium(prompt, expected):
    assert grouped(prompt, PICTURE, 4) == expected


def test_tiles_stand_closer_than_frames():
    prompt = ids(1, "pp", 2, "pp", 3, "pp", 9, "pp", 30, "pp", 9, "pp", 1)
    assert grouped(prompt, PICTURE, 2, tiles_apart=3) == [("image", 3), ("image", 1), ("video", 2)]


def test_a_medium_ends_with_its_row():
    prompt = torch.tensor([[1, 1, 9, 9], [9, 9, 1, 1]])
    assert grouped(prompt, PICTURE, 2) == [("image", 1), ("image", 1)]


def test_half_a_picture_is_refused():
    with pytest.raises(InputError, match="6 placeholders at position 2 of row 0 are no whole number of pictures of 4"):
        grouped(ids(2, "pppppp"), PICTURE, 4)


def test_pictures_and_placeholders_are_counted():
    with pytest.raises(InputError, match="placeholders for 3 pictures, but there are 2"):
        check_count([("image", 1), ("video", 2)], 2)
    with pytest.raises(InputError, match="7 placeholders 9 do not fit 2 images"):
        tokens_of_each(ids("ppppppp"), PICTURE, 2, "images")
    assert tokens_of_each(ids("pppp", 2, "pppp"), PICTURE, 2, "images") == 4


def test_extra_tokens_have_no_place():
    medium = side_by_side("video", 2, 4, extra=1)
    assert medium.grid == (2, 2)
    assert medium.frame_of.tolist() == [0] * 4 + [1] * 4 + [-1]
    assert medium.fixed.tolist() == [False] * 8 + [True]
    framed = with_cls(side_by_side("video", 2, 4))
    assert framed.place_of.tolist() == [-1, 0, 1, 2, 3] * 2
    assert framed.fixed.tolist() == [True, *[False] * 4] * 2


def test_tokens_without_a_square_have_no_grid():
    assert side_by_side("image", 1, 6).grid is None
