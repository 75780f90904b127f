"""Time spans in written answers: what is read, and above all what is not."""

import subprocess
import sys
import time

import pytest

from mmllm.errors import InputError
from mmllm.hosting.reading import read_spans, spoken
from mmllm.hosting.released_readers import lmms_eval_pairs, timelens_pairs
from mmllm.times.answers import Span

DURATION_S = 100.0
READ = {
    # JSON
    '```json\n[{"start": 1.5, "end": 2.0, "label": "opens 3 - 4 doors"}]\n```': [(1.5, 2)],
    '[{"start_time": "00:01.50", "end_time": "00:02"}, {"startTime": 5, "endTime": 8}]': [(1.5, 2), (5, 8)],
    '{"begin": "3.5s", "finish": "4 seconds"}': [(3.5, 4)],
    '{"00:23.00 - 00:48.00": "he opens the door", "00:50 - 01:01.5": "he leaves"}': [(23, 48), (50, 61.5)],
    '{"relevant_windows": [[1, 3], [5, 8.25]]}': [(1, 3), (5, 8.25)],
    "[[1, 3], [5, 8]]": [(1, 3), (5, 8)],
    '{"events": [{"timestamp": "12.5 - 17.0", "event": "he sits"}]}': [(12.5, 17)],
    '{"answer": "The event happens in 3.0 - 5.0 seconds."}': [(3, 5)],
    '{"a person opens 2 doors": [12.5, 17]}': [(12.5, 17)],
    'Sure: {"start": 2, "end": 4}. Before that, 0 - 1 s.': [(2, 4)],
    '[{"start": 1, "end": 2}, {"start": 3, "en': [(1, 2)],
    '{"start": 00:12, "end": 00:15}': [(12, 15)],
    "{'start': 1.0, 'end': 2.5}": [(1, 2.5)],
    # clocks
    "00:12 - 00:17": [(12, 17)],
    "From 0:01:12.5 to 0:01:17.25.": [(72.5, 77.25)],
    "He opens it at [00:12, 00:17] and again (00:20–00:25).": [(12, 17), (20, 25)],
    "Between 01:02 and 01:03.": [(62, 63)],
    "The event starts at 00:00:18 and ends at 00:00:23.": [(18, 23)],
    "At 12:34.5 until 12:40.": [(100, 100)],
    # numbers
    "The event happens in 12.5 - 17.0 seconds.": [(12.5, 17)],
    "12.5 - 17.0": [(12.5, 17)],
    "12.5s-17s": [(12.5, 17)],
    "**12.5s** - **17.0s**": [(12.5, 17)],
    "<12.5 seconds> to <17.0 seconds>": [(12.5, 17)],
    "It is from 12.5 to 17.0.": [(12.5, 17)],
    "between 3 and 5 secs": [(3, 5)],
    "[12.5, 17.0]": [(12.5, 17)],
    "The span is [12.5s, 17.0s], I think": [(12.5, 17)],
    "3.0 to 4.0 seconds, then 7.0 to 9.0 seconds, then 3.0 - 4.0 seconds": [(3, 4), (7, 9)],
    "2 to 3 people walk in 4 - 5 seconds": [(4, 5)],
    "He turns 1 dial from 4 seconds until 9 seconds.": [(4, 9)],
    "17.0 - 12.5 seconds": [(12.5, 17)],
    "5 - 500 seconds": [(5, 100)],
    "-3.0 to 5.0 seconds": [(0, 5)],
    "<think>0 - 1 seconds</think><answer>12.54 to 17.83</answer>": [(12.54, 17.83)],
    "It may be 1 - 2 s.</think>\n3 - 4 s": [(3, 4)],
    "<answer>5 - 6 s": [(5, 6)],
    # sentences
    "It starts at 12.5 seconds. It ends at 17.0 seconds.": [(12.5, 17)],
    "Start time: 3, end time: 8": [(3, 8)],
    "The start time for this event is 0 seconds, and the end time is 12 seconds.": [(0, 12)],
    "The person begins to pour at 4.5 s\nand finishes at 9 s": [(4.5, 9)],
    "It begins at 1 s and ends at 2 s; it begins again at 5 s and ends at 6 s.": [(1, 2), (5, 6)],
    "It does not happen before 5 s. It happens in 12 - 17 s": [(12, 17)],
}
NOTHING = [
    "", "   ", "I do not know.", "at 5 seconds", "a man with 3 dogs", "2 to 3 people walk.", "1 - 2 minutes",
    "frames 10 to 20.", "Frames from 10 to 20.", "aged 20-30.", "The ratio is 16:9.", "on 2024-05-06.",
    '{"bbox_2d": [1, 2, 3, 4]}', '{"point_2d": [10, 20]}', '{"start_frame": 3, "end_frame": 8}',
    '{"start": NaN, "end": 3}', '{"start": 1e999, "end": 3}', '{"start": true, "end": false}',
    "<think>12 - 17 seconds", "It starts at 4 s.", "It ends at 4 s.", "The person starts 2 cars and ends 3 talks.",
    "[" * 5000, "{" * 5000 + '"', '{"a":' * 3000, "9" * 5000,
]  # fmt: skip
ABSENT = [
    "The event does not happen in the video.", "It never occurs.", "This doesn't appear anywhere in this clip.",
    "[]", '{"spans": []}', '{"start": null, "end": null}', "None", "no such event", "There is no such moment.",
    "There is no matching segment.", "The event is not present in the video.",
    "<think>1 - 2 s?</think>It didn't happen.",
    "It does not happen in the video, which lasts from 0 to 100 seconds.", "<answer>never</answer>",
]  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_spans_are_read(text):
    read = read_spans(text, DURATION_S)
    assert read.spans == tuple(Span(*map(float, pair)) for pair in READ[text])
    assert not read.fallback


