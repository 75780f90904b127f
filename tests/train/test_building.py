"""A model around published weights: the projector's pre-training by LLaVA's names."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from mmllm.errors import CheckpointError
from mmllm.train.building import build_model


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_the_projectors_pretraining_is_loaded_by_llavas_names(tiny_parts, tmp_path, suffix):
    weight, bias = torch.randn(64, 16), torch.randn(64)
    state = {"model.mm_projector.weight": weight, "model.mm_projector.bias": bias, "model.other": torch.ones(1)}
    file = tmp_path / f"mm_projector{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    model, _ = build_model(replace(tiny_parts, projector_weights=str(file)))
    assert torch.equal(model.visual_tokenizer.weight, weight)
    assert torch.equal(model.visual_tokenizer.bias, bias)


def test_a_projector_that_does_not_fit_is_refused(tiny_parts, tmp_path):
    file = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.weight": torch.randn(64, 8)}, file)
    for path, told in ((file, "bias"), (tmp_path / "gone.bin", "gone.bin")):
        with pytest.raises(CheckpointError, match=told):
            build_model(replace(tiny_parts, projector_weights=str(path)))
    (tmp_path / "text.bin").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"text\.bin"):
        build_model(replace(tiny_parts, projector_weights=str(tmp_path / "text.bin")))
