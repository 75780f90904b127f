"""Visual sequences of several videos as rows of one."""

import torch

from mmllm.modeling.sequence_rows import as_rows
from mmllm.tokens import VisualSequence


def sequence(length, seed, **fields):
    """A sequence of one video."""
    torch.manual_seed(seed)
    return VisualSequence(
        embeddings=torch.randn(1, length, 4),
        mask=torch.ones(1, length, dtype=torch.bool),
        frame=torch.arange(length)[None],
        blocks=(("frames", length),),
        **fields,
    )


def test_one_sequence_stays_as_it_is():
    alone = sequence(3, 0)
    assert as_rows([alone]) is alone


def test_shorter_videos_are_filled_up_and_masked():
    first, second = sequence(2, 0), sequence(5, 1)
    both = as_rows([first, second, first])
    assert both.embeddings.shape == (3, 5, 4)
    assert both.blocks == (("media", 5),)
    for row, own in enumerate((first, second, first)):
        assert torch.equal(both.embeddings[row][both.mask[row]], own.embeddings[0])
        assert torch.equal(both.frame[row][both.mask[row]], own.frame[0])
    assert both.mask.sum().item() == 9


def test_fields_that_only_some_have():
    grid = {"place": torch.tensor([[0, 1, 2]]), "grid": (2, 2)}
    text = {"frame_text": torch.tensor([[[5, 6], [7, -1]]])}
    beside = {
        "cross_attention_states": torch.ones(1, 2, 4),
        "cross_attention_mask": torch.ones(1, 2, dtype=torch.bool),
    }
    both = as_rows([sequence(3, 0, **grid, **text), sequence(3, 1, **beside)])
    assert both.place is None
    assert both.grid is None
    assert both.frame_text.tolist() == [[[5, 6], [7, -1]], [[-1, -1], [-1, -1]]]
    assert both.cross_attention_mask.tolist() == [[False, False], [True, True]]
    same = as_rows([sequence(3, 0, **grid), sequence(3, 1, **grid)])
    assert same.grid == (2, 2)
    assert same.place.tolist() == [[0, 1, 2], [0, 1, 2]]
