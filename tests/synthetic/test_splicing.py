"""Clips cut together: exact spans, nothing asked that is unsure, and captions that are refused."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from mmllm.commands.splice import splice_command
from mmllm.datasets.check import check_annotations
from mmllm.datasets.rtl import read_rtl
from mmllm.errors import ConfigError, InputError
from mmllm.synthetic.captions import Caption, read_captions
from mmllm.synthetic.rendering import encode
from mmllm.synthetic.splicing import Cut, SpliceConfig, cuts_of, questions_of, splice
from mmllm.video.opening import open_video

COLORS = {"red": (200, 40, 40), "green": (40, 180, 40), "blue": (40, 60, 220), "white": (240, 240, 240)}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four clips of one colour each, 6 seconds long, and captions of them."""
    root = tmp_path_factory.mktemp("clips")
    rows = []
    for name, color in COLORS.items():
        frames = np.broadcast_to(np.array(color, dtype=np.uint8), (60, 64, 64, 3))
        encode(iter([frames]), 64, 10, root / f"{name}.mp4", crf=20)
        rows.append({"video": f"{name}.mp4", "shows": [f"{name} wall"]})
    rows[0] |= {"start": 1.0, "end": 5.0, "unsure": ["green wall"]}
    (root / "captions.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def spliced(clips, tmp_path_factory):
    root = tmp_path_factory.mktemp("spliced") / "set"
    config = SpliceConfig(videos=6, size=48, most=3, longest_s=3.5)
    splice(root, config, read_captions(clips / "captions.json", clips))
    return root


def test_a_span_is_exactly_where_the_clip_is(spliced):
    questions = read_rtl(spliced / "val.json", spliced / "videos", policy="raise").items
    checked = 0
    for question in questions:
        if question.family != "visible":
            continue
        color = COLORS[next(name for name in COLORS if f"{name} wall" in question.question)]
        with open_video(question.video) as video:
            frames = video.frames_by_index(range(len(video))).frames
            times_s = video.times_s
        shown = np.abs(frames.astype(int).mean(axis=(1, 2)) - color).max(axis=1) < 30
        asked = np.zeros(len(times_s), dtype=bool)
        for span in question.spans:
            asked |= (times_s >= span.start_s - 1e-6) & (times_s < span.end_s - 1e-6)
        assert np.array_equal(shown, asked)
        checked += 1
    assert checked >= 10


def test_a_set_is_read_without_a_problem_and_made_once(spliced, clips):
    summary = check_annotations(spliced / "val.json", spliced / "videos")
    assert summary["problems"] == []
    assert summary["videos"] == 6
    assert summary["absent"] > 0
    with pytest.raises(InputError, match="holds a data set"):
        splice(spliced, SpliceConfig(), read_captions(clips / "captions.json", clips))


def test_no_clip_occurs_twice_and_parts_lie_in_their_captions(clips):
    captions = read_captions(clips / "captions.json", clips)
    config = SpliceConfig(fewest=2, most=4, shortest_s=1.0, longest_s=9.0)
    counts = set()
    for index in range(40):
        cuts = cuts_of(config, captions, index)
        assert cuts == cuts_of(config, captions, index)
        counts.add(len(cuts))
        assert len({cut.caption.path for cut in cuts}) == len(cuts)
        assert [cut.first for cut in cuts] == [sum(cut.frames for cut in cuts[:number]) for number in range(len(cuts))]
        for cut in cuts:
            assert cut.caption.start_s <= cut.from_s
            assert cut.from_s + cut.frames / config.fps <= cut.caption.end_s + 1e-6
    assert counts == {2, 3, 4}


def caption(*shows, unsure=(), name=None):
    path = Path(name or f"{shows[0]}.mp4")
    return Caption(path=path, start_s=0.0, end_s=9.0, shows=shows, unsure=frozenset(unsure))


def asked(*captions, others=()):
    cuts = [Cut(caption=each, from_s=0.0, first=20 * number, frames=20) for number, each in enumerate(captions)]
    found = [questions_of(cuts, [*captions, *others], 10, random.Random(seed)) for seed in range(12)]
    return {(each.family, each.question, each.spans) for questions in found for each in questions}


def test_what_is_seen_twice_has_two_spans_and_no_order():
    questions = asked(caption("dog"), caption("cat"), caption("dog", name="other.mp4"))
    assert {spans for family, text, spans in questions if family == "visible" and "dog" in text} == {((0, 2), (4, 6))}
    assert {spans for family, text, spans in questions if family == "visible" and "cat" in text} == {((2, 4),)}
    assert not [text for family, text, _ in questions if family == "next"]


def test_neighbours_that_show_the_same_are_one_span():
    questions = asked(caption("dog"), caption("dog", name="other.mp4"), caption("cat"))
    assert {spans for family, text, spans in questions if family == "visible" and "dog" in text} == {((0, 4),)}


def test_what_comes_next_has_the_span_of_what_comes():
    questions = asked(caption("dog"), caption("cat"), others=[caption("bird")])
    assert {spans for family, text, spans in questions if family == "next"} == {((2, 4),)}
    assert {spans for family, text, spans in questions if family == "absent"} == {()}
    assert all("bird" in text for family, text, _ in questions if family == "absent")


def test_what_is_unsure_is_neither_asked_for_nor_said_to_be_absent():
    questions = asked(caption("dog"), caption("cat", unsure=["dog", "bird"]), others=[caption("bird"), caption("cow")])
    assert not [text for _, text, _ in questions if "dog" in text or "bird" in text]
    assert [text for family, text, _ in questions if family == "absent" and "cow" in text]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("red.mp4", "object"),
        ({"video": "red.mp4"}, "at least one"),
        ({"video": "red.mp4", "shows": "wall"}, "list of names"),
        ({"video": "red.mp4", "shows": ["wall"], "unsure": [3]}, "list of names"),
        ({"video": "red.mp4", "shows": ["wall"], "from": 2}, "no keys but"),
        ({"video": "nowhere.mp4", "shows": ["wall"]}, "nowhere.mp4"),
        ({"video": "captions.json", "shows": ["wall"]}, "captions.json"),
        ({"video": "red.mp4", "shows": ["wall"], "start": 4, "end": 2}, "start < end"),
        ({"video": "red.mp4", "shows": ["wall"], "end": "3"}, "start < end"),
        ({"video": "red.mp4", "shows": ["wall"], "end": 60}, "lasts 6.00 s"),
    ],
)
def test_a_bad_caption_is_refused_by_its_number(clips, tmp_path, row, message):
    (tmp_path / "bad.json").write_text(json.dumps([{"video": "blue.mp4", "shows": ["wall"]}, row]))
    with pytest.raises(InputError, match=rf"caption 2: .*{message}"):
        read_captions(tmp_path / "bad.json", clips)


