import pytest
import torch

from mmllm.errors import InputError
from mmllm.modeling.placeholders import block_mask, fill_in, place, positions
from mmllm.tokens import IGNORED, VisualSequence

VIDEO, IMAGE = 200, 201


def sequence(lengths, width=4, start=0.0):
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    values = start + torch.arange(len(lengths) * longest * width, dtype=torch.float).view(-1, longest, width)
    frame = torch.arange(longest).expand(len(lengths), longest)
    return VisualSequence(embeddings=values, mask=mask, frame=frame, blocks=(("fast", longest),))


def test_each_placeholder_becomes_the_positions_of_its_video():
    ids = torch.tensor([[5, VIDEO, 6, VIDEO, 7], [8, VIDEO, 9, 0, 0]])
    mask = (ids != 0).long()
    videos = sequence([2, 3, 1])
    placed = place(ids, mask, {VIDEO: videos}, labels=ids)
    assert placed.input_ids[0].tolist() == [5, VIDEO, VIDEO, 6, VIDEO, VIDEO, VIDEO, 7]
    assert placed.input_ids[1].tolist() == [8, VIDEO, 9, 0, 0, 0, 0, 0]
    assert placed.attention_mask.sum(1).tolist() == [8, 3]
    assert placed.labels[0].tolist() == [5, IGNORED, IGNORED, 6, IGNORED, IGNORED, IGNORED, 7]
    assert placed.frame[0].tolist() == [-1, 0, 1, -1, 0, 1, 2, -1]
    assert placed.which[0].tolist() == [-1, 0, 0, -1, 1, 1, 1, -1]
    filled = fill_in(torch.zeros(2, 8, 4), placed.input_ids == VIDEO, placed.visual)
    assert torch.equal(filled[0, 1:3], videos.embeddings[0, :2])
    assert torch.equal(filled[0, 4:7], videos.embeddings[1])
    assert torch.equal(filled[1, 1], videos.embeddings[2, 0])
    assert filled[0, [0, 3, 7]].eq(0).all()


def test_rows_are_filled_up_on_the_side_that_is_asked_for_whatever_side_they_came_with():
    ids = torch.tensor([[0, 0, 5, VIDEO], [VIDEO, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    left = place(ids, mask, {VIDEO: sequence([1, 2])}, pad_side="left")
    right = place(ids, mask, {VIDEO: sequence([1, 2])}, pad_side="right")
    assert left.attention_mask.tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert right.attention_mask.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert torch.equal(left.visual, right.visual)


def test_images_and_videos_are_told_apart_and_keep_the_order_of_the_text():
    ids = torch.tensor([[IMAGE, 5, VIDEO, 6, IMAGE]])
    placed = place(ids, torch.ones_like(ids), {VIDEO: sequence([2]), IMAGE: sequence([1, 1], start=100.0)})
    assert placed.visual[0, :, 0].tolist() == [100.0, 0.0, 4.0, 104.0]
    assert placed.which[0].tolist() == [0, -1, 1, 1, -1, 2]


def test_a_number_of_placeholders_that_does_not_fit_is_refused():
    ids = torch.tensor([[5, VIDEO]])
    with pytest.raises(InputError, match="1 placeholders of id 200 for 2 videos"):
        place(ids, torch.ones_like(ids), {VIDEO: sequence([1, 1])})


def test_positions_of_segments_go_on_after_the_shared_part():
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, -1]])
    mask = (segments >= 0).long()
    assert positions(mask, segments).tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 7]]
    assert positions(torch.tensor([[0, 0, 1, 1]]), None).tolist() == [[0, 0, 0, 1]]


def test_a_segment_sees_the_shared_part_and_itself_and_nothing_later():
    segments = torch.tensor([[0, 1, 1, 2, -1]])
    seen = block_mask((segments >= 0).long(), segments, torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]
