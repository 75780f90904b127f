"""An engine over the untrained model, and videos that a demo may be given."""

import os
import time

import pytest


@pytest.fixture(scope="session")
def demo_limits():
    from mmllm.app.limits import DemoLimits

    return DemoLimits(
        video_s=60.0, new_tokens=400, frames=40, kept_videos=6, upload_mb=2, all_uploads_mb=60, waiting=16
    )


@pytest.fixture
def engine(untrained_qa, demo_limits):
    from mmllm.app.engine import Engine

    return Engine(untrained_qa, demo_limits)


@pytest.fixture(scope="session")
def bad_videos(tmp_path_factory, short_clip):
    """Name -> path of a file that is no usable video though it is called one, and of two that are."""
    import shutil
    import struct

    import av

    folder = tmp_path_factory.mktemp("bad")
    whole = short_clip.read_bytes()
    made = {
        "text.mp4": b"this is not a video\n" * 50,
        "empty.mp4": b"",
        "cut.mp4": whole[: len(whole) // 3],
        "list.mp4": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 16000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(folder / "long.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width = stream.height = 32
        for _ in range(90):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode())
    # a canvas of 20,000 x 20,000 pixels in 40 bytes
    side = struct.pack("<HH", 20000, 20000)
    picture = b"\x2c\x00\x00\x00\x00" + side + b"\x00\x02\x02\x44\x01\x00\x3b"
    (folder / "huge.mp4").write_bytes(b"GIF89a" + side + b"\x80\x00\x00" + b"\x00\x00\x00\xff\xff\xff" + picture)
    shutil.copy(short_clip, folder / "good.jpg")
    shutil.copy(short_clip, folder / "mine.mp4")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def example(demo):
    """The first example clip of the running demo."""
    return next(iter(demo.handlers.examples.values()))


class Script:
    """What the model of the running demo says: words, then the end."""

    words = ("<t20>", "<t60>", "the", "red", "circle", "spins", ".")
    pause_s = 0.0

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, ids, scores):
        """Logits that leave only the next word, of ids B L that `generate` has so far."""
        time.sleep(self.pause_s)
        words = [*self.words, self.tokenizer.eos_token]
        said = ids.shape[1] - self.prompt
        scores[:] = -float("inf")
        scores[:, self.tokenizer.convert_tokens_to_ids(words[min(said, len(words) - 1)])] = 0.0
        return scores


@pytest.fixture(scope="session")
def script(untrained_qa):
    """Makes the model say what is written, through all of generation; it reads the video nevertheless."""
    from mmllm.answering import VideoQA

    script, generate = Script(untrained_qa.processor.tokenizer), VideoQA.generate

    def scripted(self, watched, input_ids, *given, **options):
        visual = sum(sequence.embeddings.shape[1] for sequence in watched.seen.values())
        script.prompt = input_ids.shape[1] - 1 + visual
        return generate(self, watched, input_ids, *given, **options, logits_processor=[script])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoQA, "generate", scripted)
        patch.setattr(untrained_qa, "max_new_tokens", 400)
        yield script


@pytest.fixture(scope="session")
def demo(untrained_qa, script, demo_limits, tmp_path_factory):
    """A running demo."""
    from mmllm.app.command import running

    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    with running(untrained_qa, "untrained", demo_limits) as up:
        yield up
    patch.undo()
    assert not up.folder.exists()


def pytest_collection_modifyitems(items):
    """The demo in a real browser takes minutes, so it is run on request: `make test-browser`."""
    if os.environ.get("MMLLM_BROWSER_TESTS"):
        return
    skip = pytest.mark.skip(reason="a real browser and whole demo processes: run `make test-browser`")
    for item in items:
        if item.path.parent.name == "app" and (item.path.name == "test_page.py" or "ends_cleanly" in item.name):
            item.add_marker(skip)
