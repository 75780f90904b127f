import torch

from mmllm.runtime.fingerprint import fingerprint
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.rendering import render
from mmllm.train.building import build_model
from mmllm.train.features import FeatureCache
from mmllm.train.model_config import ModelConfig


def test_features_equal_the_encoders_output_and_are_computed_once(tmp_path):
    render(tmp_path, SyntheticConfig(train_videos=2, val_videos=0, min_duration_s=8), workers=1)
    videos = sorted((tmp_path / "videos").glob("*.mp4"))
    model, processor = build_model(ModelConfig(num_frames=6, reducers=("fastervlm:keep=4",)))
    model.eval()
    cache = FeatureCache(tmp_path / "features", model, processor)
    (tmp_path / "broken.mp4").write_text("not a video")
    failed = cache.fill([*videos, tmp_path / "broken.mp4", tmp_path / "missing.mp4"], workers=0)
    assert sorted(path.name for path in failed) == ["broken.mp4", "missing.mp4"]
    cached = cache.load(videos[0])
    inputs = processor.media_inputs("video", [videos[0]])
    expected = model.encode(inputs.pixels)
    torch.testing.assert_close(cached.features.float(), expected.features, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(cached.scores["cls_attention"], expected.scores["cls_attention"])
    assert torch.equal(cached.times_s, inputs.times_s)
    assert cached.lengths_s == inputs.lengths_s
    written = cache.path(videos[0]).stat().st_mtime_ns
    cache.fill(videos, workers=0)
    assert cache.path(videos[0]).stat().st_mtime_ns == written


def test_batch_norms_see_frames_as_they_do_in_a_model_that_is_asked(tmp_path, short_clip):
    encoder = "timm:name=tf_efficientnet_lite0,image_size=32"
    model, processor = build_model(ModelConfig(num_frames=4, encoder=encoder, visual_tokenizer="linear"))
    norms = [part for part in model.encoder.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    for norm in norms:
        norm.train()
    before = fingerprint(model.encoder)
    cache = FeatureCache(tmp_path, model, processor)
    cache.fill([short_clip], workers=0)
    assert model.training
    assert fingerprint(model.encoder) == before
    with torch.no_grad():
        expected = model.eval().encode(processor.media_inputs("video", [short_clip]).pixels)
    torch.testing.assert_close(cache.load(short_clip).features.float(), expected.features, rtol=2e-3, atol=2e-3)


def test_another_encoder_or_another_sampling_has_another_cache(tmp_path):
    def folder(config, seed=0):
        return FeatureCache(tmp_path, *build_model(config, seed)).folder

    base = folder(ModelConfig(num_frames=6))
    assert base == folder(ModelConfig(num_frames=6))
    chunked = [ModelConfig(encoder=f"timm:name=tf_efficientnet_lite0,image_size=32,chunk={count}") for count in (1, 8)]
    assert len({folder(config) for config in chunked}) == 1
    others = [
        folder(ModelConfig(num_frames=7)),
        folder(ModelConfig(num_frames=6), seed=1),
        folder(ModelConfig(num_frames=6, encoder="tiny:step=2")),
        folder(ModelConfig(num_frames=6, reducers=("fastervlm:keep=4",))),
    ]
    assert len({base, *others}) == 5