@pytest.mark.parametrize("text", ["{}", "[", '"captions"'])
def test_a_file_without_captions_is_refused(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match=r"bad\.json"):
        read_captions(tmp_path / "bad.json", tmp_path)


def test_one_video_is_too_few(clips, tmp_path):
    with pytest.raises(InputError, match="captions of 2 or more videos"):
        splice(tmp_path / "set", SpliceConfig(), [caption("dog"), caption("dog")])


@pytest.mark.parametrize(
    "fields",
    [{"videos": 0}, {"fewest": 1}, {"most": 1}, {"shortest_s": 0.1}, {"longest_s": 1.0}, {"size": 33}, {"fps": 0}],
)
def test_impossible_values_are_refused(fields):
    with pytest.raises(ConfigError, match="SpliceConfig"):
        SpliceConfig(**fields)


def test_the_command(clips, tmp_path, capsys):
    splice_command(clips / "captions.json", output=tmp_path / "set", count=1, size=48)
    assert "1 videos" in capsys.readouterr().out
    assert json.loads((tmp_path / "set" / "val.json").read_text())


def test_the_captions_of_the_real_clips_are_of_clips_that_exist():
    videos = ROOT.parent / "shared" / "data" / "videos"
    if not videos.is_dir():
        pytest.skip("the real clips are not here")
    captions = read_captions(ROOT / "benchmarks" / "data" / "spliced_captions.json", videos)
    assert len({caption.path for caption in captions}) >= 18
    named = {name for caption in captions for name in caption.shows}
    assert all(caption.unsure <= named for caption in captions), "what is unsure is something that could be asked for"
    assert not [caption for caption in captions if set(caption.shows) & caption.unsure]
