"""Long videos in pieces on paths that read the question, choose frames, hear, or keep tokens beside the sequence."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmllm.inference.answering import VideoQA
from mmllm.inference.chain_config import ChainConfig
from mmllm.synthetic.clips import SyntheticConfig, clip
from mmllm.synthetic.drawing import draw_pieces
from mmllm.synthetic.rendering import encode
from mmllm.synthetic.sounds import soundtrack
from mmllm.tokens import VideoClip
from mmllm.train.building import build_model
from mmllm.train.recipes import DecoderConfig, ModelConfig, recipe

QUESTION = "When is the red square on screen?"
ENCODER = "tiny:width=16,heads=2,channels=8+8+8"
FRAMES = 150


@pytest.fixture(scope="module")
def long_clip():
    """150 frames in memory, in scenes of ten."""
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (FRAMES // 10, 64, 64, 3), dtype=np.uint8).repeat(10, 0)
    frames = np.clip(scenes + rng.integers(-9, 10, scenes.shape), 0, 255).astype(np.uint8)
    return VideoClip(frames=frames, times_s=np.arange(FRAMES) / 1.0, duration_s=float(FRAMES))


def in_pieces(qa, video, **options):
    return qa.encode_fed(lambda sink: qa.processor.load(video, sink=sink, **options), whole=8)


def assert_same(pieces, whole):
    (ours,), (expected,) = pieces.sequences.values(), whole.sequences.values()
    for name in ("embeddings", "mask", "frame", "place", "cross_attention_states", "cross_attention_mask"):
        first, second = getattr(ours, name), getattr(expected, name)
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second), name
    assert pieces.token_counts == whole.token_counts


@pytest.mark.parametrize("reducers", [[], ["uniform:keep=6"], ["video_budget:ratio=0.5,least=6"]])
@pytest.mark.parametrize("frames", ["all", "some"])
def test_tdc_finds_the_same_scenes_and_tokens(long_clip, reducers, frames):
    model = replace(recipe("tdc-tiny").model, encoder=ENCODER, decoder=DecoderConfig(width=32, layers=2, mlp_width=64))
    path = model.path if frames == "all" else f"{model.path},max_frames=40"
    qa = VideoQA(*build_model(replace(model, path=path), seed=0), max_new_tokens=4).with_stages(reducers)
    whole, pieces = qa.encode_video(long_clip), in_pieces(qa, long_clip)
    assert whole.sequences == pieces.sequences == {}
    assert (pieces.token_counts == {}) == (whole.token_counts == {})
    assert_same(qa.for_question(pieces, QUESTION), qa.for_question(whole, QUESTION))
    assert qa.ask(pieces, QUESTION) == qa.ask(whole, QUESTION)
    chain = ChainConfig(parts=3, max_new_tokens=4)
    assert qa.ask(pieces, QUESTION, chain=chain) == qa.ask(whole, QUESTION, chain=chain)


def test_the_hybrid_keeps_the_same_tokens_beside_the_sequence(long_clip):
    config = ModelConfig(
        encoder=ENCODER,
        path="slowfast-hybrid",
        decoder_stages=["slow-cross-attention:every=1,min_layer=0"],
        decoder=DecoderConfig(width=32, layers=2, mlp_width=64),
    )
    qa = VideoQA(*build_model(config, seed=0), max_new_tokens=4)
    whole, pieces = qa.encode_video(long_clip), in_pieces(qa, long_clip)
    assert_same(pieces, whole)
    assert qa.ask(pieces, QUESTION, chain=2) == qa.ask(whole, QUESTION, chain=2)


def test_sound_is_heard_as_of_a_short_video_and_then_dropped(tmp_path):
    config = ModelConfig(
        encoder=ENCODER,
        audio_encoder="tiny:width=8,bands=16",
        audio_projector="linear",
        path="slowfast:image_frames=12",
        decoder=DecoderConfig(width=32, layers=2, mlp_width=64),
    )
    qa = VideoQA(*build_model(config, seed=0), max_new_tokens=4)
    clips = SyntheticConfig(seed=5, min_duration_s=10.0, max_duration_s=10.0, families=("sound",))
    world, _ = clip(clips, "val", 0)
    encode(draw_pieces(world, 64), 64, 5, tmp_path / "heard.mp4", crf=30, sound=soundtrack(world))
    for reducers in ([], ["fastervlm:keep=4"]):
        other = qa.with_stages(reducers)
        whole = other.encode_video(tmp_path / "heard.mp4", num_frames=40)
        pieces = in_pieces(other, tmp_path / "heard.mp4", num_frames=40)
        assert_same(pieces, whole)
        assert (pieces.tokens or pieces.long.reduced).audio.shape[1] == 40
        assert pieces.clip.waveform is None
        assert other.ask(pieces, QUESTION, chain=2) == other.ask(whole, QUESTION, chain=2)
