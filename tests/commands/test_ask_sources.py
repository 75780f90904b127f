"""What `mmllm ask` takes as a video, and what it says of options that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmllm.cli import main

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"


def asked(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a question about a video."""
    with pytest.raises(SystemExit) as exit_:
        main(["ask", words[0], "When?", *words[1:]])
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "options", "duration_s"),
    [
        ("frames_applefiles", (), 1.0),
        ("frames_webp", ("--fps", "2"), 2.5),
        ("animated.webp", (), 4.4),
        ("lecture_4h.mp4", (), 14400.0),
    ],
)
def test_odd_sources_are_asked(name, options, duration_s, capsys):
    code, output, _ = asked(capsys, str(CASES / name), "--json", "--frames", "4", *options)
    assert code == 0
    assert json.loads(output)["duration_s"] == pytest.approx(duration_s)


def test_frames_are_sampled_at_a_rate(capsys):
    code, output, _ = asked(capsys, str(CASES / "lecture_4h.mp4"), "--sample-fps", "0.001", "--json")
    assert code == 0
    assert json.loads(output)["duration_s"] == pytest.approx(14400.0)
    code, _, errors = asked(capsys, str(CASES / "frames_webp"), "--sample-fps", "1")
    assert code == 2
    assert "--sample-fps is for video files" in errors


def test_what_was_said_of_the_parts_is_in_the_json_and_before_the_answer(capsys):
    words = (str(CASES / "animated.webp"), "--frames", "4", "--chain", "2", "--chain-tokens", "4")
    code, output, errors = asked(capsys, *words, "--chain-steps", "answer", "--json")
    assert code == 0
    assert "ask in a chain: 3/3 steps" in errors
    steps = json.loads(output)["steps"]
    assert steps[0]["part"][0] == 0.0
    assert steps[0]["part"][1] == steps[1]["part"][0]
    code, output, _ = asked(capsys, *words)
    assert code == 0
    assert output.startswith("[0.0 s to ")
    assert len(output.strip().splitlines()) >= 3


def test_an_end_behind_the_end_is_told(capsys):
    code, _, errors = asked(capsys, str(CASES / "animated.webp"), "--frames", "4", "--end", "99")
    assert code == 0
    assert "--end 99 is behind the end of the video, which lasts 4.400 s" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--frames", "0"), "--frames 0: must be from 1"),
        (("--frames", "-3"), "--frames -3: must be from 1"),
        (("--fps", "5"), "--fps is the rate of folders"),
        (("--sample-fps", "0"), "--sample-fps 0: must be a positive number"),
        (("--sample-fps", "nan"), "--sample-fps nan: must be a positive number"),
        (("--sample-fps", "2", "--frames", "4"), "--sample-fps 2 and --frames 4 both say how many frames"),
        (("--chain", "0"), "chain must be a number of parts, 1 or more, or auto, not '0'"),
        (("--chain", "many"), "chain must be a number of parts, 1 or more, or auto, not 'many'"),
        (("--chain", "9", "--frames", "4"), "a chain of 9 parts needs as many frames, and 4 are sampled"),
        (("--chain-steps", "answer"), "--chain-steps belongs to --chain"),
        (("--chain", "2", "--chain-tokens", "0"), "--chain-tokens 0: must be from 1"),
        (("--chain", "2", "--chain-request", " "), "--chain-request is empty"),
        (("--start", "9"), "no part from 9 s; the video lasts 4.400 s"),
        (("--start", "3", "--end", "2"), "no part from 3 s to 2 s"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, capsys):
    code, _, errors = asked(capsys, str(CASES / "animated.webp"), *options)
    assert code == 2
    assert message in errors
    assert "None" not in errors


def test_no_frames_are_refused_in_python():
    from mmllm.inference.answering import VideoQA

    with pytest.raises(ValueError, match="num_frames must be a whole number from 1 to 2000000, not 0"):
        VideoQA.from_pretrained("default").encode_video(CASES / "animated.webp", num_frames=0)


def test_an_address_is_printed_as_written(capsys):
    code, _, errors = asked(capsys, "https://example.org/a//b.mp4")
    assert code == 2
    assert "https://example.org/a//b.mp4: an address, not a file; download it first" in errors