@pytest.mark.parametrize("text", NOTHING, ids=lambda text: text[:40])
def test_nothing_else_is_a_time(text):
    read = read_spans(text, DURATION_S)
    assert (read.spans, read.fallback) == ((), True)
    assert read.answer(text, DURATION_S).spans == (Span(0, DURATION_S),)


@pytest.mark.parametrize("text", ABSENT)
def test_that_it_does_not_happen_is_an_answer(text):
    read = read_spans(text, DURATION_S)
    assert (read.spans, read.fallback, read.rule) == ((), False, "absent")
    answer = read.answer(text, DURATION_S)
    assert (answer.spans, answer.fallback, answer.raw) == ((), False, text)


def test_swapped_and_clipped_spans_are_counted():
    read = read_spans("9 - 3 seconds, 4 - 5 seconds, 300 - 99 seconds", DURATION_S)
    assert read.spans == (Span(3, 9), Span(4, 5), Span(99, 100))
    assert (read.swapped, read.clipped) == (2, 1)
    unclipped = read_spans("90 - 300 s", None)
    assert (unclipped.spans, unclipped.clipped) == ((Span(90, 300),), 0)


def test_the_unit_is_that_of_bare_numbers():
    assert read_spans("from 25 to 50.", 40, "percent").spans == (Span(10, 20),)
    assert read_spans("25% - 50%", 40, "percent").spans == (Span(10, 20),)
    assert read_spans('{"start": 250, "end": 500}', 40, "permille").spans == (Span(10, 20),)
    assert read_spans("12 - 17 seconds", 40, "permille").spans == (Span(12, 17),)
    assert read_spans("00:12 - 00:17", 40, "permille").spans == (Span(12, 17),)
    assert read_spans("from 12 to 17.", 40, "clock").fallback
    assert read_spans("00:12 to 00:17.", 40, "clock").spans == (Span(12, 17),)
    assert read_spans("from 20 to 120.", 40, "percent").clipped == 1


