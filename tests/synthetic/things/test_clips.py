"""Sets of things: the same at each call, splits that share nothing, files that the readers understand."""

import dataclasses
import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from own_pictures import things_config

from mmllm.datasets.check import check_annotations
from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.rtl import read_rtl
from mmllm.errors import ConfigError, InputError
from mmllm.synthetic.clips import SyntheticConfig, families_of
from mmllm.synthetic.questions import SEEN_FAMILIES
from mmllm.synthetic.rendering import render
from mmllm.synthetic.sounds import soundtrack
from mmllm.synthetic.things.clips import GROUPS, sources_of, things_clip
from mmllm.synthetic.things.config import ThingsConfig
from mmllm.video.opening import open_video


@pytest.fixture(scope="module")
def config(pictures_folder):
    return things_config(pictures_folder, train_videos=3, val_videos=3, min_duration_s=12, max_duration_s=20, size=64)


@pytest.fixture(scope="module")
def rendered(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("sets") / "things"
    render(root, config, workers=1, progress=False)
    return root


def test_a_clip_is_a_function_of_seed_split_and_number(config):
    first, again = (things_clip(config, "train", 5) for _ in range(2))
    assert first.staging.world == again.staging.world
    assert first.questions == again.questions
    assert np.array_equal(first.staging.visible, again.staging.visible)
    other = things_clip(dataclasses.replace(config, seed=1), "train", 5)
    assert other.staging.world != first.staging.world
    more = dataclasses.replace(config, train_videos=500)
    assert things_clip(more, "train", 5).staging.world == first.staging.world


def test_splits_share_neither_names_nor_grounds(config):
    pictures, grounds = sources_of(config)
    assert not set(pictures.seen) & set(pictures.unseen)
    for index in range(12):
        train = things_clip(config, "train", index)
        assert train.group == "seen"
        for clip in (train, things_clip(config, "val", index)):
            assert clip.group == ("seen" if clip is train else GROUPS[index % 3])
            names = pictures.unseen if clip.group == "unseen names" else pictures.seen
            behind = grounds.unseen if clip.group == "unseen grounds" else grounds.seen
            asked = " ".join(question.question + question.answer for question in clip.questions)
            assert set(clip.staging.world.names) <= set(names)
            assert {shot.ground for shot in clip.staging.world.shots} <= set(behind)
            others = {*pictures.seen, *pictures.unseen} - set(names)
            assert not [name for name in others if f" {name} " in asked]


def test_another_seed_has_the_same_split(config):
    pictures, _ = sources_of(config)
    again, _ = sources_of(dataclasses.replace(config, seed=9))
    assert (pictures.seen, pictures.unseen) == (again.seen, again.unseen)


def test_all_families_occur_and_can_be_restricted(config):
    counts = Counter(
        question.family for index in range(25) for question in things_clip(config, "train", index).questions
    )
    assert set(counts) == set(config.families) == set(families_of("things")) - {"sound"}
    few = dataclasses.replace(config, families=("visible", "absent"))
    assert {question.family for question in things_clip(few, "train", 0).questions} <= {"visible", "absent"}


def test_things_hide_return_move_and_turn(config):
    clips = [things_clip(config, "train", index) for index in range(30)]
    actors = [actor for clip in clips for actor in clip.staging.world.actors]
    assert {event.action for actor in actors for event in actor.events} >= {"left", "grow", "spin"}
    assert any(len(clip.staging.world.shots) > 1 for clip in clips)
    assert any(len(clip.staging.spans(name)) > 1 for clip in clips for name in clip.staging.world.names)
    assert any(len(question.spans or ()) > 1 for clip in clips for question in clip.questions)


@pytest.mark.parametrize("settings", [{"fps": 1}, {"fps": 30}, {"min_duration_s": 8, "max_duration_s": 8}])
def test_worlds_of_all_rates_and_lengths_are_whole(config, settings):
    changed = dataclasses.replace(config, **settings)
    pictures, _ = sources_of(changed)
    for index in range(12):
        clip = things_clip(changed, "val", index)
        world = clip.staging.world
        edges = [*(shot.first_frame / world.fps for shot in world.shots), world.duration_s]
        for actor in world.actors:
            times_s = [key.time_s for key in actor.keys]
            assert times_s == sorted(set(times_s)), "keys are in order, no two at once"
            assert any(start <= times_s[0] and times_s[-1] <= end for start, end in pairwise(edges)), "within one shot"
        names = pictures.unseen if clip.group == "unseen names" else pictures.seen
        assert len(set(names) - set(world.names)) >= 2
        assert any(question.family == "absent" for question in clip.questions)


def test_sound_is_there_only_if_it_is_asked_for(config):
    assert not things_clip(config, "train", 0).staging.world.sounds
    heard = dataclasses.replace(config, families=("sound", "visible"))
    clips = [things_clip(heard, "train", index) for index in range(4)]
    assert "sound" in {question.family for clip in clips for question in clip.questions}
    assert np.abs(soundtrack(clips[0].staging.world)).max() > 0.1


def test_the_set_is_read_without_a_problem(rendered, config):
    for split, videos in (("train", 3), ("val", 3)):
        summary = check_annotations(rendered / f"{split}.json", rendered / "videos")
        assert summary["videos"] == videos
        assert summary["problems"] == []
        assert summary["absent"] > 0
        assert summary["events"] > summary["videos"]
    questions = read_rtl(rendered / "val.json", rendered / "videos", policy="raise").items
    assert {question.group for question in questions} == set(GROUPS)
    for question in questions:
        index = GROUPS.index(question.group)
        truth = {each.question: each for each in things_clip(config, "val", index).questions}[question.question]
        assert question.answer == truth.answer
        assert question.absent == (truth.spans == ())
        assert [tuple(span.to_json()) for span in question.spans] == [tuple(span) for span in truth.spans or ()]


def test_the_video_shows_what_was_drawn(rendered, config):
    from mmllm.synthetic.clips import video_id
    from mmllm.synthetic.things.drawing import draw

    clip = things_clip(config, "val", 0)
    frames = list(draw(clip.staging, *sources_of(config), config.size))
    with open_video(rendered / "videos" / f"v_{video_id(config, 'val', 0)}.mp4") as video:
        assert len(video) == len(frames)
        assert video.info.duration_s == pytest.approx(clip.staging.world.duration_s)
        decoded = video.frames_by_index([0, len(frames) - 1]).frames
    for shown, drawn in zip(decoded, (frames[0], frames[-1]), strict=True):
        assert np.abs(shown.astype(int) - drawn).mean() < 8


def test_a_rendered_set_is_kept_and_another_one_refused(rendered, config):
    before = {file.name: file.stat().st_mtime_ns for file in (rendered / "videos").iterdir()}
    render(rendered, config, workers=1, progress=False)
    assert before == {file.name: file.stat().st_mtime_ns for file in (rendered / "videos").iterdir()}
    with pytest.raises(InputError, match="things"):
        render(rendered, dataclasses.replace(config, things=ThingsConfig(pictures="elsewhere")), progress=False)


def test_a_set_of_an_older_version_goes_on(tmp_path):
    shapes = SyntheticConfig(train_videos=1, val_videos=0, min_duration_s=8, max_duration_s=9, families=("visible",))
    render(tmp_path / "old", shapes, workers=1, progress=False)
    file = tmp_path / "old" / "synthetic.json"
    old = {key: value for key, value in json.loads(file.read_text()).items() if key != "things"}
    file.write_text(json.dumps(old))
    render(tmp_path / "old", shapes, workers=1, progress=False)


def test_talk_is_beside_the_set(rendered):
    dialogues = read_dialogues(rendered / "talk.jsonl", policy="raise").items
    assert len(dialogues) >= 50
    assert not [dialogue for dialogue in dialogues if dialogue.media]
    assert len({dialogue.turns[0].text for dialogue in dialogues}) == len(dialogues)


def test_each_world_has_its_own_defaults():
    assert SyntheticConfig().families == tuple(SEEN_FAMILIES)
    assert SyntheticConfig().size == 64
    assert SyntheticConfig(world="things").size == 128
    assert SyntheticConfig(world="things").families == tuple(name for name in families_of("things") if name != "sound")
    assert SyntheticConfig(world="things", size=96).size == 96


@pytest.mark.parametrize(("world", "family"), [("things", "digit"), ("easy", "absent")])
def test_a_family_of_another_world_is_refused(world, family):
    with pytest.raises(ConfigError, match=f"{family}.*in the world '{world}'"):
        SyntheticConfig(world=world, families=(family,))


def test_stages_that_need_shapes_say_so(config):
    from mmllm.synthetic.scenes import scene_batch

    with pytest.raises(ConfigError, match="needs a world of shapes"):
        scene_batch(config, 0, 2)
