"""`ask --plot` and `tokens --plot`: the picture is written, and shows what the reducers kept."""

import json

import numpy as np
import pytest
from PIL import Image

from mmllm.commands.ask import ask
from mmllm.commands.tokens import tokens
from mmllm.errors import InputError
from mmllm.inference.answering import VideoQA
from mmllm.inference.decisions import encoded_for
from mmllm.inference.plotting import plot_answer
from mmllm.stages import StageChanges
from mmllm.times.answers import Span
from mmllm.tokens import VideoClip


@pytest.fixture(scope="module")
def saved(tmp_path_factory, untrained_qa):
    folder = tmp_path_factory.mktemp("model")
    untrained_qa.model.save_pretrained(folder)
    untrained_qa.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def clip():
    frames = np.full((6, 16, 16, 3), 180, dtype=np.uint8)
    return VideoClip(frames=frames, times_s=np.arange(6.0), duration_s=6.0)


def size(path):
    return Image.open(path).size


def test_strips_of_kept_patches_and_their_ranking(clip, tmp_path):
    spans = [Span(1.0, 2.5)]
    plain = plot_answer(clip, "When?", spans, tmp_path / "plain.png")
    kept = np.zeros((6, 4, 4), dtype=bool)
    kept[:, 1] = True
    dark = plot_answer(clip, "When?", spans, tmp_path / "dark.png", kept=kept)
    ranking = np.random.default_rng(0).random((6, 4, 4))
    hot = plot_answer(clip, "When?", spans, tmp_path / "hot.png", kept=kept, ranking=("cls_attention", ranking))
    assert size(plain)[0] == size(dark)[0] == size(hot)[0]
    assert size(plain)[1] < size(dark)[1] < size(hot)[1]
    light = [np.isclose(np.asarray(Image.open(path).convert("L")), 180, atol=2).sum() for path in (plain, dark)]
    assert light[1] - light[0] == pytest.approx(0.22 * light[0], rel=0.3)  # a quarter of the second strip, less blurs
    with pytest.raises(InputError, match="cannot write the picture"):
        plot_answer(clip, "When?", (), tmp_path / "x.nonsense", kept=kept)


def test_asking_with_reducers_shows_what_they_kept(saved, short_clip, tmp_path, capsys):
    pictures = {}
    for name, reducer in {"all": None, "some": ("fastervlm:keep=8", "random:keep=3")}.items():
        pictures[name] = tmp_path / f"{name}.png"
        ask(
            short_clip,
            "When does the red circle spin?",
            model=str(saved),
            stages=StageChanges(reducer=reducer),
            plot=pictures[name],
        )
    assert "plot:" in capsys.readouterr().err
    assert size(pictures["some"])[1] > 2 * size(pictures["all"])[1]


def test_counting_tokens_of_a_clip_draws_them(saved, short_clip, tmp_path, capsys):
    picture = tmp_path / "tokens.png"
    asked = {"video": short_clip, "stages": StageChanges(reducer=("uniform:keep=4",)), "frames": 5, "plot": picture}
    tokens(model=str(saved), json=True, **asked)
    assert json.loads(capsys.readouterr().out)["plot"] == str(picture)
    assert size(picture)[1] > 100
    with pytest.raises(InputError, match="--plot shows what a model keeps"):
        tokens(recipe="quickstart", **asked)
    with pytest.raises(InputError, match="--plot shows what a model keeps"):
        tokens(model=str(saved), plot=picture)


def test_what_the_llm_drops_depends_on_the_question(short_clip):
    from mmllm.train.building import build_model
    from mmllm.train.recipes import DecoderConfig, ModelConfig

    config = ModelConfig(
        encoder="tiny:width=16,heads=2,channels=8+8+8",
        reducers=("atp:depths=0.25+0.5+0.75,ratio=0.5",),
        path="plain",
        decoder=DecoderConfig(width=32, layers=4, mlp_width=64),
        num_frames=6,
    )
    qa = VideoQA(*build_model(config, seed=0), max_new_tokens=4)
    encoded = qa.encode_video(short_clip)
    assert encoded.kept.all()
    for stage in qa.model.reducers[0].stages:  # about half of the scores lie below these
        stage.head_r.bias.data.fill_(0.0)
        stage.head_s.bias.data.fill_(9.0)
    videos = [encoded_for(qa, encoded, f"When is the {name} on screen?") for name in ("red circle", "blue square")]
    for video in videos:
        assert 0 < video.kept.sum() < video.kept.size
        name, ranking = video.ranking
        assert name == "ATP's redundancy score"
        assert np.isfinite(ranking).all()
        assert ranking[video.kept].min() > 0.5  # kept tokens were above the threshold from the first stage on
    assert not np.array_equal(videos[0].ranking[1], videos[1].ranking[1])
    assert encoded_for(qa, encoded, "When?").sequences is encoded.sequences
