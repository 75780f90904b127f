"""Needles and threads in clips: what is shown is what is asked for, and `mmllm eval` asks it."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mmllm.cli import main
from mmllm.evaluation.threads.clip_tasks import ClipThreadsConfig, thread_clips
from mmllm.synthetic.staging import stage

CONFIG = ClipThreadsConfig(seed=3, clips=2, lengths=(30.0, 45.0), steps=(2, 5))


def shown_at(world, time_s):
    """The names on the left and on the right at an instant."""
    scene = stage([world], np.array([[int(time_s * world.fps)]]))
    names = {
        (thing.x > 0.5): thing.name for thing, seen in zip(scene.things, scene.now.visible[:, 0], strict=True) if seen
    }
    return names.get(False), names.get(True)


def pairs_of(world):
    """Key -> (value, when) of all pairs, in order of time."""
    spans = sorted({thing.presence for thing in world.things})
    return {left: (right, span.start_s) for span in spans for left, right in [shown_at(world, span.start_s + 0.5)]}


@pytest.fixture(scope="module")
def clips():
    return {clip.name: clip for clip in thread_clips(CONFIG)}


def test_clips_are_the_same_each_time_and_others_with_another_seed(clips):
    again = {clip.name: clip for clip in thread_clips(CONFIG)}
    assert [clip.world for clip in again.values()] == [clip.world for clip in clips.values()]
    other = {clip.name: clip for clip in thread_clips(replace(CONFIG, seed=4))}
    assert other.keys() == clips.keys()
    assert all(other[name].world != clip.world for name, clip in clips.items())


def test_a_needle_is_on_screen_once_at_its_depth(clips):
    needles = [clip for name, clip in clips.items() if name.startswith("needle-30")]
    middles = []
    for clip in needles:
        (row,) = clip.questions
        name = row["q"].removeprefix("When is the ").removesuffix(" on screen?")
        (needle,) = [thing for thing in clip.world.things if thing.name == name]
        assert row["a"].startswith(f"<{needle.presence.start_s:.1f}> <{needle.presence.end_s:.1f}> ")
        assert len({thing.color for thing in clip.world.things}) == 3
        middles.append((row["group"], sum(needle.presence) / 2))
    depths = [middle_s for _, middle_s in sorted(set(middles), key=lambda pair: int(pair[0].split()[3]))]
    assert depths == pytest.approx(np.repeat((np.arange(6) + 0.5) * 5, 1), abs=0.2)


def test_a_thread_of_one_step_asks_for_the_shape_beside_a_key(clips):
    for name, clip in clips.items():
        if not name.startswith("pairs"):
            continue
        pairs = pairs_of(clip.world)
        assert len(pairs) == CONFIG.pairs == len(clip.questions)
        for row in clip.questions:
            key = next(key for key in pairs if f"the {key} is on screen" in row["q"])
            assert pairs[key][0].split()[1] == row["a"]
        shown = Counter(thing.name for thing in clip.world.things)
        assert all(shown[key] == 1 for key in pairs)


def test_a_longer_thread_ends_after_its_steps_in_its_direction(clips):
    threads = [clip for name, clip in clips.items() if name.startswith("thread-")]
    assert len(threads) == 2 * 2 * 2 * 2
    for clip in threads:
        (row,) = clip.questions
        steps, way = int(row["family"].split()[2].strip(",")), row["family"].split()[-1]
        pairs = pairs_of(clip.world)
        key, times_s = row["q"].split("Start when the ")[1].split(" is in")[0], []
        while key in pairs:
            key, time_s = pairs[key]
            times_s.append(time_s)
        assert len(times_s) == steps
        assert times_s == sorted(times_s, reverse=way == "backward")
        assert key.split()[1] == row["a"]


def test_chance_is_that_of_a_shape():
    assert CONFIG.chance == pytest.approx(1 / 3)
    assert ClipThreadsConfig(world="full").chance == pytest.approx(1 / 4)


def test_eval_scores_a_suite_by_depth_and_length_and_needles_are_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["eval", "default", "--suite", "threads:clips=1,lengths=30,pairs=3,steps=2", "--no-shuffle"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--output", str(tmp_path / "out")])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "Needles: mIoU in %" in printed
    assert "chance: 33.3" in printed
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(scores["families"]) == {"needle", "thread of 1", "thread of 2, forward", "thread of 2, backward"}
    assert scores["families"]["needle"]["miou"] > 0.5 > scores["families"]["needle"]["best_constant_miou"]
    assert {group for group in scores["groups"] if "depth" in group} == {
        "30 s, depth 0 %", "30 s, depth 50 %", "30 s, depth 100 %",
    }  # fmt: skip


@pytest.mark.parametrize("more", [["--render-seed", "7"], ["somewhere"]])
def test_a_suite_is_asked_alone(more, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["eval", "default", *more, "--suite", "threads"])
    assert ended.value.code == 2
    assert "one of DATA, --render-seed and --suite" in capsys.readouterr().err
