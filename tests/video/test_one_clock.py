"""info, check, ask, eval, finetune and the demo give every shared case the same length, frames, first and last time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmllm.app.engine import Engine
from mmllm.app.limits import DemoLimits
from mmllm.commands.info import info
from mmllm.datasets.check import check_annotations
from mmllm.errors import InputError
from mmllm.preprocessing.clip_reader import in_workers
from mmllm.tokens import VideoClip
from mmllm.train.rows import MediaLoader
from mmllm.video.quarantine import Quarantine

CASES = Path(__file__).resolve().parents[3] / "shared" / "data" / "cases"
VIDEOS = {
    "animated.webp": (4.4, 6, 0.0, 1.4),
    "anamorphic_64_45.mp4": (2.0, 50, 0.0, 1.96),
    "cook.mp4": (3.0, 75, 0.0, 2.96),
    "joined_clock_restarts.ts": (6.0, 150, 0.0, 5.96),
    "lecture_4h.mp4": (14_400.0, 240, 0.0, 14_340.0),
    "picture_starts_late.mp4": (6.0, 75, 2.0, 4.96),
    "still_end.mp4": (9.633, 20, 0.0, 0.633),
}
"""Length in seconds, number of frames, and when the first and the last are shown."""
FOLDERS = {"frames_applefiles": (1.0, 5, 0.0, 0.8), "frames_webp": (1.0, 5, 0.0, 0.8)}
NO_VIDEOS = ("no_index.mp4", "fault_65535x65535.gif", "fault_samples_30m_in_740_bytes.mp4")
FOLDER_FPS = 5.0


@pytest.fixture(scope="module")
def cases() -> Path:
    if not CASES.is_dir():
        pytest.skip("no ../shared/data/cases beside the repository")
    return CASES


def of_clip(clip: VideoClip) -> tuple[float, int, float, float]:
    """What a clip of frames from the first to the last says."""
    return clip.duration_s, clip.metadata["indices"][-1] + 1, float(clip.times_s[0]), float(clip.times_s[-1])


def of_info(path: Path, capsys) -> tuple[float, int, float, float]:
    capsys.readouterr()
    assert info((path,), json=True, fps=FOLDER_FPS if path.is_dir() else None) == 0
    row = json.loads(capsys.readouterr().out)
    return row["duration_s"], row["num_frames"], row["first_frame_s"], row["last_frame_s"]


def of_finetune(path: Path, qa) -> tuple[float, float, float]:
    """Length, and the times of the first and the last frame."""
    inputs = MediaLoader(qa.processor).load("video", path)
    return inputs.lengths_s[0], float(inputs.times_s[0, 0]), float(inputs.times_s[0, -1])


@pytest.mark.filterwarnings("ignore::mmllm.video.errors.ClockBroken")
@pytest.mark.parametrize("name", [*VIDEOS, *FOLDERS])
def test_all_agree(name, cases, untrained_qa, capsys):
    path, expected = cases / name, (VIDEOS | FOLDERS)[name]
    length_s, _, first_s, last_s = expected
    same = pytest.approx(expected, abs=0.03)
    assert of_clip(untrained_qa.processor.load(path)) == same  # ask
    assert of_clip(untrained_qa.processor.clip_reader()(path)) == same  # eval
    assert of_finetune(path, untrained_qa) == pytest.approx((length_s, first_s, last_s), abs=0.03)
    assert of_info(path, capsys) == same
    if path.is_file():
        engine = Engine(untrained_qa, DemoLimits(video_s=24 * 3600.0))
        encoded, _ = engine.encode_video(path, engine.own_settings)
        assert of_clip(encoded.clip) == same
        assert encoded.duration_s == pytest.approx(length_s, abs=0.03)


@pytest.mark.filterwarnings("ignore::mmllm.video.errors.ClockBroken")
@pytest.mark.parametrize("name", [*VIDEOS, *FOLDERS])
def test_check_compares_annotations_with_the_same_length(name, cases, tmp_path):
    length_s = (VIDEOS | FOLDERS)[name][0]

    def problems(duration_s: float) -> list[str]:
        row = {
            "video": str(cases / name),
            "duration": duration_s,
            "conversations": [{"from": "human", "value": "<video>\nWhen?"}, {"from": "gpt", "value": "Then."}],
        }
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n")
        return check_annotations(path, cases)["problems"]

    assert problems(length_s) == []
    wrong = problems(2 * length_s + 60)
    assert len(wrong) == 1
    assert f"lasts {length_s:.2f} s" in wrong[0]


@pytest.mark.filterwarnings("ignore::mmllm.video.errors.ClockBroken")
def test_worker_processes_of_eval_and_finetune_see_the_same(cases, untrained_qa):
    paths = [cases / name for name in VIDEOS]
    reading = Quarantine(untrained_qa.processor.clip_reader(), in_workers(1))
    clips = dict(reading.results(paths))
    assert reading.failures == []
    for number, expected in enumerate(VIDEOS.values()):
        assert of_clip(clips[number]) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("name", NO_VIDEOS)
def test_all_refuse_what_is_no_video(name, cases, untrained_qa, capsys):
    path = cases / name
    assert info((path,), json=True) == 2
    kind = json.loads(capsys.readouterr().out)["error"]["type"]
    engine = Engine(untrained_qa, DemoLimits())
    for read in (
        untrained_qa.processor.load,
        untrained_qa.processor.clip_reader(),
        lambda path: of_finetune(path, untrained_qa),
        lambda path: engine.encode_video(path, engine.own_settings),
    ):
        with pytest.raises(InputError) as raised:
            read(path)
        assert type(raised.value).__name__ == kind
