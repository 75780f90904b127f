"""Rendered sounds: exact times, questions that only sound can answer, the same samples in files and in memory."""

import json

import numpy as np
import pytest

from mmllm.synthetic.clips import SyntheticConfig, clip, video_id
from mmllm.synthetic.questions import SEEN_FAMILIES, sound_vocabulary, vocabulary, words
from mmllm.synthetic.rendering import render
from mmllm.synthetic.sounds import sound_batch, soundtrack
from mmllm.synthetic.world import SOUNDS
from mmllm.video.opening import open_video

HEARD = SyntheticConfig(train_videos=2, val_videos=2, max_duration_s=22.0, families=("sound",))


def loud(samples: np.ndarray) -> np.ndarray:
    """bool, for each 50 ms of sound: whether something is louder than the noise."""
    parts = samples[: len(samples) // 800 * 800].reshape(-1, 800)
    return np.abs(parts).max(axis=1) > 0.05


def test_a_sound_lasts_exactly_as_long_as_its_question_says():
    for index in range(6):
        world, questions = clip(HEARD, "train", index)
        assert {question.family for question in questions} == {"sound"}
        assert len(questions) == len(world.sounds)
        samples = soundtrack(world)
        assert samples.dtype == np.float32
        assert len(samples) == round(world.duration_s * 16_000)
        assert np.abs(samples).max() <= 1
        assert np.array_equal(samples, soundtrack(world))
        audible = np.flatnonzero(loud(samples)) * 0.05
        assert audible[0] == pytest.approx(min(sound.span.start_s for sound in world.sounds), abs=0.06)
        assert audible[-1] == pytest.approx(max(sound.span.end_s for sound in world.sounds), abs=0.26)
        for question in questions:
            assert question.span in [sound.span for sound in world.sounds]
            assert set(words(question.question)) <= {*vocabulary(), *sound_vocabulary()}


def test_clips_of_other_families_are_what_they_were():
    assert SyntheticConfig().families == tuple(SEEN_FAMILIES)
    assert "sound" not in SEEN_FAMILIES
    assert clip(SyntheticConfig(), "train", 0)[0].sounds == ()
    assert not {"heard", "beep", "ticking"} & set(vocabulary())
    assert sound_vocabulary() == ["beep", "heard", "high", "low", "ticking"]


def test_a_rendered_file_has_the_sound_at_its_times(tmp_path):
    render(tmp_path / "set", HEARD, workers=1, progress=False)
    for index in range(2):
        world, _ = clip(HEARD, "train", index)
        file = tmp_path / "set" / "videos" / f"v_{video_id(HEARD, 'train', index)}.mp4"
        with open_video(file) as video:
            assert video.info.audio == ("1 aac 16000 Hz mono (default)",)
            assert video.info.duration_s == pytest.approx(world.duration_s, abs=0.05)
            assert video.times_s[0] == 0
            sound = video.sound()
        expected = loud(soundtrack(world))
        count = min(len(expected), len(loud(sound.samples)))
        assert (loud(sound.samples)[:count] == expected[:count]).mean() > 0.97
    assert {row["family"] for row in json.loads((tmp_path / "set" / "val.json").read_text())} == {"sound"}


def test_stretches_in_memory_say_what_is_heard_when():
    samples, targets = sound_batch(HEARD, 5, 8)
    assert samples.shape == (8, 160_000)
    assert targets.shape == (8, 100, len(SOUNDS))
    again, _ = sound_batch(HEARD, 5, 8)
    assert np.array_equal(samples, again)
    audible = np.stack([loud(row).reshape(100, 2).any(axis=1) for row in samples])
    any_sound = targets.any(axis=2)
    assert 0.05 < any_sound.mean() < 0.8
    assert (audible & ~any_sound).mean() < 0.02
    assert audible[any_sound].mean() > 0.5  # beeps and ticks have pauses
