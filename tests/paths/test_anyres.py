"""The anyres path: a mosaic with row ends for images in tiles, frame by frame for videos."""

import pytest
import torch

from mmllm import registry
from mmllm.errors import InputError
from mmllm.paths.anyres import AnyresConfig, AnyresPath
from mmllm.paths.plain import PlainConfig, PlainPath
from mmllm.paths.slowfast import SlowFastConfig, SlowFastPath
from mmllm.preprocessing.mosaic import pack
from mmllm.tokens import Tiling, VisualTokens

TILINGS = (Tiling(rows=1, cols=2, height=30, width=90), Tiling(rows=2, cols=2, height=40, width=40))


def tokens():
    mask = torch.zeros(2, 5, 9, dtype=torch.bool)
    for image, tiling in enumerate(TILINGS):
        mask[image, : tiling.partitions] = True
    return VisualTokens(features=torch.randn(2, 5, 9, 4), grid=(3, 3), mask=mask, tiling=TILINGS)


def test_images_are_packed_with_the_learned_newline_and_know_where_each_token_is_from():
    path = registry.build("path", "anyres", width=4)
    images = tokens()
    sequence = path(images)
    features, mask = pack(images, newline=path.newline)
    assert torch.equal(sequence.embeddings, features)
    assert torch.equal(sequence.mask, mask)
    for image in range(2):
        for position in mask[image].nonzero().flatten().tolist():
            partition, place = int(sequence.frame[image, position]), int(sequence.place[image, position])
            expected = path.newline if partition < 0 else images.features[image, partition, place]
            assert torch.equal(sequence.embeddings[image, position], expected)
    ends = ((sequence.frame < 0) & mask).sum(1).tolist()
    assert ends == [3 - 2 * ((3 - 30 * 6 // 90) // 2), 6]


def test_without_newline_there_is_no_weight():
    path = AnyresPath(AnyresConfig(newline=False, unpad=False))
    assert not list(path.parameters())
    assert path(tokens()).mask.sum(1).tolist() == [27, 45]


def test_videos_are_read_as_the_plain_path_reads_them():
    video = VisualTokens(features=torch.randn(1, 3, 9, 4), grid=(3, 3))
    ours, plain = AnyresPath(AnyresConfig(), width=4)(video), PlainPath(PlainConfig())(video)
    assert torch.equal(ours.embeddings, plain.embeddings)
    assert ours.blocks == plain.blocks


def test_slowfast_refuses_tiles():
    with pytest.raises(InputError, match="anyres"):
        SlowFastPath(SlowFastConfig())(tokens())
