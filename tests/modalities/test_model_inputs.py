"""What the processor returns can be moved and cast without moving any time."""

import copy
import pickle

import numpy as np
import pytest
import torch

from mmllm.modalities.model_inputs import ModelInputs
from mmllm.modalities.video import VideoInputs

TIMES = torch.tensor([[0.0, 1795.3]])


def made(**fields):
    video = VideoInputs(pixels=torch.rand(1, 2, 3, 4, 4), times_s=TIMES, durations_s=torch.tensor([1799.3]), **fields)
    return ModelInputs({"input_ids": torch.tensor([[1, 2]]), **video.flat()})


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((torch.bfloat16,), {}),
        ((), {"dtype": torch.float16}),
        (("cpu", torch.bfloat16), {}),
        ((torch.device("cpu"),), {"dtype": torch.bfloat16}),
        ((), {"device": "cpu", "dtype": torch.bfloat16, "non_blocking": True}),
    ],
)
def test_pixels_are_cast_and_times_are_not(arguments, keywords):
    inputs = made().to(*arguments, **keywords)
    assert inputs["pixel_values_videos"].dtype in (torch.bfloat16, torch.float16)
    assert torch.equal(inputs["video_times_s"], TIMES)
    assert inputs["video_durations_s"].tolist() == [pytest.approx(1799.3)]
    assert inputs["video_times_s"].dtype == inputs["video_durations_s"].dtype == torch.float32
    assert inputs["input_ids"].dtype == torch.int64


def test_everything_moves_to_a_device():
    for inputs in (made().to("meta"), made().to("meta", torch.bfloat16), made().to(device="meta")):
        assert {value.device.type for value in inputs.values()} == {"meta"}
        assert inputs["video_times_s"].dtype == torch.float32


def test_doubles_stay_and_arrays_are_left_alone():
    inputs = ModelInputs({"video_times_s": TIMES.double(), "pixel_values": np.zeros(3)}).to(torch.bfloat16)
    assert inputs["video_times_s"].dtype == torch.float64
    assert inputs["pixel_values"].dtype == np.float64


def test_copies_stay_of_this_kind():
    for inputs in (copy.copy(made()), copy.deepcopy(made()), pickle.loads(pickle.dumps(made()))):
        assert type(inputs) is ModelInputs
        assert inputs.to(torch.bfloat16)["video_times_s"].dtype == torch.float32
