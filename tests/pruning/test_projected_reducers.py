"""Reducers behind the projector: where they stand, what is said of them, and what a video costs with them."""

import pytest
import torch

from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.inference.costs import stage_costs
from mmllm.train.building import build_model
from mmllm.train.model_config import ModelConfig

ENCODER = "clip:image_size=16,patch_size=4,width=16,layers=4,heads=2,mlp_width=32"


@pytest.fixture(scope="module")
def qa():
    return VideoQA(*build_model(ModelConfig(encoder=ENCODER, visual_tokenizer="mlp", path="plain", num_frames=6)))


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    from mmllm.synthetic.clips import SyntheticConfig
    from mmllm.synthetic.rendering import render

    folder = tmp_path_factory.mktemp("clips")
    render(folder, SyntheticConfig(train_videos=1, val_videos=1, size=32), workers=1)
    return next(folder.rglob("*.mp4"))


def test_it_sees_projected_features(qa, monkeypatch):
    model = qa.model.with_stages(reducers=["fastervlm:keep=8", "divprune:keep=3"])
    seen = []
    behind = model.reducers[1]
    monkeypatch.setattr(
        behind, "forward", lambda tokens: seen.append(tokens.shape) or type(behind).forward(behind, tokens)
    )
    tokens = model.encode(torch.randn(1, 4, 3, 16, 16), torch.ones(1, 4, dtype=torch.bool))
    sequence = model.arrange(tokens)
    assert seen == [(1, 4, 8, model.config.text_config.hidden_size)]
    assert int(sequence.mask.sum()) == 4 * 3


def test_the_order_of_the_list_is_the_order_of_the_work(qa):
    with pytest.raises(ConfigError, match=r"'fastervlm' acts before the projector.*list 'fastervlm' first"):
        qa.model.with_stages(reducers=["divprune:keep=3", "fastervlm:keep=8"])
    assert qa.model.with_stages(reducers=["divprune:keep=3", "fastv:layer=1"]).llm_stages


@pytest.mark.parametrize(
    "reducer",
    ["divprune:keep=4", "vidcom2:ratio=0.25", "flashvid:ratio=0.2", "holitom:ratio=0.2", "fastvid:ratio=0.2"],
)
def test_a_video_answers_with_it(qa, clip_file, reducer):
    whole = qa.encode_video(clip_file)
    reduced = qa.with_stages(reducers=[reducer])
    needs_scores = reducer.startswith(("flash", "fastvid"))
    encoded = reduced.encode_video(clip_file) if needs_scores else reduced.encode_again(whole)
    assert encoded.token_counts["reducers"] == int(encoded.kept.sum()) == encoded.token_counts["frames"]
    assert encoded.token_counts["reducers"] < whole.token_counts["reducers"] == 6 * 16
    assert reduced.ask(encoded, "When does the red circle spin?").raw is not None
    named = {"vidcom2": "vidcom2", "fastvid": "mean_attention"}.get(reducer.partition(":")[0])
    assert (encoded.ranking and encoded.ranking[0]) == named


def test_what_a_video_costs_is_counted_behind_the_projector():
    rows = stage_costs(ENCODER, ["fastervlm:keep=8", "vidcom2:ratio=0.25"], "mlp", "plain", 10)
    assert [(row["stage"], row["tokens"]) for row in rows] == [
        ("encoder clip", 160), ("reducer fastervlm", 80), ("tokenizer mlp", 80), ("reducer vidcom2", 20),
        ("path plain", 20),
    ]  # fmt: skip
