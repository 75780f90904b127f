"""Fresh clips to be asked about: the seed decides which, and they are rendered once."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from own_pictures import write_pictures

from mmllm.commands.evaluate import evaluate
from mmllm.commands.flags import ChainChoice
from mmllm.errors import InputError
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.things.clips import GROUPS
from mmllm.synthetic.things.config import ThingsConfig
from mmllm.train.recipes import full


def test_a_seed_gives_the_same_clips_again_without_rendering_them_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = fresh_benchmark(3, world="basic", videos=2, workers=1)
    files = {question.video: question.video.stat().st_mtime_ns for question in first.questions}
    again = fresh_benchmark(3, world="basic", videos=2, workers=1)
    assert again == first
    assert {question.video: question.video.stat().st_mtime_ns for question in again.questions} == files
    assert len(files) == 2


def test_clips_of_other_settings_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh_benchmark(5, videos=1, workers=1)
    settings = full()
    fewer = replace(settings.data, synthetic=replace(settings.data.synthetic, families=("visible",)))
    monkeypatch.setattr("mmllm.evaluation.fresh.full", lambda: replace(settings, data=fewer))
    assert {question.family for question in fresh_benchmark(5, videos=1, workers=1).questions} == {"visible"}


def test_the_baselines_are_fitted_to_other_clips(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    benchmark = fresh_benchmark(4, world="basic", videos=1, workers=1)
    assert len({question.vid for question in benchmark.fit}) > 100
    assert not {question.vid for question in benchmark.fit} & {question.vid for question in benchmark.questions}


def test_the_seed_that_models_are_trained_on_is_refused():
    with pytest.raises(InputError, match="seed 0"):
        fresh_benchmark(0)


def test_data_or_a_seed_has_to_be_given(tmp_path):
    with pytest.raises(InputError, match="--render-seed"):
        evaluate("nowhere")
    with pytest.raises(InputError, match="--render-seed"):
        evaluate("nowhere", tmp_path, render_seed=1)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"render_seed": 7, "fps": 2.0}, r"--fps: cannot be used with --render-seed: leave it out"),
        ({"suite": "threads", "videos": Path("."), "format": "rtl"}, r"--videos, --format: .* --suite threads"),
        ({"data": Path("x.json"), "render_world": "easy"}, r"--render-world: .* x\.json"),
        ({"suite": "threads", "render_videos": 3}, "--render-videos"),
        ({"suite": "threads-text", "audio": False, "limit": 2}, r"--limit, --no-audio: .* leave them out"),
        ({"suite": "threads-text", "decoding": "prompt-lookup"}, "--decoding"),
        ({"suite": "threads-text", "chain": ChainChoice(chain="2")}, "--chain"),
    ],
)
def test_options_that_say_nothing_about_the_questions_are_refused(options, refused):
    with pytest.raises(InputError, match=refused):
        evaluate("nowhere", **options)


def test_clips_of_things_have_all_their_questions_and_groups(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pictures = ThingsConfig(pictures=str(write_pictures(tmp_path / "pictures")))
    monkeypatch.setattr("mmllm.evaluation.fresh.SyntheticConfig", partial(SyntheticConfig, things=pictures, size=48))
    monkeypatch.setattr("mmllm.evaluation.fresh._FITTED_TO", 4)
    benchmark = fresh_benchmark(3, world="things", videos=3, workers=1)
    assert {question.group for question in benchmark.questions} == set(GROUPS)
    assert {question.group for question in benchmark.fit} == {"seen"}
    for questions in (benchmark.questions, benchmark.fit):
        assert "absent" in {question.family for question in questions if question.absent}
        assert max(len(question.spans) for question in questions) >= 1
        assert any(not (question.spans or question.absent) for question in questions if question.family == "count")
