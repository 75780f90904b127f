"""The stage that aligns a projector with words: its loss, what it learns, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from nearness import assert_near
from own_clips import TINY
from torch import nn

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.modeling.word_likeness import SHARPNESS
from mmllm.train.building import build_model
from mmllm.train.stages.word_alignment import WordAlignmentStage, WordAlignmentTraining, WordPointing, directions


def pointing(width=6, out=8, names=5):
    projector = registry.build("tokenizer", "mlp", in_width=width, out_width=out, grid=(2, 2))
    return WordPointing(projector, torch.randn(names, out), (2, 2), WordAlignmentTraining())


def test_the_loss_is_that_of_each_frame_and_name_by_hand():
    state = pointing()
    features, shown = torch.randn(3, 4, 6), torch.rand(3, 5) < 0.4
    words = state.words
    shown[1] = False
    among, alone = 0.0, 0.0
    for frame in range(3):
        tokens = [state.visual_tokenizer[2](nn.functional.gelu(state.visual_tokenizer[0](patch)))
                  for patch in features[frame]]  # fmt: skip
        cosines = [torch.stack([token @ word / (token.norm() * word.norm()) for token in tokens]) for word in words]
        scaled = [10.0 * (SHARPNESS * each).exp().mean().log() / SHARPNESS for each in cosines]
        for name in range(5):
            chance = torch.sigmoid(scaled[name] - 6.0)
            alone += -torch.log(chance if shown[frame, name] else 1 - chance) / 3
            if shown[frame, name]:
                share = scaled[name].exp() / sum(value.exp() for value in scaled)
                among += -torch.log(share) / shown[frame].sum() / shown.any(-1).sum()
    assert_near(state(features, shown)["loss"], among + 0.25 * alone)


def test_a_batch_that_shows_nothing_learns_that_nothing_is_there():
    state = pointing()
    loss = state(torch.randn(3, 4, 6), torch.zeros(3, 5, dtype=torch.bool))["loss"]
    loss.backward()
    assert loss > 0
    assert state.bias.grad > 0


def test_what_all_words_share_is_left_out():
    words = torch.randn(7, 9)
    assert_near(directions(words + 5.0), directions(words))
    assert_near(directions(words).norm(dim=-1), torch.ones(7))


def test_tokens_learn_to_point_at_what_is_shown():
    """Patches that say which of eight things they show, one thing a patch."""
    torch.manual_seed(0)
    state = pointing(width=8, out=16, names=8)
    optimizer = torch.optim.Adam(state.parameters(), lr=0.02)

    def frames():
        things = torch.randint(8, (64, 4))
        return nn.functional.one_hot(things, 8).float(), nn.functional.one_hot(things, 8).sum(1) > 0

    for _ in range(150):
        optimizer.zero_grad()
        state(*frames())["loss"].backward()
        optimizer.step()
    features, shown = frames()
    likeness = state.likeness(features)
    lowest_shown = likeness.masked_fill(~shown, 2).min(1).values
    highest_hidden = likeness.masked_fill(shown, -2).max(1).values
    assert (lowest_shown > highest_hidden).float().mean() > 0.9


def test_features_are_left_out_of_all_patches_of_a_frame_and_scores_stay():
    projector = registry.build("tokenizer", "mlp", in_width=40, out_width=8, grid=(2, 2))
    config = WordAlignmentTraining(feature_dropout=0.5)
    state = WordPointing(projector, torch.randn(5, 8), (2, 2), config, class_count=10)
    features = torch.rand(6, 4, 40) + 1
    thinned = state.thinned(features)
    assert torch.equal(thinned[..., 30:], features[..., 30:])
    left_out = thinned[..., :30] == 0
    assert torch.equal(left_out, left_out[:, :1].expand_as(left_out))
    assert 0.3 < left_out.float().mean() < 0.7
    assert not torch.equal(left_out[0], left_out[1])
    assert_near(thinned[..., :30][~left_out], 2 * features[..., :30][~left_out])
    assert torch.equal(state.eval().thinned(features), features)


def test_only_a_projector_that_reads_frames_alone_is_aligned():
    model, _ = build_model(TINY)
    stage = WordAlignmentStage(WordAlignmentTraining())
    stage.check(model)
    assert stage.part(model) is model.visual_tokenizer
    words = registry.build("tokenizer", "words:best=1,beside=none", in_width=5, out_width=4, class_count=5)
    marked = registry.build("tokenizer", "words:best=1,marks=1", in_width=9, out_width=4, class_count=5, grid=None)
    stage.check(SimpleNamespace(encoder_stage=None, encoder_reads_question=False, visual_tokenizer=marked))
    with pytest.raises(ConfigError, match=r"word_alignment trains a projector .*'words'"):
        stage.check(SimpleNamespace(encoder_stage=None, encoder_reads_question=False, visual_tokenizer=words))
    with pytest.raises(ConfigError, match="features that are kept"):
        stage.check(SimpleNamespace(encoder_stage=None, encoder_reads_question=True))


def test_bad_settings_are_refused():
    for field, value in (("first_scale", 0), ("sigmoid_weight", -1), ("feature_dropout", 1), ("feature_dropout", -0.1)):
        with pytest.raises(ConfigError, match=field):
            WordAlignmentTraining(**{field: value})
