"""Which names are in which frame: as staged, as the file says, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from own_pictures import pictures_folder

from mmllm.errors import InputError
from mmllm.synthetic.clips import SyntheticConfig, video_id
from mmllm.synthetic.rendering import ON_SCREEN, render
from mmllm.synthetic.things.clips import things_clip
from mmllm.synthetic.things.config import ThingsConfig
from mmllm.train.named_frames import NamedFrames, read_on_screen, shown_at

__all__ = ["pictures_folder"]


def test_the_file_of_a_set_says_what_was_staged(pictures_folder, tmp_path):
    pictures = ThingsConfig(pictures=str(pictures_folder))
    config = SyntheticConfig(
        world="things", things=pictures, train_videos=2, val_videos=3, min_duration_s=10, max_duration_s=12, size=32
    )
    render(tmp_path, config, workers=1, progress=False)
    on_screen = read_on_screen(tmp_path)
    assert len(on_screen) == 5
    for split, count in (("train", 2), ("val", 3)):
        for index in range(count):
            staging = things_clip(config, split, index).staging
            spans = on_screen[video_id(config, split, index)]
            names = sorted(set(staging.world.names))
            times_s = np.arange(staging.world.frames) / staging.world.fps
            shown = shown_at(torch.from_numpy(times_s).float(), spans, names)
            assert np.array_equal(shown.numpy().T, np.stack([staging.frames(name) for name in names]))
    assert all("on_screen" not in entry for entry in json.loads((tmp_path / "train.json").read_text()).values())


def test_several_spans_of_a_name_and_names_that_are_never_there():
    shown = shown_at(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), {"kite": [(1.0, 2.0), (3.0, 9.0)]}, ["apple", "kite"])
    assert shown.int().T.tolist() == [[0, 0, 0, 0, 0], [0, 1, 0, 1, 1]]


def test_rows_are_videos_in_an_order_that_the_seed_decides():
    names = {f"{number}.mp4": {"kite" if number % 2 else "owl": [(0.0, 1.0)]} for number in range(5)}

    def load(video):
        return SimpleNamespace(
            features=torch.full((1, 2, 1, 1), float(Path(video).stem)), times_s=torch.tensor([[0.0, 5.0]])
        )

    cache = SimpleNamespace(load=load)
    videos = {Path(name): spans for name, spans in names.items()}
    rows = NamedFrames(videos, cache, rows=10, seed=3)
    assert rows.names == ["kite", "owl"]
    assert len(rows) == 10
    drawn = [rows[number] for number in range(10)]
    order = [int(row["features"][0, 0, 0]) for row in drawn]
    assert sorted(order[:5]) == sorted(order[5:]) == [0, 1, 2, 3, 4]
    assert order == [int(NamedFrames(videos, cache, rows=10, seed=3)[n]["features"][0, 0, 0]) for n in range(10)]
    for number, row in zip(order, drawn, strict=True):
        assert row["shown"].tolist() == [[number % 2 == 1, number % 2 == 0], [False, False]]


def test_without_names_there_is_nothing_to_point_at(tmp_path):
    assert read_on_screen(tmp_path) == {}
    with pytest.raises(InputError, match=ON_SCREEN):
        NamedFrames({}, None, rows=1, seed=0)


@pytest.mark.parametrize("content", [{"v_a": ["kite"]}, {"v_a": {"kite": [1.0]}}, {"v_a": {"kite": [["a", "b"]]}}])
def test_another_form_of_the_file_is_refused(tmp_path, content):
    (tmp_path / ON_SCREEN).write_text(json.dumps(content))
    with pytest.raises(InputError, match="when each thing is on screen"):
        read_on_screen(tmp_path)
