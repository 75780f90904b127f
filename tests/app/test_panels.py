"""The timeline, the panel of what the model sees, and the exports: their contents, and that no text becomes markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mmllm.app.exports import answers, export, subtitles
from mmllm.app.markup import interval, readable, safe, seconds
from mmllm.app.session import ChatTurn, Session, Visit
from mmllm.app.sight import comparison, dimmed, sight, time_rows, token_rows
from mmllm.app.timeline import bars, timeline
from mmllm.inference.answering import EncodedVideo
from mmllm.times.answers import Span, parse_answer
from mmllm.tokens import VideoClip


def turn(raw="<2.0> <5.0> the circle spins", question="When?", truth=None, **changes):
    fields = {
        "question": question,
        "answer": parse_answer(raw, 20.0),
        "settings": "4 frames",
        "stage_s": {"decode": 0.1, "prefill": 0.02},
        "first_token_s": 0.12,
        "seconds": 0.5,
        "tokens": 9,
        "tokens_per_s": 20.0,
        "visual_tokens": 7,
        "truth": truth,
    }
    return ChatTurn(**{**fields, **changes})


def visit(*turns, name="clip.mp4"):
    return Visit(name=name, path=Path(name), duration_s=20.0, turns=turns)


@pytest.fixture
def clip():
    frames = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    return VideoClip(frames=frames, times_s=np.array([0.0, 6.0, 12.0, 18.0]), duration_s=20.0)


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, kind):
        return [attrs for _, attrs in self.tags if kind in attrs.get("class", "").split()]


def test_frames_bars_and_rows_lead_to_their_instants(clip):
    page = Tags(timeline(visit(turn(truth=Span(3.0, 6.0)), turn("<10.0> <12.0> it blinks; <15.0> to <16.0>")), clip))
    assert not page.open
    assert [float(button["data-time"]) for button in page.of("mm-frame")] == [0.0, 6.0, 12.0, 18.0]
    assert [float(button["data-time"]) for button in page.of("mm-bar")] == [2.0, 3.0, 10.0, 15.0]
    assert [float(button["data-time"]) for button in page.of("mm-span")] == [2.0, 10.0, 15.0]
    first, truth = page.of("mm-bar")[:2]
    assert first["style"] == "left:10.000%;width:15.000%"
    assert "mm-truth" in truth["class"]
    assert first["aria-label"] == "go to answer 1: 2.0 s – 5.0 s"


def test_only_the_latest_answers_have_bars_and_all_have_rows(clip):
    page = Tags(timeline(visit(*[turn()] * 9), clip))
    assert [bar["title"].split(":")[0] for bar in page.of("mm-bar")] == [f"answer {n}" for n in range(4, 10)]
    assert len(page.of("mm-span")) == 9


def test_an_answer_without_a_time_has_no_bar(clip):
    page = timeline(visit(turn("the circle spins")), clip)
    assert "mm-bar" not in page
    assert "no time was named" in page


def test_an_answer_that_it_does_not_happen_says_so(clip):
    page = timeline(visit(turn("It does not happen. The sun shines.")), clip)
    assert "mm-bar" not in page
    assert "it does not happen" in page
    assert "no time was named" not in page


@pytest.mark.parametrize("span", [Span(0.0, 0.0), Span(20.0, 20.0), Span(0.0, 20.0), Span(19.99, 20.0)])
def test_every_bar_can_be_seen_and_stays_inside(span):
    (bar,) = Tags(bars(20.0, [("A", (span,), "answer")])).of("mm-bar")
    left, width = map(float, re.findall(r"([\d.]+)%", bar["style"]))
    assert width >= 0.5
    assert left + width <= 100.001


@pytest.mark.parametrize("duration_s", [0.2, 1.0, 7.3, 60.0, 1800.0, 36000.0])
def test_the_axis_has_a_few_round_numbers(duration_s):
    ticks = re.findall(r'mm-tick" style="left:([\d.]+)%">([\d.]+)<', bars(duration_s, []))
    assert 3 <= len(ticks) <= 13
    assert float(ticks[0][1]) == 0
    assert all(float(left) == pytest.approx(100 * float(at) / duration_s, abs=0.2) for left, at in ticks)


NASTY = '<img src=x onerror=alert(1)> "quoted" ${alert(1)} {{value}} `x`'


def test_no_text_becomes_markup(clip, tmp_path):
    nasty = turn(f"<1.0> <2.0> {NASTY}", question=NASTY, settings=NASTY)
    encoded = EncodedVideo(clip=clip, sequences={}, kept=np.ones((4, 2, 2), bool), token_counts={"encoder": 4})
    pages = [
        timeline(visit(nasty, name=NASTY), clip),
        sight(nasty, encoded),
        comparison([nasty, nasty]),
        bars(9.0, [(NASTY, (), "answer")]),
    ]
    for page in pages:
        assert not [tag for tag, attrs in Tags(page).tags if "onerror" in attrs]
        assert "${" not in page
        assert "{{" not in page
        assert "`" not in page
    assert safe(NASTY).count("<") == 0
    assert "<img" not in subtitles(visit(nasty))
    assert all(
        path.parent == tmp_path for path in export(visit(nasty, name="../../" + NASTY), None, tmp_path, "m", None)
    )


def test_dropped_patches_are_dark(clip):
    kept = np.zeros((4, 2, 2), bool)
    kept[:, 0, 1] = True
    encoded = EncodedVideo(clip=clip, sequences={}, kept=kept)
    picture = dimmed(encoded, 1)
    side = picture.shape[0]
    assert side >= 128
    whole = clip.frames[1].repeat(side // 8, 0).repeat(side // 8, 1)
    half = side // 2
    np.testing.assert_array_equal(picture[:half, half:], whole[:half, half:])
    assert picture[half:].mean() < 0.3 * whole[half:].mean()
    np.testing.assert_array_equal(dimmed(EncodedVideo(clip=clip, sequences={}), 1), whole)


def test_the_panel_tells_tokens_and_seconds(clip):
    counts = {"encoder": 64, "reducers": 32, "fast": 4, "slow": 3}
    encoded = EncodedVideo(clip=clip, sequences={}, kept=np.ones((4, 4, 4), bool), token_counts=counts)
    assert [row[1] for row in token_rows(encoded)] == ["64", "32", "4", "3", "7"]
    rows = dict(time_rows(turn()))
    assert rows["decode the video"] == "0.100"
    assert rows["encode the frames"] == "kept from before"
    assert rows["question to first token"] == "0.120"
    page = sight(turn(), encoded)
    assert not Tags(page).open
    assert page.count("mm-seen") == 4


def test_a_comparison_tells_overlap_where_the_truth_is_known():
    page = comparison([turn(truth=Span(2.0, 6.0)), turn("no time", truth=Span(2.0, 6.0))])
    assert "75%" in page
    assert "0%" in page
    assert "overlap" not in comparison([turn(), turn()])


def test_subtitles_are_in_order_and_readable():
    text = subtitles(visit(turn("<10.0> <12.0> later & <3>"), turn("<1.5> <1.5> at once --> now"), turn("no time")))
    blocks = text.strip().split("\n\n")
    assert blocks[0] == "WEBVTT"
    assert blocks[1] == "00:00:01.500 --> 00:00:01.501\nat once --&gt; now"
    assert blocks[2] == "00:00:10.000 --> 00:00:12.000\nlater &amp; 3.0 s"
    assert len(blocks) == 3


def test_exported_files_hold_what_was_answered(clip, tmp_path):
    asked = visit(turn(truth=Span(2.0, 6.0)), turn("it spins"), name="my clip (1).mp4")
    paths = export(asked, clip, tmp_path, "tiny", "synthetic only")
    assert [path.name for path in paths] == ["my-clip-1.json", "my-clip-1.vtt", "my-clip-1.png"]
    exported = json.loads(paths[0].read_text())
    assert exported == answers(asked, "tiny", "synthetic only")
    assert [answer["spans"] for answer in exported["answers"]] == [[[2.0, 5.0]], []]
    assert exported["answers"][0]["truth"] == [2.0, 6.0]
    assert paths[2].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("time_s", "words"), [(0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1:00.0"), (62.4, "1:02.4"), (3600, "60:00.0")]
)
def test_seconds_as_people_read_them(time_s, words):
    assert seconds(time_s) == words
    assert interval(Span(0.0, time_s)) == f"0.0 s – {words}"
    assert readable(f"at <{time_s}>") == f"at {words}"


def test_a_session_keeps_its_videos_and_their_turns():
    session = Session().with_visit(visit(name="a"), 2).with_visit(visit(turn(), name="b"), 2)
    assert session.visit.name == "b"
    returned = session.with_visit(session.visits["a"].asked(turn(), 5), 2)
    assert [len(returned.visits[name].turns) for name in "ab"] == [1, 1]
    full = returned.with_visit(visit(name="c"), 2)
    assert list(full.visits) == ["a", "c"]
    many = visit()
    for _ in range(7):
        many = many.asked(turn(), 5)
    assert len(many.turns) == 5
