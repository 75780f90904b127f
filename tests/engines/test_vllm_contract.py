"""The plugin against the part of vLLM's interface that it uses: counts, order, names of weights, and the same ids."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import vllm_stub
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmllm.errors import ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.inference.own_prompts import OwnPrompts
from mmllm.inference.prompts import Medium, Turn
from mmllm.modeling.blending import BlendConfig
from mmllm.tokens import VideoClip
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig

QUESTION = "When does the red circle spin?"
VISION = {"clip": "clip:image_size=28,patch_size=7,width=32,layers=2,heads=2,mlp_width=64"}


@pytest.fixture
def vllm(monkeypatch):
    """The stub, in which the plugin has registered."""
    stub = vllm_stub.install(monkeypatch)
    from mmllm.engines.vllm_plugin import register

    register()
    register()  # vLLM may call it again
    return stub


def small_qa(**fields):
    decoder = DecoderConfig(width=32, layers=2, heads=2, mlp_width=64)
    fields = {"path": "plain", "time": "text", "num_frames": 6, "encoder": "tiny", "decoder": decoder} | fields
    return VideoQA(*build_model(ModelConfig(**fields), seed=0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Makes a model by the fields of its configuration, once: it and its folder."""
    made = {}

    def make(**fields):
        key = str(sorted(fields.items()))
        if key not in made:
            qa, folder = small_qa(**fields), tmp_path_factory.mktemp("model")
            qa.model.save_pretrained(folder)
            qa.processor.save_pretrained(folder)
            made[key] = qa, folder
        return made[key]

    return make


def clip(frames=6, duration_s=9.0, seed=0, height=48, width=64):
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    times_s = np.linspace(0, duration_s, frames, endpoint=False) + 0.123
    return VideoClip(frames=pixels, times_s=times_s, duration_s=duration_s + 0.2)


def in_vllm(video):
    """A clip as our reader gives it to vLLM."""
    from mmllm.engines.vllm_videos import seconds_as_numbers

    return video.frames, seconds_as_numbers(video.times_s, video.duration_s)


def weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors").items()


def test_the_entry_point_is_the_function_that_is_tested_here():
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"mmllm": "mmllm.engines.vllm_plugin:register"}


def test_it_registers_once_however_often_it_is_called(vllm):
    assert vllm.ModelRegistry.models == {"MmllmForConditionalGeneration": "mmllm.engines.vllm_model:VllmModel"}
    assert list(vllm.VIDEO_LOADER_REGISTRY.name2class) == ["mmllm"]


def test_an_older_vllm_is_left_alone(monkeypatch, caplog):
    stub = vllm_stub.install(monkeypatch)
    sys.modules["vllm"].__version__ = "0.31.2"
    from mmllm.engines.vllm_plugin import register

    register()
    assert not stub.ModelRegistry.models
    assert "need vLLM 0.32 or newer, and this is 0.31.2" in caplog.text


def test_the_configuration_has_what_vllm_reads(vllm, saved):
    _, folder = saved()
    from transformers import AutoConfig, AutoProcessor

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert config.architectures == ["MmllmForConditionalGeneration"]
    text = config.get_text_config()
    assert text is config.text_config
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "max_position_embeddings"):
        assert getattr(text, name) > 0
    assert config.tie_word_embeddings == text.tie_word_embeddings
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    assert type(processor).__name__ == "MmllmProcessor"


