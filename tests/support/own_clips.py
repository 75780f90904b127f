"""Own clips with questions, a tiny model to start from, and processes that are forked, so that nothing is imported
again."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import shutil
import socket
import threading
import traceback

import pytest
import torch
from tqdm.std import tqdm

from mmllm.modeling.blending import BlendConfig
from mmllm.train.model_config import DecoderConfig, ModelConfig

tqdm.set_lock(threading.RLock())  # its own one is shared by forked processes: a killed one would keep it for ever

TINY = ModelConfig(
    encoder="tiny:width=16,heads=2,channels=8+8+8",
    path="slowfast:image_frames=8",
    decoder=DecoderConfig(width=64, layers=2, mlp_width=128),
    num_frames=8,
    blend=BlendConfig(rms=0.3, time_anchor=3.0),
)


@pytest.fixture(scope="session")
def own_clips(tmp_path_factory):
    """A folder with six clips in `videos/` and `clips.jsonl`, one question with its span for each."""
    from mmllm.synthetic.clips import SyntheticConfig
    from mmllm.synthetic.rendering import render

    root = tmp_path_factory.mktemp("own")
    config = SyntheticConfig(train_videos=6, val_videos=0, min_duration_s=8, max_duration_s=10, families=("visible",))
    render(root, config, workers=1, progress=False)
    rows = own_rows(root)
    (root / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def own_rows(root):
    """A row for each clip of a rendered set: the first question about time."""
    from mmllm.times.answers import parse_answer

    rows = []
    for vid, entry in json.loads((root / "train.json").read_text()).items():
        answers = [(qa["q"], parse_answer(qa["a"], entry["duration"])) for qa in entry["QA"]]
        question, answer = next((q, a) for q, a in answers if not a.fallback)
        rows.append({
            "id": vid,
            "video": f"videos/{vid}.mp4",
            "question": question,
            "answer": answer.text,
            "spans": [answer.spans[0].to_json()],
        })  # fmt: skip
    return rows


@pytest.fixture
def copied_clips(own_clips, tmp_path):
    """A copy of the clips that a test may change."""
    return shutil.copytree(own_clips, tmp_path / "own")


@pytest.fixture(scope="session")
def tiny_parts():
    """The stages of a tiny model."""
    return TINY


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a tiny model with random weights."""
    from mmllm.train.building import build_model

    folder = tmp_path_factory.mktemp("base")
    for part in build_model(TINY):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fork():
    """Starts a process that calls a function, see `forked`."""
    return forked


@pytest.fixture(scope="session")
def together():
    """Calls a function in several processes at once, see `run_together`."""
    return run_together


def forked(function, *arguments, **environment):
    """Starts a process that calls a function; it knows everything that is imported here."""

    def call():
        os.environ.update({name: str(value) for name, value in environment.items()})
        torch.set_num_threads(1)
        faulthandler.dump_traceback_later(100)  # tells where it hangs, if it does
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def run_together(count, function, *arguments):
    """Calls a function in several gloo processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everybody = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [forked(function, *arguments, RANK=rank, LOCAL_RANK=rank, **everybody) for rank in range(count)]
    for process in started:
        process.join(120)
    for process in started:
        process.kill()
        process.join()
    assert [process.exitcode for process in started] == [0] * count
