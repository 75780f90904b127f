"""A running server with the untrained model, OpenAI's client, another clip and a picture."""

import httpx
import pytest
from running_server import served


@pytest.fixture(scope="session")
def limits():
    from mmllm.serving.limits import ServeLimits

    return ServeLimits(
        video_s=60.0, frames=40, upload_mb=2, all_uploads_mb=20, inline_mb=3, waiting=40, media=4, parts=20
    )


@pytest.fixture(scope="module")
def server(untrained_qa, limits):
    """A server of the model `tiny`."""
    with served({"tiny": untrained_qa}, limits) as ready:
        yield ready
    assert not ready.folder.exists()


@pytest.fixture(scope="module")
def client(server):
    """OpenAI's client."""
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install -e '.[dev]'")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def post(server):
    """Sends a JSON value to a path, and gives the answer."""

    def send(path, body, **options):
        return httpx.post(f"{server.url}{path}", json=body, timeout=120, **options)

    return send


@pytest.fixture(scope="session")
def second_clip(tmp_path_factory):
    """Another clip of 9 seconds."""
    from mmllm.synthetic.clips import SyntheticConfig, clip
    from mmllm.synthetic.drawing import draw_pieces
    from mmllm.synthetic.rendering import encode

    config = SyntheticConfig(seed=8, min_duration_s=9.0, max_duration_s=9.0)
    world, _ = clip(config, "val", 0)
    path = tmp_path_factory.mktemp("second") / "second.mp4"
    encode(draw_pieces(world, config.size), config.size, config.fps, path, crf=config.crf)
    return path


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """A PNG picture."""
    import numpy as np
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