def test_the_text_is_what_was_said():
    assert spoken("<think>hm</think>\n<answer> At 3 - 4 s. </answer>") == "At 3 - 4 s."
    assert read_spans("<think>hm</think> At 3 - 4 s.", 10).answer("raw", 10).text == "At 3 - 4 s."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 10.0), "must be a text"),
        (("3 - 4 s", 0.0), "duration"),
        (("3 - 4 s", float("nan")), "duration"),
        (("3 - 4 s", 10.0, "minutes"), "allowed are s, clock, percent, permille"),
        (("3 - 4 s", None, "percent"), "need its duration"),
        (("3 - 4 s", 10.0, "s", "other"), "allowed are mmllm, lmms-eval, timelens"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        read_spans(*arguments)


@pytest.mark.parametrize("piece", ["1 - ", "1:02 - ", "9", " ", "start ", "not ", "[1, ", '{"a": ', "<answer>", "1 s "])
@pytest.mark.parametrize("reader", ["mmllm", "lmms-eval", "timelens"])
def test_long_noise_is_read_quickly(piece, reader):
    begin = time.process_time()
    read_spans(piece * (20_000 // len(piece)), DURATION_S, reader=reader)
    assert time.process_time() - begin < 5


def test_nothing_heavy_is_loaded():
    """The rewards and the scorers read answers without a model."""
    code = (
        "import sys, mmllm.hosting.reading; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- the released readers ------------------------------------------------------------------------------------

RELEASED = [
    ("The event happens from 3.5s to 7s.", [(3.5, 7.0)], []),
    ("It starts now. 00:01 - 00:02 and 00:07", [(0.0, 1.0)], [(1.0, 2.0)]),
    ("The event happens in 12.5 - 17.0 seconds.", [(12.5, 17.0)], [(12.5, 17.0)]),
    ("17.0 - 12.5 seconds", [], [(17.0, 12.5)]),
    ("From 00:12 to 00:17.", [], [(12.0, 17.0)]),
    ("The event starts at 00:00:18 and ends at 00:00:23.", [], [(18.0, 23.0)]),
    ("It starts at 3 s.\nIt ends at 8.5 seconds.", [(3.0, 8.5)], [(3.0, 8.5)]),
    ("Start time: 3, end time: 8", [], [(3.0, 8.0)]),
    ("3 to 4 and 7 to 9 seconds", [], [(3.0, 4.0), (7.0, 9.0)]),
    ("2 people stop at 5 seconds", [], [(2.0, 5.0)]),
    ("a man with 3 dogs sees 4 cats", [], [(3.0, 4.0)]),
    ("[12.5, 17.0]", [], [(12.5, 17.0)]),
    ("00:12 - 00:17 and 00:30", [], [(12.0, 17.0)]),
    ("1.2.3 - 4", [], [(2.3, 4.0)]),
    ("no time", [], []),
    ("A specific example is : 20.8 - 30.0 seconds. 1 - 2", [], [(20.8, 30.0), (1.0, 2.0)]),
    ("starts at 18.5s\nends at 20s", [], []),
    ("12.5 to 17", [], [(12.5, 17.0)]),
    ("1:2:03 to 1:05", [], [(123.0, 65.0)]),
    ("12:34:567 - 3", [], [(567.0, 3.0)]),
    ("ends 5\nhappens 3", [(3.0, 5.0)], [(5.0, 3.0)]),
]
"""An answer, and the pairs that lmms-eval v0.6 (`charades_sta`) and TimeLens read from it: facts, by running both."""


@pytest.mark.parametrize(("text", "lmms_eval", "timelens"), RELEASED)
def test_released_readers_read_as_released(text, lmms_eval, timelens):
    assert lmms_eval_pairs(text) == lmms_eval
    assert timelens_pairs(text) == timelens


def test_released_readers_clip_nothing_and_a_backward_pair_overlaps_nothing():
    assert read_spans("It happens in 90 - 300.", 100, reader="lmms-eval").spans == (Span(90, 300),)
    backward = read_spans("17.0 - 12.5 seconds", 100, reader="timelens")
    assert (backward.spans, backward.swapped, backward.fallback) == ((Span(17, 17),), 1, False)
    assert read_spans("no time", 100, reader="timelens").fallback