CASES = [
    {},
    {"time": "interleaved"},
    {"time": "interleaved", "reducers": ["uniform:keep=3"]},
    {"reducers": ["evs:ratio=0.3"]},
    {"reducers": ["vidcom2:ratio=0.4"]},
    {"reducers": ["pool:stride=2", "evs:ratio=0.5"]},
    {"reducers": ["video_budget:ratio=0.3"]},
    {"encoder": VISION["clip"], "reducers": ["fastervlm:ratio=0.3"], "time": "interleaved:decimals=2"},
    {"encoder": VISION["clip"], "reducers": ["visionzip:ratio=0.4"], "visual_tokenizer": "mlp"},
    {"visual_tokenizer": "mqt:tokens=5", "time": "interleaved"},
    {"blend": BlendConfig(rms=0.3)},
]


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_it_writes_our_ids(vllm, saved, fields):
    qa, folder = saved(**fields)
    served = vllm_stub.Served(folder, vllm, qa.processor)
    assert served.limits == {"video": None, "image": None}
    loaded = served.load(weights_of(folder))
    own = {name for name, _ in served.model.named_parameters()}
    assert own - loaded <= {"language_model.lm_head.weight"}  # tied
    prompts = OwnPrompts(qa)
    first, second = clip(), clip(seed=1, duration_s=130.0, height=64, width=40)
    picture = np.random.default_rng(2).integers(0, 255, (50, 80, 3), dtype=np.uint8)
    videos = [Medium(kind="video", encoded=qa.encode_video(video)) for video in (first, second)]
    image = Medium(kind="image", encoded=prompts.picture(picture))
    cases = [
        ((videos[0], QUESTION), {"video": [in_vllm(first)]}),
        ((*videos, QUESTION), {"video": [in_vllm(first), in_vllm(second)]}),
        ((videos[1], image, QUESTION), {"video": [in_vllm(second)], "image": [Image.fromarray(picture)]}),
        (("Who?",), {}),
    ]
    answers = set()
    for content, media in cases:
        prompt = prompts.prompt([Turn(role="user", content=content)])
        given_ids = prompt.encoded.input_ids.tolist()
        ids, marks, _ = served.prepared(given_ids, media)
        assert len(ids) == prompt.positions
        assert sum(sum(marked) for marked in marks.values()) == sum(m.encoded.read_tokens for m in content[:-1])
        expected = prompts.generate([prompt], max_new_tokens=6)[0].tolist()
        assert served.generate(given_ids, media, len(expected)) == expected
        answers.add(tuple(expected))
    assert len(answers) > 1


@given(
    frames=st.integers(1, 9),
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    share=st.sampled_from([0.2, 0.35, 0.5, 1.0]),
    reducer=st.sampled_from(["evs", "vidcom2", "video_budget", "uniform", "random"]),
)
@settings(max_examples=40)
def test_as_many_places_as_tokens_for_every_shape(small_parts, frames, height, width, share, reducer):
    from mmllm.engines.visual_counts import VisualCounts, total

    qa, models = small_parts
    text = f"{reducer}:ratio={share}"
    model = models.setdefault(text, qa.model.with_stages(reducers=[text]))
    counts = VisualCounts(model.config)
    inputs = qa.processor.media_inputs("video", [clip(frames, 5.0, frames, height, width)])
    (sequence,) = model.visual_sequences({"video": inputs}).values()
    assert int(sequence.mask.sum()) == total(counts.of_video(frames))
    picture = clip(1, 1.0, 3, height, width).frames[0]
    (still,) = model.visual_sequences({"image": qa.processor.media_inputs("image", [picture])}).values()
    assert int(still.mask.sum()) == counts.of_image()


@pytest.fixture(scope="module")
def small_parts():
    """A model, and those with its weights and other reducers."""
    return small_qa(), {}


def test_reducers_can_be_chosen_when_vllm_starts(vllm, saved):
    """As `--hf-overrides` sets them: as text, in a configuration that is read already."""
    qa, folder = saved()
    served = vllm_stub.Served(folder, vllm, qa.processor, overrides={"reducers": ["evs:ratio=0.25"]})
    served.load(weights_of(folder))
    other = OwnPrompts(VideoQA(qa.model.with_stages(reducers=["evs:ratio=0.25"]), qa.processor))
    video = clip()
    prompt = other.prompt(
        [Turn(role="user", content=(Medium(kind="video", encoded=other.qa.encode_video(video)), QUESTION))]
    )
    ids, _, _ = served.prepared(prompt.encoded.input_ids.tolist(), {"video": [in_vllm(video)]})
    assert len(ids) == prompt.positions
    expected = other.generate([prompt], max_new_tokens=6)[0].tolist()
    assert served.generate(prompt.encoded.input_ids.tolist(), {"video": [in_vllm(video)]}, len(expected)) == expected


