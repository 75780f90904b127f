"""Models that an engine cannot run whole are refused by the name of what it cannot honour."""

import re

import pytest

from mmllm.engines.servable import require_servable
from mmllm.engines.visual_counts import VisualCounts
from mmllm.errors import ConfigError
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig

SMALL = {"decoder": DecoderConfig(width=32, layers=2, heads=2, mlp_width=64), "path": "plain", "time": "text"}
CLIP = "clip:image_size=28,patch_size=7,width=32,layers=2,heads=2,mlp_width=64"


def made(**fields):
    return build_model(ModelConfig(**{**SMALL, "num_frames": 6, **fields}), seed=0)


REFUSED = [
    ({"reducers": ["fastv:layer=1"]}, "fastv works inside the LLM"),
    ({"reducers": ["dart:layer=0"]}, "dart works inside the LLM"),
    ({"context": ["streaming"]}, "streaming works inside the LLM"),
    ({"path": "slowfast"}, "path 'slowfast' lays tokens out in its own way"),
    ({"path": "slowfast-hybrid", "decoder_stages": []}, "path 'slowfast-hybrid' lays tokens out"),
    ({"path": "tdc"}, "path 'tdc' lays tokens out"),
    ({"time": "tokens"}, "answers with time tokens"),
    ({"reducers": ["cdpruner:relevance=words,keep=3"]}, "cdpruner reads the question"),
    ({"audio_encoder": "tiny", "audio_projector": "linear"}, "audio_encoder 'tiny' hears"),
    ({"reducers": ["holitom"], "encoder": CLIP}, "reducer 'holitom' cannot tell from the shape"),
    ({"reducers": ["flashvid:score=cls_attention"], "encoder": CLIP}, "reducer 'flashvid' cannot tell from the shape"),
    ({"reducers": ["vidcom2:ratio=0.5,exact=false"]}, "reducer 'vidcom2' cannot tell from the shape"),
    ({"reducers": ["diffrate:keep=4"], "encoder": CLIP}, "reducer 'diffrate' cannot tell from the shape"),
    ({"reducers": ["video_budget:ratio=0.5", "pool:stride=2"]}, "reducer 'pool' stands behind one"),
    ({"reducers": ["video_budget:ratio=0.5"], "visual_tokenizer": "mqt:tokens=4"}, "'mqt' makes tokens of each frame"),
    ({"reducers": ["evs:ratio=0.5"], "time": "interleaved"}, "'interleaved' writes text before each frame"),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_an_engine_cannot_honour_is_named(fields, reason):
    model, processor = made(**fields)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        require_servable(model.config, processor)


def test_tiles_and_padding_are_named():
    model, processor = made()
    processor.pinpoints = [[64, 64]]
    with pytest.raises(ConfigError, match="cuts images into tiles"):
        require_servable(model.config, processor)
    processor.pinpoints, processor.frame_sizes = None, True
    with pytest.raises(ConfigError, match="leaves the padding of frames out"):
        require_servable(model.config, processor)


def test_a_reducer_that_does_not_fit_the_encoder_is_refused_as_everywhere():
    model, processor = made()
    model.config.reducers = ["fastvid:ratio=0.5"]
    with pytest.raises(ConfigError, match="ranks tokens by 'mean_attention', which encoder 'tiny' cannot give"):
        require_servable(model.config, processor)
    model.config.reducers = ["evs:ratio=0.5", "uniform:keep=4"]
    with pytest.raises(ConfigError, match="acts before the projector"):
        require_servable(model.config, processor)


def test_counts_of_what_is_served():
    model, processor = made(reducers=["uniform:keep=4", "evs:ratio=0.5"], num_frames=8)
    counts = require_servable(model.config, processor)
    assert counts.of_video(8) == 16
    assert counts.of_video(1) == counts.of_image() == 4  # the first frame stays whole
    model, processor = made(reducers=["pool:stride=2"], time="interleaved")
    tokens = model.encoder.tokens_per_frame
    assert require_servable(model.config, processor).of_video(3) == [tokens // 4] * 3


def test_an_encoder_of_images_has_its_own_count():
    model, _ = made()
    tokens = model.encoder.tokens_per_frame
    model.config.image_encoder = {"name": "tiny", "image_size": 2 * model.config.encoder["image_size"]}
    counts = VisualCounts(model.config)
    assert (counts.of_image(), counts.of_video(1)) == (4 * tokens, [tokens])
