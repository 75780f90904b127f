"""The bounded store of encoded videos."""

import numpy as np

from mmllm.app.shelf import Shelf
from mmllm.inference.answering import EncodedVideo
from mmllm.tokens import VideoClip


def encoded(kilobytes=3):
    frames = np.zeros((kilobytes, 1, 1000 // 3, 3), np.uint8)
    return EncodedVideo(clip=VideoClip(frames=frames, times_s=np.arange(kilobytes), duration_s=9.0), sequences={})


def test_the_least_recently_used_goes_first():
    shelf = Shelf(2, 10**9)
    for key in "ab":
        shelf.put(key, encoded())
    assert shelf.get("a") is not None
    shelf.put("c", encoded())
    assert shelf.get("b") is None
    assert shelf.get("a") is not None
    assert len(shelf) == 2


def test_bytes_are_bounded_and_shared_ones_count_once():
    video = encoded(4)
    shelf = Shelf(10, 6000)
    shelf.put("a", video)
    shelf.put("b", video)
    assert 4000 <= shelf.bytes < 4200
    shelf.put("c", encoded(3))
    assert shelf.bytes <= 6000
    shelf.put("d", encoded(8))  # larger than the whole shelf
    assert shelf.get("d") is None


def test_entries_are_found_by_part_of_their_key():
    shelf = Shelf(5, 10**9)
    first, second = encoded(), encoded()
    shelf.put(("x", 1), first)
    shelf.put(("x", 2), second)
    assert shelf.find(lambda key: key[0] == "x") is second
    assert shelf.find(lambda key: key[0] == "y") is None


def test_caches_of_the_llm_are_counted_and_go_before_videos():
    class Kept:
        nbytes = 4000

    first, second = encoded(3), encoded(3)
    shelf = Shelf(10, 11_000)
    shelf.put("a", first)
    shelf.put("b", second)
    held = shelf.bytes
    first.prefix.kept, second.prefix.kept = Kept(), Kept()  # after a question about each
    assert shelf.bytes == held + 8000
    shelf.fit()
    assert first.prefix.kept is None  # the least recently used one
    assert second.prefix.kept is not None
    assert shelf.bytes == held + 4000
    shelf.put("c", encoded(4))
    assert second.prefix.kept is None
    assert len(shelf) == 3