def test_runs_leave_the_fields_before_these_are_kept(vllm, saved):
    qa, folder = saved()
    served = vllm_stub.Served(folder, vllm, qa.processor)
    ids = qa.processor.placeholder_ids["<video>"]
    _, _, kwargs = served.prepared([ids], {"video": [in_vllm(clip())]})
    assert [set(item) for item in kwargs["video"]] == [{"pixel_values_videos"}]


def test_the_largest_media_fit_a_prompt(vllm, saved):
    qa, folder = saved()
    served = vllm_stub.Served(folder, vllm, qa.processor)
    whole = qa.model.encoder.tokens_per_frame * 6
    for room, frames in ((10_000, 6), (whole, 6), (whole - 1, 5), (1, 1)):
        media = served.dummies.get_dummy_mm_data(room, {"video": 1, "image": 2}, {})
        assert len(media["video"][0][0]) == frames
        text = served.dummies.get_dummy_text({"video": 1, "image": 2})
        ids, marks, _ = served.prepared(qa.processor.encode(text).input_ids.tolist(), media)
        assert sum(marks["video"]) == whole // 6 * frames
        assert len(ids) == sum(marks["video"]) + sum(marks["image"])


def test_frames_that_vllm_has_not_chosen_are_chosen_by_the_models_rule(vllm, saved):
    qa, folder = saved(sampling="slow-fast:fps=2")
    served = vllm_stub.Served(folder, vllm, qa.processor)
    frames = clip(frames=40).frames
    every = {"fps": 8.0, "duration": 5.0, "total_num_frames": 40, "frames_indices": list(range(40))}
    placeholder = [qa.processor.placeholder_ids["<video>"]]
    for sampled, count in ((True, 6), (False, 40)):
        media = {"video": [(frames, every | {"do_sample_frames": sampled})]}
        ids, _, kwargs = served.prepared(placeholder, media)
        assert len(kwargs["video"][0]["pixel_values_videos"].data) == count
        assert len(ids) == count * qa.model.encoder.tokens_per_frame
    part = {"video": [(frames, every | {"do_sample_frames": True})]}
    _, _, kwargs = served.prepared(placeholder, part, num_frames=3)
    assert len(kwargs["video"][0]["pixel_values_videos"].data) == 3


def test_options_that_nobody_reads_and_videos_without_times_are_refused(vllm, saved):
    qa, folder = saved()
    served = vllm_stub.Served(folder, vllm, qa.processor)
    placeholder = [qa.processor.placeholder_ids["<video>"]]
    with pytest.raises(InputError, match="nobody reads 'max_frames'"):
        served.prepared(placeholder, {"video": [in_vllm(clip())]}, max_frames=3)
    with pytest.raises(InputError, match="do_sample_frames=False takes all frames"):
        served.prepared(placeholder, {"video": [in_vllm(clip())]}, num_frames=3)
    with pytest.raises(ValueError, match="metadata"):
        served.prepared(placeholder, {"video": [clip().frames]})


def test_a_model_that_vllm_cannot_run_is_refused_when_vllm_asks(vllm, saved):
    qa, folder = saved()
    with pytest.raises(ConfigError, match="path 'slowfast'"):
        vllm_stub.Served(folder, vllm, qa.processor, overrides={"path": "slowfast"})


def test_weights_of_another_model_are_refused(vllm, saved):
    qa, folder = saved()
    served = vllm_stub.Served(folder, vllm, qa.processor)
    with pytest.raises(ValueError, match=r"visual\.path\.missing"):
        served.load([("path.missing", torch.zeros(1))])


def test_nothing_of_ours_imports_vllm_by_itself():
    code = (
        "import sys, mmllm, mmllm.engines.vllm_plugin\n"
        "assert not {'vllm', 'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)\n"
        "import mmllm.engines.whole_model, mmllm.engines.visual_half, mmllm.engines.vllm_videos\n"
        "assert 'vllm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
