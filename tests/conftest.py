"""Small models that many tests share."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch
from extras import pytest_pycollect_makemodule, skip_without_extra
from long_tests import skip_long_ones

__all__ = ["pytest_pycollect_makemodule"]  # a hook of pytest

# `default` would be the model that speaks where its packages are installed
os.environ.setdefault("MMLLM_DEFAULT_MODEL", "default-small")
# a machine that is busy with something else must not fail a property
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips single tests."""
    skip_without_extra(items)
    skip_long_ones(items)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def decoder_configs():
    """Name -> a function that makes the configuration of a tiny decoder of that family."""
    from transformers import Gemma2Config, GemmaConfig, LlamaConfig, Qwen2Config

    def make(family, **fields):
        return family(
            **{
                "vocab_size": 120,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "max_position_embeddings": 512,
                "initializer_range": 0.3,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                **fields,
            }
        )

    families = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gemma": GemmaConfig, "gemma2": Gemma2Config}
    return {name: lambda family=family, **fields: make(family, **fields) for name, family in families.items()}


TINY_ENCODER = "tiny:width=16,heads=2,channels=8+8+8"


@pytest.fixture(scope="session")
def make_model(decoder_configs):
    """Makes a tiny model in evaluation mode; keyword arguments go to `MmllmConfig`."""
    from mmllm.config import MmllmConfig
    from mmllm.model import MmllmForConditionalGeneration

    def make(family: str = "llama", decoder: dict | None = None, **fields):
        torch.manual_seed(0)
        config = {
            "text_config": decoder_configs[family](**(decoder or {})),
            "encoder": TINY_ENCODER,
            "path": "slowfast:image_frames=4",
            "num_time_tokens": 10,
            "time_token_ids": list(range(100, 110)),
            "video_token_id": 200,
            "image_token_id": 201,
        }
        return MmllmForConditionalGeneration(MmllmConfig(**{**config, **fields})).eval()

    return make


@pytest.fixture(scope="session")
def untrained_qa():
    """A tiny model with a processor, random weights; it says anything, but always the same."""
    from mmllm.inference.answering import VideoQA
    from mmllm.train.building import build_model
    from mmllm.train.recipes import DecoderConfig, ModelConfig

    config = ModelConfig(
        encoder=TINY_ENCODER,
        path="slowfast:image_frames=12",
        decoder=DecoderConfig(width=32, layers=2, mlp_width=64),
        num_frames=12,
    )
    qa = VideoQA(*build_model(config, seed=0), max_new_tokens=12)
    yield qa
    assert qa.max_new_tokens == 12, "a test, or what it called, has changed the model that all tests share"


@pytest.fixture(scope="session")
def short_clip(tmp_path_factory):
    """Path of a synthetic clip of 8 seconds."""
    from mmllm.synthetic.clips import SyntheticConfig, clip, video_id
    from mmllm.synthetic.drawing import draw_pieces
    from mmllm.synthetic.rendering import encode

    config = SyntheticConfig(seed=3, min_duration_s=8.0, max_duration_s=8.0)
    world, _ = clip(config, "val", 0)
    path = tmp_path_factory.mktemp("clips") / f"{video_id(config, 'val', 0)}.mp4"
    encode(draw_pieces(world, config.size), config.size, config.fps, path, crf=config.crf)
    return path


@pytest.fixture(scope="session")
def heard_clip(tmp_path_factory):
    """Path of a synthetic clip of ten seconds with sound."""
    from mmllm.synthetic.clips import SyntheticConfig, clip
    from mmllm.synthetic.drawing import draw_pieces
    from mmllm.synthetic.rendering import encode
    from mmllm.synthetic.sounds import soundtrack

    config = SyntheticConfig(seed=5, min_duration_s=10.0, max_duration_s=10.0, families=("sound",))
    world, _ = clip(config, "val", 0)
    path = tmp_path_factory.mktemp("heard") / "heard.mp4"
    encode(draw_pieces(world, 64), 64, 5, path, crf=30, sound=soundtrack(world))
    return path


@pytest.fixture(scope="session")
def bad_videos(tmp_path_factory, short_clip):
    """Name -> path of files that are no usable videos in spite of their names, and of two good ones."""
    import shutil
    import struct

    import av

    folder = tmp_path_factory.mktemp("bad")
    whole = short_clip.read_bytes()
    contents = {
        "text.mp4": b"this is not a video\n" * 50,
        "empty.mp4": b"",
        "cut.mp4": whole[: len(whole) // 3],
        "list.mp4": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    }
    for name, content in contents.items():
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
