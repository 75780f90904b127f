import torch

from mmllm.modeling.blending import BlendConfig, blend
from mmllm.tokens import VisualSequence


def sequence():
    frame = torch.tensor([[0, 1, 2, -1], [0, 1, 2, -1]])
    mask = torch.tensor([[True] * 4, [True, True, False, True]])
    return VisualSequence(embeddings=torch.randn(2, 4, 6), mask=mask, frame=frame, blocks=(("fast", 3), ("slow", 1)))


def test_nothing_is_done_by_default():
    given = sequence()
    assert torch.equal(blend(given, BlendConfig(), torch.randn(20, 6)).embeddings, given.embeddings)


def test_tokens_are_scaled_to_one_size():
    out = blend(sequence(), BlendConfig(rms=0.3), torch.randn(20, 6)).embeddings
    torch.testing.assert_close(out.square().mean(-1).sqrt(), torch.full((2, 4), 0.3))


def test_a_one_frame_token_carries_the_time_token_of_its_instant():
    given, words, ids = sequence(), torch.randn(20, 6), torch.arange(10, 15)
    added = blend(given, BlendConfig(time_anchor=2.0), words[ids]).embeddings - given.embeddings
    wanted = 2 * words[torch.tensor([10, 12, 14])]
    torch.testing.assert_close(added[0, :3], wanted)
    torch.testing.assert_close(added[0, 3], torch.zeros(6))
    torch.testing.assert_close(added[1, :2], 2 * words[torch.tensor([10, 14])])  # the shorter video ends at frame 1
