"""What each position of a prompt is, also where a time stands before each frame."""

import torch

from mmllm.llm.counters import ContextCounts
from mmllm.llm.kinds import PositionKind, kinds_of
from mmllm.modeling.placeholders import place
from mmllm.tokens import TIME_TEXT, VisualSequence


def letters(kind):
    return ["".join("stvoqa"[number] for number in row) for row in kind.tolist()]


def masks(rows):
    """Of rows of letters: v a visual token, t time text, . other text, a an answer, - padding."""
    grid = [list(row) for row in rows]

    def of(names):
        return torch.tensor([[letter in names for letter in row] for row in grid])

    return of("v"), of("t"), of("vt.")


def test_kinds_by_place():
    rows = ["..tvvtvv..a", "--..vv.vv..", "...........", "..vv.......", "vv........a"]
    assert letters(kinds_of(*masks(rows))) == [
        "sstvvtvvqqa",
        "aassvvovvqq",
        "ooooooooooo",
        "ssvvqqqqqqq",
        "vvqqqqqqqqa",
    ]


def test_the_text_before_a_frame_is_time_text(make_model):
    embeddings = torch.zeros(1, 4, 32)
    sequence = VisualSequence(
        embeddings=embeddings,
        blocks=(("fast", 4),),
        mask=torch.ones(1, 4, dtype=torch.bool),
        frame=torch.tensor([[0, 0, 1, 1]]),
        frame_text=torch.tensor([[[11, 12, -1], [13, 14, 15]]]),
    )
    ids = torch.tensor([[5, 6, 200, 7, 8]])
    placed = place(ids, torch.ones_like(ids), {200: sequence})
    assert (placed.place == TIME_TEXT).tolist() == [[False] * 2 + [True] * 2 + [False] * 2 + [True] * 3 + [False] * 4]
    current = make_model(context=["full"]).pass_of_placed(placed)
    assert letters(current.kind) == ["ssttvvtttvvqq"]
    assert current.repeated(2).kind.shape == (2, 13)
    assert PositionKind.TIME == 1


def test_tokens_of_several_frames_count_for_none(make_model):
    frame, place_of = torch.tensor([[-1, 0, 1, 1, -1]]), torch.tensor([[-1, 0, 1, 2, 3]])
    valid = torch.ones(1, 5, dtype=torch.bool)
    current, counts = make_model(context=["full"]).llm_pass(place_of, frame, valid, None), ContextCounts()
    current.count_in(counts, ())
    assert counts.frame.tolist() == [-1, 0, 1, 1, -1]
    assert current.frame.tolist() == [[0, 0, 1, 1, 0]]  # stages take it as an index
