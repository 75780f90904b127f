"""CLIP's text tower and its patches against transformers' own models."""

import pytest
import torch
from nearness import assert_near
from small_clip import PIECE, save_small_clip
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from mmllm.errors import CheckpointError, ConfigError
from mmllm.modeling.text_tower import ClipTextTower


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_small_clip(folder)
    return str(folder)


def test_a_short_text_is_one_piece(folder):
    ids = AutoTokenizer.from_pretrained(folder)("a dog?", return_tensors="pt").input_ids
    assert ids.shape[1] < PIECE
    expected = CLIPTextModelWithProjection.from_pretrained(folder).eval()(ids).text_embeds
    assert_near(ClipTextTower(folder).texts(ids[0]), expected)


def test_a_long_text_is_cut_into_pieces(folder):
    ids = AutoTokenizer.from_pretrained(folder)("when does the red circle spin?").input_ids
    pieces = [ids[first : first + PIECE] for first in range(0, len(ids), PIECE)]
    model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
    expected = []
    for piece in pieces:
        padding = PIECE - len(piece)
        given = {"input_ids": piece + [0] * padding, "attention_mask": [1] * len(piece) + [0] * padding}
        expected.append(model(**{name: torch.tensor([row]) for name, row in given.items()}).text_embeds[0])
    texts = ClipTextTower(folder).texts(torch.tensor(ids))
    assert len(texts) == len(pieces) == 3
    assert_near(texts, torch.stack(expected))


def test_patches_go_through_the_last_norm_and_the_projection(folder, tmp_path):
    model = save_small_clip(tmp_path)
    features = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    expected = model.visual_projection(model.vision_model.post_layernorm(features))
    assert_near(ClipTextTower(folder).patches(features), expected)
    half = ClipTextTower(folder).patches(features.bfloat16())
    assert half.dtype == torch.float32


def test_bad_input(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"patches of width 16, and the encoder's have 8"):
        ClipTextTower(folder).patches(torch.zeros(1, 8))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        ClipTextTower(str(tmp_path / "nowhere")).patches(torch.zeros(1, 8))
