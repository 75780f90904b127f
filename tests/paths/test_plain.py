import torch

from mmllm import registry
from mmllm.tokens import VisualTokens


def test_all_tokens_are_read_frame_by_frame_with_their_place():
    tokens = VisualTokens(features=torch.randn(2, 3, 6, 5), grid=(2, 3))
    path = registry.build("path", "plain")
    sequence = path(tokens)
    assert torch.equal(sequence.embeddings, tokens.features.flatten(1, 2))
    assert sequence.blocks == tuple(path.token_counts(3, (2, 3), 6).items()) == (("frames", 18),)
    assert sequence.frame[0].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert sequence.place[1].tolist() == list(range(6)) * 3
    kept = path(tokens.take(torch.tensor([1, 4]).expand(2, 3, 2)))
    assert kept.place[0].tolist() == [1, 4] * 3
    one_dimensional = path(VisualTokens(features=torch.randn(1, 2, 4, 5), grid=None))
    assert one_dimensional.grid is None
