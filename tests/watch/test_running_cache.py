"""The LLM's cache of a stream: what it holds before and after frames have left it, and which models can have one."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from mmllm.errors import ConfigError
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.llm.cache import CACHE
from mmllm.modeling.placeholders import place
from mmllm.times.answers import Span
from mmllm.tokens import VideoClip
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig
from mmllm.watch.choosing import memory_of
from mmllm.watch.config import WatchConfig
from mmllm.watch.running_cache import RunningCache
from tests.support.own_clips import TINY

FRAMES = np.random.default_rng(0).integers(0, 255, (14, 64, 64, 3), dtype=np.uint8)


def asking(**changes):
    decoder = DecoderConfig(width=64, layers=2, mlp_width=128)
    config = replace(TINY, **{"path": "plain", "time": "interleaved", "decoder": decoder, **changes})
    return VideoQA(*build_model(config, seed=0), max_new_tokens=6)


@pytest.fixture(scope="module")
def qa():
    return asking()


def fed(qa, count, window, start_s=0.0):
    memory = RunningCache(qa, WatchConfig(window_s=window / 2))
    for number in range(count):
        memory.add(FRAMES[number % len(FRAMES)], start_s + number / 2)
    return memory


def clip_of(count):
    return VideoClip(frames=FRAMES[:count], times_s=np.arange(count) / 2, duration_s=count / 2)


def test_a_window_that_holds_everything_is_the_prefix_of_the_clip(qa):
    memory = fed(qa, 9, 10)  # the LLM has read 8 of them: this encoder compares a frame with the next one
    clip = clip_of(9)
    whole = qa.encode_video(clip)
    sequence = qa.part_of(whole, slice(0, 8), memory.seen).sequences
    prompt = qa.prompt("When?", 4.5)
    given = prompt.input_ids[: int(qa.model.is_placeholder(prompt.input_ids).nonzero().max()) + 1]
    prefix = qa.model.read_prefix(given, sequence)
    assert memory.keys == len(prefix.ids)
    for own, true in zip(memory.cache.layers, prefix.layers, strict=True):
        torch.testing.assert_close(own.keys, true.keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.values, true.values, rtol=1e-4, atol=1e-5)


def test_a_frame_leaves_as_a_whole_and_positions_count_inside_the_cache(qa):
    memory = fed(qa, 12, 4)
    assert list(memory._times_s) == [3.5, 4.0, 4.5, 5.0]
    assert memory.keys == memory.sinks + sum(memory._lengths)
    # unrotated, every key of the last layer's first neighbour is found at its slot: turning back gives raw keys
    again = fed(qa, 12, 4)
    rotary, layer = again.rotary, again.cache.layers[0]
    slots = torch.arange(again.keys)[None, None]
    raw = rotary.turned(layer.keys, -slots.expand(1, layer.keys.shape[1], -1))
    longer = fed(qa, 12, 12).cache.layers[0].keys  # nothing has left here: keys stand at their first positions
    whole = rotary.turned(longer, -torch.arange(longer.shape[2])[None, None].expand(1, longer.shape[1], -1))
    kept = raw.shape[2] - again.sinks
    # layer 0 reads embeddings only, so its raw keys are those of the whole stream
    torch.testing.assert_close(raw[:, :, : again.sinks], whole[:, :, : again.sinks], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(raw[:, :, -kept:], whole[:, :, -kept:], rtol=1e-4, atol=1e-4)


def test_each_pass_sees_sinks_and_whole_frames_only(qa):
    """Brute force: every pass is done anew with a cache whose keys are rotated from their raw form."""
    memory = fed(qa, 9, 4)
    follow = fed(qa, 8, 4)
    decoder = qa.model.language_model.base_model
    raw = [
        follow.rotary.turned(layer.keys, -torch.arange(follow.keys)[None, None].expand(1, layer.keys.shape[1], -1))
        for layer in follow.cache.layers
    ]
    follow._forget_oldest()
    begin, gone = follow.sinks, raw[0].shape[2] - follow.keys
    cache = DynamicCache()
    for number, keys in enumerate(raw):
        left = torch.cat([keys[:, :, :begin], keys[:, :, begin + gone :]], dim=2)
        turned = follow.rotary.turned(left, torch.arange(left.shape[2])[None, None].expand(1, left.shape[1], -1))
        cache.update(turned, follow.cache.layers[number].values, number)
    whole = qa.encode_video(VideoClip(frames=FRAMES[:9], times_s=np.arange(9) / 2, duration_s=4.5))
    video = qa.part_of(whole, slice(7, 8), Span(3.5, 4.0))
    ((word, sequence),) = video.sequences.items()
    text = qa.processor.frame_text([[3.5]])
    placed = place(
        torch.tensor([[word]]), torch.ones(1, 1, dtype=torch.long), {word: replace(sequence, frame_text=text)}
    )
    embeddings = qa.model.embed(placed.input_ids, placed.visual)
    position = torch.arange(follow.keys, follow.keys + embeddings.shape[1])[None]
    with torch.no_grad():
        decoder(inputs_embeds=embeddings, position_ids=position, **{CACHE: cache, "use_cache": True})
    for own, true in zip(memory.cache.layers, cache.layers, strict=True):
        torch.testing.assert_close(own.keys, true.keys, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(own.values, true.values, rtol=1e-3, atol=1e-4)


def test_questions_leave_no_trace_and_are_the_same_in_one_batch(qa):
    memory = fed(qa, 10, 4)
    before = [layer.keys.clone() for layer in memory.cache.layers]
    questions = ["When does the red circle spin?", "When is the blue square on screen?"]
    together = memory.ask(questions)
    assert together == [memory.ask([question])[0] for question in questions]
    assert memory.keys == before[0].shape[2]
    assert all(torch.equal(own, layer.keys) for own, layer in zip(before, memory.cache.layers, strict=True))


def test_memory_is_constant_over_many_windows(qa):
    memory = RunningCache(qa, WatchConfig(window_s=2.0))
    sizes = []
    for number in range(60):
        memory.add(FRAMES[number % len(FRAMES)], 1000 + number / 2)  # times of equal length
        sizes.append(memory.keys)
    assert len(set(sizes[8:])) == 1


def test_behind_a_gap_the_cache_stays_and_neighbours_do_not(qa):
    memory = fed(qa, 6, 10)
    keys = memory.keys
    memory.clear()
    memory.add(FRAMES[0], 100.0)
    assert memory.keys == keys
    memory.add(FRAMES[1], 100.5)
    assert memory.keys > keys
    assert (memory.seen.start_s, memory.seen.end_s) == (0.0, 100.0)


def refused(said, make):
    with pytest.raises(ConfigError, match=said):
        memory_of(make(), WatchConfig(memory="cache"))


@pytest.mark.parametrize(
    ("said", "make"),
    [
        ("shares of a duration", partial(VideoQA.from_pretrained, DEFAULT)),
        ("time of each frame as text", partial(asking, time="text")),
        ("the path plain", partial(asking, path="slowfast:image_frames=8")),
        ("does not fit", lambda: asking().with_stages(reducers=["fastv:layer=1,ratio=0.5"])),
        ("does not fit", lambda: asking().with_context("h2o")),
        ("frame by frame", lambda: asking().with_stages(reducers=["video_budget:total=16,least=0"])),
    ],
)
def test_models_that_cannot_read_a_stream_so_are_refused_with_the_reason(said, make):
    refused(said, make)
    memory_of(make(), WatchConfig())  # the sliding window works with each of them


def test_a_window_that_does_not_fit_the_llm_is_refused(qa):
    memory = RunningCache(qa, WatchConfig(window_s=10_000.0))
    memory.add(FRAMES[0], 0.0)
    with pytest.raises(ConfigError, match="window of at most"):
        memory.add(FRAMES[1], 0.5)
