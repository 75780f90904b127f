"""int8 layers: close to float32, in every decoding and with a kept prefix, and refused where they cannot be."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmllm import VideoQA
from mmllm.errors import ConfigError
from mmllm.llm.int8 import Int8Linear, is_int8, largest_weight
from mmllm.runtime.fingerprint import fingerprint
from mmllm.tokens import VideoClip


@pytest.fixture(scope="module")
def default():
    return VideoQA.from_pretrained("default")


@pytest.fixture(scope="module")
def int8():
    return VideoQA.from_pretrained("default", quantize="int8")


@pytest.fixture(scope="module")
def clip():
    frames = torch.randint(0, 256, (50, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return VideoClip(frames=frames.numpy(), times_s=torch.arange(50.0).double().numpy(), duration_s=50.0)


def test_every_linear_layer_of_the_llm_and_its_head_are_int8_and_nothing_else(default, int8):
    linear = [name for name, part in default.model.named_modules() if type(part) is nn.Linear]
    left = [name for name, part in int8.model.named_modules() if type(part) is nn.Linear]
    assert left == [name for name in linear if not name.startswith("language_model.")]
    assert is_int8(int8.model.get_output_embeddings())
    weight = int8.model.get_input_embeddings().weight
    assert torch.equal(weight, default.model.get_input_embeddings().weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_the_product_of_rounded_numbers(bias, dtype):
    torch.manual_seed(0)
    layer, hidden = nn.Linear(64, 48, bias=bias).to(dtype), torch.randn(2, 5, 64).to(dtype)
    hidden[0, 1] = 0.0
    int8 = Int8Linear(layer)
    outputs = int8(hidden)
    weight, inputs = layer.weight.double(), hidden.double()
    rows, columns = weight.abs().amax(1, keepdim=True) / largest_weight(), inputs.abs().amax(-1, keepdim=True) / 127
    rounded = (inputs / columns.clamp(min=1e-30)).round() * columns
    exact = nn.functional.linear(rounded, (weight / rows).round() * rows, layer.bias.double() if bias else None)
    torch.testing.assert_close(outputs.double(), exact, rtol=0, atol=1e-5 if dtype is torch.float32 else 0.05)
    assert outputs.dtype is dtype
    assert (outputs - layer(hidden)).norm() / layer(hidden).norm() < 0.02
    assert torch.equal(int8(hidden[1:, 2:3]), outputs[1:, 2:3])  # a row does not depend on the others


@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", "AVX512_CORE"])
def test_products_are_exact_with_the_instructions_of_other_processors(instructions):
    lines = (
        "import torch",
        "from mmllm.llm.int8 import Int8Linear, largest_weight",
        "for rows in (1, 7, 64):",
        "    layer, hidden = torch.nn.Linear(96, 48, bias=False), 1 + torch.randn(rows, 96)",
        "    layer.weight.data.abs_()  # all of one sign: sums are as large as they can be",
        "    int8 = Int8Linear(layer)",
        "    scale = hidden.abs().amax(-1, keepdim=True) / 127",
        "    exact = ((hidden / scale).round().double() @ int8.weight.double().T) * scale * int8.scale",
        "    assert (int8(hidden).double() - exact).abs().max() < 1e-4",
        "print(largest_weight())",
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) in (64, 127)


def test_logits_are_close(default, int8, clip):
    encoded = default.encode_video(clip)
    sequence = next(iter(encoded.sequences.values())).embeddings
    wanted, got = (qa.model.language_model(inputs_embeds=sequence).logits for qa in (default, int8))
    assert 0 < (wanted - got).norm() / wanted.norm() < 0.1


def test_answers_streams_and_drafts_agree_among_themselves(int8, clip):
    encoded = int8.encode_video(clip)
    questions = ["When does the red circle grow?", "When is the blue square on screen?"]
    alone = [int8.ask(int8.encode_video(clip), question).raw for question in questions]
    assert [answer.raw for answer in int8.ask_all(encoded, questions, decoding="token-recycling")] == alone
    assert int8.ask(encoded, questions[0]).raw == alone[0]  # behind the kept prefix


def test_int8_is_another_model_for_records_and_prefixes(default, int8):
    assert int8.identity()["weights"] != default.identity()["weights"]
    again = VideoQA.from_pretrained("default", quantize="int8")
    assert fingerprint(again.model) == fingerprint(int8.model)


def test_stages_can_be_changed_afterwards(int8, clip):
    fewer = int8.with_stages(reducers=["fastervlm:keep=4"])
    assert is_int8(fewer.model.language_model)
    assert fewer.ask(clip, "When does the red circle grow?").raw


def test_refusals(int8):
    with pytest.raises(ConfigError, match="quantised already"):
        int8.quantize()
    with pytest.raises(ConfigError, match="'int4': only int8 is known"):
        VideoQA.from_pretrained("default", quantize="int4")
    training = VideoQA.from_pretrained("default")
    training.model.train()
    with pytest.raises(ConfigError, match="being trained"):
        training.quantize()
    elsewhere = VideoQA.from_pretrained("default")
    elsewhere.model.to("meta")
    with pytest.raises(ConfigError, match="int8 is for CPUs, and the LLM is on meta"):
        elsewhere.quantize()


def test_an_int8_model_is_not_saved(int8, tmp_path):
    with pytest.raises(ConfigError, match="save the model before"):
        int8.model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
