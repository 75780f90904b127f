"""Rendering: files in the agreed layout, a stopped render goes on as if nothing had happened, mixtures are refused."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmllm.commands.render import render_command
from mmllm.errors import ConfigError, InputError
from mmllm.evaluation.run import read_benchmark
from mmllm.synthetic.clips import SyntheticConfig, clip, video_id
from mmllm.synthetic.drawing import draw
from mmllm.synthetic.rendering import finished, render

av = pytest.importorskip("av")

SMALL = SyntheticConfig(train_videos=5, val_videos=2, max_duration_s=25.0)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "root"
    render(root, SMALL, workers=1, progress=False)
    return root


def test_annotations_follow_the_schemas_of_activitynet_rtl(rendered: Path) -> None:
    train, val = (json.loads((rendered / name).read_text()) for name in ("train.json", "val.json"))
    assert len(train) == 5
    for name, entry in train.items():
        assert re.fullmatch(r"v_[\w-]{11}", name)
        assert set(entry) == {"duration", "QA"}
        assert all(set(answer) == {"q", "a", "family"} for answer in entry["QA"])
    assert len({record["vid"] for record in val}) == 2
    for record in val:
        assert set(record) == {"vid", "question_id", "question", "answer", "duration", "family"}
        assert re.fullmatch(re.escape(record["vid"]) + r"_\d+", record["question_id"])
    videos = {path.stem for path in (rendered / "videos").iterdir()}
    assert videos == set(train) | {f"v_{record['vid']}" for record in val}


def test_the_decoder_agrees_on_duration_rate_and_pictures(rendered: Path) -> None:
    train = json.loads((rendered / "train.json").read_text())
    for index in range(5):
        name = f"v_{video_id(SMALL, 'train', index)}"
        with av.open(str(rendered / "videos" / f"{name}.mp4")) as container:
            decoded = list(container.decode(video=0))
        times_s = [float(frame.pts * frame.time_base) for frame in decoded]
        assert times_s == pytest.approx(list(np.arange(len(decoded)) / 5))
        assert times_s[-1] + float(decoded[-1].duration * decoded[-1].time_base) == pytest.approx(
            train[name]["duration"], abs=1e-9
        )
        world, questions = clip(SMALL, "train", index)
        assert [answer["q"] for answer in train[name]["QA"]] == [question.question for question in questions]
        drawn = draw(world, 64).astype(int)
        decoded_frames = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
        assert decoded_frames.shape == drawn.shape
        assert np.abs(decoded_frames - drawn).mean() < 5


def test_a_finished_root_is_left_alone(rendered: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in rendered.rglob("*")}
    render(rendered, SMALL, workers=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in rendered.rglob("*")} == before
    assert finished(rendered, SMALL)


def test_a_stopped_render_goes_on_to_the_same_files(rendered: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    render(root, SMALL, workers=1, progress=False)
    videos = sorted((root / "videos").iterdir())
    for path in videos[::2]:
        path.unlink()
    (root / "videos" / f".{videos[0].name}.1.part").write_bytes(b"half a clip")
    (root / "train.json").unlink()
    assert not finished(root, SMALL)
    render(root, SMALL, workers=1, progress=False)
    assert contents(root) == contents(rendered)


def test_a_split_without_clips_has_no_file(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, train_videos=0, val_videos=1)
    render(tmp_path, config, workers=1, progress=False)
    assert finished(tmp_path, config)
    assert not (tmp_path / "train.json").exists()
    assert read_benchmark(tmp_path).questions


@pytest.mark.slow
def test_several_processes_make_the_same_files_as_one(rendered: Path, tmp_path: Path) -> None:
    render(tmp_path / "root", SMALL, workers=2, progress=False)
    assert contents(tmp_path / "root") == contents(rendered)


def test_another_configuration_is_refused_by_the_fields_that_differ(rendered: Path) -> None:
    other = dataclasses.replace(SMALL, world="full", seed=3)
    with pytest.raises(InputError, match=r"seed \(0, not 3\), world \('easy', not 'full'\)") as refusal:
        render(rendered, other, workers=1, progress=False)
    assert "fps" not in str(refusal.value)


def test_what_is_not_ours_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(InputError, match=r"has train\.json but no synthetic\.json"):
        render(tmp_path, SMALL, workers=1, progress=False)
    with pytest.raises(InputError, match="is a file"):
        render(tmp_path / "train.json", SMALL, workers=1, progress=False)
    (tmp_path / "train.json").unlink()
    (tmp_path / "synthetic.json").write_text("[")
    with pytest.raises(InputError, match="cannot be read"):
        render(tmp_path, SMALL, workers=1, progress=False)


def test_clips_are_a_function_of_seed_split_and_index() -> None:
    longer = dataclasses.replace(SMALL, train_videos=1000, val_videos=1000)
    assert clip(SMALL, "train", 3) == clip(longer, "train", 3)
    seeds = {clip(SMALL, split, index)[0].texture_seed for split in ("train", "val") for index in range(20)}
    seeds |= {clip(dataclasses.replace(SMALL, seed=1), "train", index)[0].texture_seed for index in range(20)}
    assert len(seeds) == 60
    names = {video_id(longer, split, index) for split in ("train", "val") for index in range(1000)}
    assert len(names) == 2000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("world", "medium"),
        ("size", 65),
        ("size", 8),
        ("fps", 0),
        ("train_videos", -1),
        ("min_duration_s", 1.0),
        ("max_duration_s", 10.0),
        ("questions_per_video", 0),
        ("families", ()),
        ("families", ("visible", "visible")),
        ("families", ("visable",)),
        ("crf", 60),
    ],
)
def test_impossible_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        SyntheticConfig(**{field: value})  # type: ignore[arg-type]


def test_an_unknown_family_is_answered_with_the_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'visible'"):
        SyntheticConfig(families=("visable",))


def test_the_command_renders_and_closes_with_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    render_command(tmp_path / "out", videos=2, val_videos=1, families=("visible", "place"), workers=1)
    output = capsys.readouterr()
    assert "visible questions" in output.out
    assert "place questions" in output.out
    assert "MB in" in output.out
    assert "3/3 clips" in output.err
    assert len(list((tmp_path / "out" / "videos").glob("v_*.mp4"))) == 3


def test_clips_and_scenes_need_no_torch_and_no_video_library() -> None:
    code = (
        "import sys; from mmllm.synthetic.clips import SyntheticConfig, clip;"
        "from mmllm.synthetic.scenes import scene_batch;"
        "clip(SyntheticConfig(), 'train', 0); scene_batch(SyntheticConfig(), 0, 2);"
        "print({'torch', 'transformers', 'av', 'decord'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
