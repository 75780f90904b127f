"""Time tokens: the arithmetic of the paper, the texts of the released code, and hostile answers."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmllm.errors import ConfigError, InputError
from mmllm.times.answers import Answer, Span, parse_answer
from mmllm.times.stamps import stamp
from mmllm.times.vocabulary import ClampCount, TimeTokens

TIMES = TimeTokens()
DURATIONS = st.floats(1.0, 1e5, allow_nan=False)
COUNTS = st.integers(2, 400)
VAL_1 = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "activitynet" / "val_1.json.gz"


def test_words_are_zero_based():
    assert TIMES.strings[0] == "<t0>"
    assert TIMES.strings[-1] == "<t99>"
    assert len(set(TIMES.strings)) == 100


@pytest.mark.parametrize("count", [1, 0, -3])
def test_too_few_tokens_are_refused(count):
    with pytest.raises(ConfigError, match=r"TimeTokens\.count"):
        TimeTokens(count=count)


@pytest.mark.parametrize(
    ("time_s", "duration_s", "token"),
    [
        (0, 50, 0),
        (50, 50, 99),
        (25, 50, 50),  # 49.5 goes to the even neighbour
        (0.5 * 11 / 99, 11.0, 0),
        (60, 50, 99),
        (-1, 50, 0),
        (math.inf, 50, 99),
        (-math.inf, 50, 0),
        (12.4, 61.07, 20),
        (30, 61.07, 49),
    ],
)
def test_encode(time_s, duration_s, token):
    assert TIMES.encode(time_s, duration_s) == token


@given(COUNTS, st.floats(-10, 2e5), DURATIONS)
def test_encode_is_numpys_rounding_of_the_published_formula(count, time_s, duration_s):
    expected = int(np.round(float(count - 1) * (time_s / duration_s)))
    times = TimeTokens(count=count)
    assert times.encode_unclamped(time_s, duration_s) == expected
    assert times.encode(time_s, duration_s) == min(max(expected, 0), count - 1)


@given(COUNTS, st.floats(0.01, 1e6), st.data())
def test_decode_then_encode_is_the_identity(count, duration_s, data):
    times = TimeTokens(count=count)
    token = data.draw(st.integers(0, count - 1))
    assert times.encode(times.decode(token, duration_s), duration_s) == token


@given(DURATIONS, st.integers(0, 99))
def test_seconds_of_two_decimals_encode_to_the_same_token(duration_s, token):
    assert TIMES.write(TIMES.read(f"<t{token}>", duration_s), duration_s) == f"<t{token}>"


@given(COUNTS, DURATIONS, st.floats(0, 1))
def test_quantisation_error_is_at_most_half_a_step(count, duration_s, position):
    times = TimeTokens(count=count)
    time_s = position * duration_s
    error_s = abs(times.decode(times.encode(time_s, duration_s), duration_s) - time_s)
    assert error_s <= duration_s / (2 * (count - 1)) * (1 + 1e-9)


@given(DURATIONS, st.floats(-5, 2e5), st.floats(-5, 2e5))
def test_order_of_tokens_is_order_of_times(duration_s, one, other):
    early, late = sorted([one, other])
    assert TIMES.encode(early, duration_s) <= TIMES.encode(late, duration_s)


@pytest.mark.parametrize("duration_s", [0, -1, math.nan, math.inf, None, "long"])
def test_durations_that_are_none_are_refused(duration_s):
    for use in (
        lambda: TIMES.encode(1, duration_s),
        lambda: TIMES.encode_unclamped(1, duration_s),
        lambda: TIMES.decode(1, duration_s),
        lambda: TIMES.write("no stamp", duration_s),
        lambda: TIMES.read("no token", duration_s),
        lambda: TIMES.dense_caption_target([], [], duration_s),
        lambda: parse_answer("no stamp", duration_s, TIMES),
    ):
        with pytest.raises(InputError, match="positive number of seconds"):
            use()


def test_times_that_are_none_are_refused():
    with pytest.raises(InputError):
        TIMES.encode(math.nan, 10)
    with pytest.raises(InputError):
        TIMES.encode_unclamped(math.inf, 10)


def test_decode_stays_inside_the_video():
    assert TIMES.decode(119, 50) == 50
    assert TIMES.decode(-1, 50) == 0
    assert TIMES.decode(99, 61.07) == 61.07


def test_clamps_are_counted():
    count = ClampCount()
    TIMES.encode(50.1, 50, count)  # past the end, but rounds to the last token: nothing is clamped
    assert (count.encoded, count.clamped) == (1, 0)
    TIMES.write("<60> <-3> <5>", 50, count=count)
    assert (count.encoded, count.clamped) == (3, 1)


def test_write_replaces_exactly_the_stamps():
    assert TIMES.write("<12.4> <30> Away from <12.4> to <30.>. Then <.5>", 61.07) == (
        "<t20> <t49> Away from <t20> to <t49>. Then <t1>"
    )
    untouched = "<-3> <1e3> < 5> <5 > <> <.> <t4> <1.2.3> <one> 12.4"
    assert TIMES.write(untouched, 61.07) == untouched
    assert TIMES.write("<<5>>", 10) == "<<t50>>"


def test_write_as_released_does_not_clamp():
    assert TIMES.write("<60> s of 50 s", 50, clamp=False) == "<t119> s of 50 s"
    assert TIMES.write("<60> s of 50 s", 50) == "<t99> s of 50 s"


def test_read_writes_seconds_of_two_decimals():
    assert TIMES.read("<t0> <t49> a <t99>", 61.07) == "<0.0> <30.23> a <61.07>"
    assert TIMES.read("<t1>", 9.9, template="{}s") == "0.1s"
    unknown = "<t100> <t-1> <t007> <T5> <t 5> <t99999999999>"
    assert TIMES.read(unknown, 61.07) == unknown


@given(st.floats(0, 1e300))
def test_a_stamp_reads_back_as_the_same_time(time_s):
    parsed = parse_answer(f"{stamp(time_s)} {stamp(1e300)}", 1e300)
    assert parsed.spans == (Span(time_s, 1e300),)


def test_stamps_of_impossible_times_are_refused():
    assert stamp(30) == "<30.0>"
    assert stamp(1e-5) == "<0.00001>"
    for time_s in (-1, math.nan, math.inf):
        with pytest.raises(InputError):
            stamp(time_s)


def test_event_target():
    assert TIMES.event_target(12.4, 30, 61.07) == "<t20> <t49>"
    assert TIMES.event_target(30, 60, 50, clamp=False) == "<t59> <t119>"


def test_dense_caption_target():
    timestamps, sentences = [[30, 50], [0, 20], [0, 10]], [" third", "second ", "  first. "]
    assert TIMES.dense_caption_target(timestamps, sentences, 50) == (
        "<t59> <t99> third <t0> <t40> second <t0> <t20> first."
    )
    assert TIMES.dense_caption_target(timestamps, sentences, 50, sort=True) == (
        "<t0> <t20> first. <t0> <t40> second <t59> <t99> third"
    )
    assert TIMES.dense_caption_target([], [], 50) == ""
    with pytest.raises(InputError, match="2 timestamps but 1 sentences"):
        TIMES.dense_caption_target([[0, 1], [1, 2]], ["one"], 5)
    with pytest.raises(InputError, match="pair"):
        TIMES.dense_caption_target([[0]], ["one"], 5)


def answer(text, duration_s=61.07, **flags):
    return parse_answer(text, duration_s, TIMES, **flags)


def test_an_annotated_answer():
    text = "<12.4> <30> The cook is away from the stove between <12.4> and <30>. He chops onions."
    parsed = answer(text, strict=True)
    assert parsed == Answer(
        text="The cook is away from the stove between <12.4> and <30>. He chops onions.",
        spans=(Span(12.4, 30.0),),
        raw=text,
        fallback=False,
    )


def test_a_generated_answer():
    parsed = answer("<t20> <t49> Between <t20> and <t49>.</s>")
    assert parsed.spans == (Span(12.34, 30.23),)
    assert parsed.text == "Between <12.34> and <30.23>."
    assert parsed.raw == "<t20> <t49> Between <t20> and <t49>.</s>"


@pytest.mark.parametrize(
    ("text", "sentence", "spans"),
    [
        ("<-3> <5.0> x <6.0>", "<-3>  x", [[5, 6]]),
        ("<20> <10> swapped", "swapped", [[10, 20]]),
        ("<50> <90> past the end", "past the end", [[50, 61.07]]),
        ("<70> <90> after the end", "after the end", [[61.07, 61.07]]),
        ("First <3> then <7> it ends", "First  then  it ends", [[3, 7]]),
        ("<t119> <t5> <t9> unknown word", "<t119>   unknown word", [[3.08, 5.55]]),
        ("<1> <2> <3> lone third", "<3> lone third", [[1, 2]]),
        ("<1> <2> and <8> to <5>", "and <8> to <5>", [[1, 2], [5, 8]]),
        ("<1> <2>, <3> - <4>, <1> until <2>, <9> x <10>", ", <3> - <4>, <1> until <2>, <9> x <10>", [[1, 2], [3, 4]]),
        ("<1> <2> at <3> he, from <4> to <6>, sings", "at <3> he, from <4> to <6>, sings", [[1, 2], [4, 6]]),
    ],
)
def test_which_times_an_answer_names(text, sentence, spans):
    parsed = answer(text)
    assert parsed.text == sentence
    assert [span.to_json() for span in parsed.spans] == spans
    assert not parsed.fallback


@pytest.mark.parametrize("text", ["", "never", "at <5> only", "<t5>", "<t100> <t101>", "<5 > <6 >", "</s>"])
def test_fewer_than_two_times_fall_back_to_the_whole_video(text):
    parsed = answer(text)
    assert parsed.fallback
    assert parsed.spans == (Span(0.0, 61.07),)
    with pytest.raises(InputError, match="start and an end"):
        answer(text, strict=True)


def test_annotations_hold_seconds_only():
    assert parse_answer("<t3> <1> <2> word", 10).text == "<t3>   word"
    assert parse_answer("<t3> <t4> word", 10).fallback


def test_the_sentence_of_a_fallback_is_unchanged():
    assert answer("It is at <5> only.").text == "It is at <5> only."


PIECES = st.sampled_from(
    ["<", ">", "t", "<t", "9" * 400, ".", "-", "e", " ", "</s>", "<1.5>", "<t7>", "٣", "\x00", "é"]
)


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)), st.floats(1e-300, 1e300))
def test_hostile_text_never_throws(text, duration_s):
    parsed = parse_answer(text, duration_s, TIMES)
    assert parsed.spans
    for span in parsed.spans:
        assert 0 <= span.start_s <= span.end_s <= duration_s
    json.dumps(parsed.to_json())
    TIMES.write(text, duration_s)


def test_long_hostile_text_is_read_in_linear_time():
    for text in ("<" * 200_000, "<" + "1" * 200_000, "<1>" + " " * 200_000 + "<2>" + " " * 200_000 + "<3>"):
        answer(text)


@pytest.mark.parametrize("ends", [(2, 1), (math.nan, 1), (0, math.inf)])
def test_impossible_spans_are_refused(ends):
    with pytest.raises(InputError):
        Span(*ends)


def test_ceiling_of_time_tokens_on_real_events():
    if not VAL_1.exists():
        pytest.skip("ActivityNet Captions annotations are not beside the repository")
    videos = json.loads(gzip.decompress(VAL_1.read_bytes())).values()
    events = [(*sorted(pair), video["duration"]) for video in videos for pair in video["timestamps"]]
    assert len(events) == 17_505
    for count, percent in {10: 72.2, 25: 86.2, 50: 92.4, 100: 95.9, 200: 98.3}.items():
        times = TimeTokens(count=count)
        total = 0.0
        for start, end, duration in events:
            near = [times.decode(times.encode(time_s, duration), duration) for time_s in (start, end)]
            both = max(min(end, near[1]) - max(start, near[0]), 0)
            either = end - start + near[1] - near[0] - both
            total += both / either if either else 0
        assert 100 * total / len(events) == pytest.approx(percent, abs=0.2)


def test_no_heavy_import():
    code = "import sys, mmllm.times.answers; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
