"""A long video, encoded in pieces: the same numbers as in one call, and few frames in memory."""

import copy
import sys

import numpy as np
import pytest
import torch

from benchmarks.memory import peak_memory
from mmllm import registry
from mmllm.inference.answering import VideoQA
from mmllm.inference.piecewise import PICTURES, PiecewiseEncoding
from mmllm.tokens import VideoClip
from mmllm.video.errors import VideoTimeout
from mmllm.video.opening import VideoLimits, open_video

FRAMES = 150


@pytest.fixture(scope="module")
def long_clip():
    """150 frames in memory, each with its own colours."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, 64, 64, 3), dtype=np.uint8)
    return VideoClip(frames=frames, times_s=np.arange(FRAMES) / 2.0, duration_s=FRAMES / 2.0)


def in_pieces(qa, video, **limits):
    return qa.encode_fed(lambda sink: qa.processor.load(video, sink=sink, **limits), whole=8)


def assert_same(pieces, whole):
    for placeholder, sequence in whole.sequences.items():
        ours = pieces.sequences[placeholder]
        assert torch.equal(ours.embeddings, sequence.embeddings)
        assert torch.equal(ours.mask, sequence.mask)
        assert torch.equal(ours.frame, sequence.frame)
        assert ours.blocks == sequence.blocks
        assert (ours.frame_text is None) == (sequence.frame_text is None)
    assert pieces.token_counts == whole.token_counts
    assert (pieces.ranking is None) == (whole.ranking is None)
    if whole.ranking is not None:
        assert pieces.ranking[0] == whole.ranking[0]
        np.testing.assert_array_equal(pieces.ranking[1], whole.ranking[1])
    if whole.kept is not None:
        np.testing.assert_array_equal(pieces.kept, whole.kept)


@pytest.mark.parametrize(
    "reducers",
    [
        [],
        ["fastervlm:keep=4"],
        ["hired:ratio=0.3"],
        ["pool"],
        ["uniform:keep=3"],
        ["random:keep=3"],
        ["fastervlm:total=400"],
        ["video_budget:ratio=0.2"],
        ["pool", "fastv:layer=1,ratio=0.5"],
    ],
)
def test_pieces_give_the_numbers_of_one_call_to_the_last_bit(untrained_qa, long_clip, reducers):
    qa = untrained_qa.with_stages(reducers)
    whole, pieces = qa.encode_video(long_clip), in_pieces(qa, long_clip)
    assert whole.long is None
    assert len(pieces.clip) == PICTURES
    assert_same(pieces, whole)
    question = "When does the red circle spin?"
    assert qa.ask(pieces, question) == qa.ask(whole, question)


def test_tokens_of_a_frame_reducer_are_never_held_together(untrained_qa, long_clip):
    kept = in_pieces(untrained_qa.with_stages(["fastervlm:keep=4"]), long_clip)
    assert kept.tokens is None
    assert kept.long.reduced.shape[1:3] == (FRAMES, 4)
    held = in_pieces(untrained_qa.with_stages(["video_budget:ratio=0.2"]), long_clip)
    assert held.long.reduced is None
    assert held.tokens.shape[1:3] == (FRAMES, 16)


def test_a_file_is_sampled_as_without_pieces(untrained_qa, short_clip):
    whole = untrained_qa.encode_video(short_clip, num_frames=60)  # more than the file has
    pieces = in_pieces(untrained_qa, short_clip, num_frames=60)
    assert_same(pieces, whole)
    np.testing.assert_array_equal(pieces.times_s, whole.times_s)
    np.testing.assert_array_equal(pieces.clip.frames, whole.clip.frames)
    assert pieces.clip.metadata == whole.clip.metadata
    by_rate = in_pieces(untrained_qa, short_clip, fps=3.0)
    assert_same(by_rate, untrained_qa.encode_video(short_clip, fps=3.0))


def test_other_stages_read_the_video_again_only_where_they_need_its_frames(untrained_qa, short_clip):
    plain = in_pieces(untrained_qa, short_clip, num_frames=20)
    other = untrained_qa.with_stages(["uniform:keep=4"])
    assert not other.needs_frames(plain)
    again = other.encode_again(plain)
    assert set(again.seconds) == {"reduce"}
    assert_same(again, other.encode_video(short_clip, num_frames=20))
    ranked = untrained_qa.with_stages(["fastervlm:keep=4"])
    assert ranked.needs_frames(plain)
    assert_same(ranked.encode_again(plain), ranked.encode_video(short_clip, num_frames=20))
    assert_same(untrained_qa.encode_again(ranked.encode_again(plain)), untrained_qa.encode_video(plain.clip))


def test_a_few_frames_are_in_memory_at_a_time(untrained_qa, short_clip):
    encoding = PiecewiseEncoding(untrained_qa.model, untrained_qa.processor, whole=8)
    most = 0
    put = encoding.put

    def counted(frame):
        nonlocal most
        finished = put(frame)
        most = max(most, len(encoding._waiting))
        return finished

    encoding.put = counted
    with encoding:
        clip = untrained_qa.processor.load(short_clip, num_frames=400, sink=encoding)
        shown, tokens, _ = encoding.finish(clip, lambda sink: clip)
    assert clip.frames.shape == (400, 0, 0, 3)
    assert len(shown) == PICTURES
    assert tokens.shape[1] == 400
    assert most <= encoding.piece + 2 * encoding.reach


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_memory_does_not_grow_with_the_length(untrained_qa):
    """Six times as many frames take no more than their tokens; as bytes they are 50 MB, normalised 200."""

    def extra_mb(count):
        def feed(sink):
            assert sink.takes(count)
            for number in range(count):
                sink.put(np.full((64, 64, 3), number % 256, dtype=np.uint8))
            frames = np.empty((count, 0, 0, 3), dtype=np.uint8)
            return VideoClip(frames=frames, times_s=np.arange(count) * 1.0, duration_s=count * 1.0)

        encoded, memory = peak_memory(lambda: untrained_qa.encode_fed(feed))
        assert len(encoded.times_s) == count
        return memory.extra / 1e6

    extra_mb(600)  # buffers that are made once
    ten_minutes, hour = extra_mb(600), extra_mb(3600)
    tokens = untrained_qa.model.encoder.tokens_per_frame * 3600
    kept_mb = tokens * (untrained_qa.model.encoder.width * 4 + 9) / 1e6
    assert hour < ten_minutes + 4 * kept_mb + 10


def test_a_short_video_stays_whole(untrained_qa, short_clip):
    encoded = untrained_qa.encode_video(short_clip)
    assert encoded.clip.frames.shape == (12, 64, 64, 3)
    assert encoded.long is None


@pytest.mark.parametrize("encoder", ["tiny", "clip"])
def test_frames_that_the_path_does_not_read_are_left_out(make_model, long_clip, untrained_qa, monkeypatch, encoder):
    model = make_model(encoder={"name": encoder, **ENCODERS[encoder]}, path="plain")

    def every_third(path, frame_mask, text_tokens=None):
        return frame_mask & (torch.arange(frame_mask.shape[1]) % 3 == 0) if frame_mask.all() else frame_mask

    monkeypatch.setattr(type(model.path), "frames_read", every_third)
    processor = copy.copy(untrained_qa.processor)
    processor.frame_transform = model.encoder.config.frames
    qa = VideoQA(model, processor)
    pieces = in_pieces(qa, long_clip)
    assert pieces.token_counts["encoder"] == FRAMES // 3 * model.encoder.tokens_per_frame
    assert_same(pieces, qa.encode_video(long_clip))


class Recorder:
    """A sink that takes everything; each frame is a piece if `pieces`."""

    def __init__(self, pieces=True):
        self.pieces, self.frames, self.starts = pieces, [], []

    def takes(self, count):
        self.starts.append(count)
        self.frames.clear()
        return True

    def put(self, frame):
        self.frames.append(frame)
        return self.pieces


def test_a_sink_gets_the_frames_of_a_clip_in_order(short_clip):
    with open_video(short_clip) as video:
        for count in (1, 7, len(video), len(video) + 9):
            sink = Recorder()
            clip, whole = video.sample_uniform(count, sink=sink), video.sample_uniform(count)
            assert sink.starts == [count]
            np.testing.assert_array_equal(np.stack(sink.frames), whole.frames)
            np.testing.assert_array_equal(clip.times_s, whole.times_s)
            np.testing.assert_array_equal(clip.valid, whole.valid)
            assert clip.frames.nbytes == 0


def test_a_limit_of_time_holds_for_each_piece(short_clip, monkeypatch):
    import time

    clock = {"now": 0.0}
    monkeypatch.setattr(time, "thread_time", lambda: clock["now"])
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])

    class Slow(Recorder):
        def put(self, frame):
            clock["now"] += 4.0
            return super().put(frame)

    with open_video(short_clip, limits=VideoLimits(cpu_s=10.0)) as video:
        assert len(video.sample_uniform(20, sink=Slow())) == 20
        with pytest.raises(VideoTimeout, match="10 processor seconds"):
            video.sample_uniform(20, sink=Slow(pieces=False))


def test_interrupting_leaves_nothing_open(untrained_qa, short_clip):
    opened = []

    def feed(sink):
        def interrupted(frame):
            opened.append(frame)
            if len(opened) == 30:
                raise KeyboardInterrupt
            return False

        sink.put = interrupted
        return untrained_qa.processor.load(short_clip, num_frames=40, sink=sink)

    with pytest.raises(KeyboardInterrupt):
        untrained_qa.encode_fed(feed, whole=8, progress=True)
    assert untrained_qa.encode_video(short_clip, num_frames=4).clip.frames.shape[0] == 4


def test_progress_is_told(untrained_qa, long_clip, capsys):
    untrained_qa.encode_fed(lambda sink: untrained_qa.processor.load(long_clip, sink=sink), whole=8, progress=True)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("watch the video: 15/150 frames")
    assert lines[-1].startswith("watch the video: 150/150 frames")


FLEXTOK = {
    "registers": 8,
    "tokens": 4,
    "latents": "pixels",
    "stride": 1,
    "patch_size": 8,
    "levels": [4, 4],
    "id_width": 8,
}
SMALL = {"width": 16, "layers": 2, "heads": 2}
ENCODERS = {
    "clip": {"image_size": 32, "patch_size": 16, "mlp_width": 32, "chunk": 5, **SMALL},
    "convnext": {"image_size": 64, "depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32], "chunk": 3},
    "dinov2": {"image_size": 24, "patch_size": 4, "mlp_width": 128, "gated": False, "chunk": 7, **SMALL},
    "fastvithd": {"image_size": 128, "layers": [1, 2, 1, 1, 1], "dims": [4, 8, 16, 32, 64], "chunk": 8},
    "flextok": {"image_size": 32, "width": 16, "layers": 2, "head_width": 8, "chunk": 6, **FLEXTOK},
    "siglip": {"image_size": 26, "patch_size": 4, "mlp_width": 48, "chunk": 9, **SMALL},
    "textok": {"image_size": 32, "tokens": 4, "reads_text": False, "chunk": 4, **SMALL},
    "timm": {"model": "resnet18", "image_size": 64, "stage": [1, -1], "chunk": 5},
    "tiny": {"image_size": 64, "width": 16, "heads": 2, "channels": [8, 8, 8], "step": 3},
}
ENCODERS["towers"] = {
    "first": {"name": "siglip", **ENCODERS["siglip"]},
    "second": {"name": "tiny", **ENCODERS["tiny"]},
    "grid": 4,
}


def test_every_encoder_is_tested():
    ours = {name for name, part in registry.parts("encoder").items() if part.cls.__module__.startswith("mmllm.")}
    assert set(ENCODERS) == ours


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_gives_in_pieces_what_it_gives_in_one_call(make_model, long_clip, untrained_qa, name):
    model = make_model(encoder={"name": name, **ENCODERS[name]}, path="plain")
    processor = copy.copy(untrained_qa.processor)
    processor.frame_transform = model.encoder.config.frames
    qa = VideoQA(model, processor)
    whole, pieces = qa.encode_video(long_clip), in_pieces(qa, long_clip)
    assert torch.equal(pieces.tokens.features, whole.tokens.features)
    assert torch.equal(pieces.tokens.index, whole.tokens.index)
    assert_same(pieces, whole)
