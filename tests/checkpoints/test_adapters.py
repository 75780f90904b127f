"""Low-rank adapters: what is trained beside them, saved with them, and back in the model when they are merged."""

import copy

import pytest
import torch
from nearness import assert_near

from mmllm.checkpoints.adapters import merged_with, trained_whole, with_adapters
from mmllm.errors import CheckpointError, ConfigError

ATP = "atp:depths=0.3+0.6,ratio=0.5"
CLIP = "clip:image_size=32,patch_size=8,width=32,layers=3,heads=4,mlp_width=64"
IDS = torch.tensor([[1, 200, 5, 6, 7, 101, 103, 8, 2], [1, 200, 9, 5, 4, 102, 104, 3, 2]])
"""A video, a question, an answer."""
LABELS = IDS.masked_fill(torch.arange(9) < 5, -100)


@pytest.fixture
def build(make_model):
    """Makes a model of four layers with a frozen encoder."""

    def make(*reducers, layers=4, **fields):
        model = make_model(decoder={"num_hidden_layers": layers}, reducers=list(reducers), path="plain", **fields)
        model.freeze("encoder")
        return model

    return make


def test_what_is_trained_whole_is_read_off_the_model(build):
    model, thresholds = build(ATP, "random:keep=4", loss={"grounding_weight": 1.0}), ["reducers.0.stages.0"]
    thresholds.append("reducers.0.stages.1")
    assert set(trained_whole(model)) == {*thresholds, "visual_tokenizer", "grounding"}
    model.freeze("visual_tokenizer")
    model.encoder.requires_grad_(True)
    assert set(trained_whole(model)) == {*thresholds, "encoder", "grounding"}


def test_weights_that_cannot_be_saved_beside_adapters_are_refused(build):
    model = build(ATP)
    model.reducers[0].own = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match=r"reducers\.0: AtpReducer has to keep its weights in a module"):
        with_adapters(model, rank=2)


def test_only_the_modules_that_are_meant_are_trained_whole(build):
    """Names that end alike, such as that of a tower inside the encoder, are other modules."""
    model = build(encoder=CLIP)
    model.encoder.requires_grad_(True)
    adapted = with_adapters(model, rank=2)
    places = [name for name, module in adapted.named_modules() if type(module).__name__ == "ModulesToSaveWrapper"]
    assert places == [f"base_model.model.{name}" for name in ("encoder", "visual_tokenizer")]
    out = adapted(IDS, labels=LABELS, pixel_values_videos=torch.rand(2, 4, 3, 32, 32))
    out.loss.backward()
    merged = adapted.merge_and_unload()
    assert sum(weight.grad is not None for weight in merged.encoder.parameters()) > 10


def test_thresholds_of_atp_are_learned_beside_adapters_saved_and_merged(build, tmp_path):
    """The model's own reducer is trained, is called in every pass, and is there after merging."""
    model, other = build(ATP), build(ATP)
    before = copy.deepcopy(model.state_dict())
    videos = {"pixel_values_videos": torch.rand(2, 4, 3, 64, 64), "video_times_s": torch.arange(4.0).expand(2, 4)}
    reducer, adapted = model.reducers[0], with_adapters(model, rank=2).train()
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        adapted(IDS, labels=LABELS, **videos).loss.backward()
        optimizer.step()
    adapted.eval()
    learned = adapted(IDS, **videos).logits
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload()
    assert merged is model
    assert merged.llm_stages == [reducer]
    moved = {name for name, weight in merged.state_dict().items() if not torch.equal(weight, before[name])}
    assert {f"reducers.0.stages.{i}.{head}.bias" for i in (0, 1) for head in ("head_r", "head_s")} <= moved
    assert "visual_tokenizer.weight" in moved
    assert not {name for name in moved if name.startswith("encoder.")}

    loaded = merged_with(other, tmp_path)
    assert set(loaded.state_dict()) == set(before)
    for whole in (merged, loaded):
        for name, weight in merged.state_dict().items():
            assert_near(whole.state_dict()[name], weight)
        assert_near(whole.eval()(IDS, **videos).logits, learned)


def test_weights_that_a_part_keeps_frozen_stay_frozen(build):
    """DiffRate's candidates are weights by their names in checkpoints, and are not to be learned."""
    model = build("diffrate:target=0.9,granularity=1", encoder=CLIP)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad and "reducers" in name}
    assert trained
    adapted = with_adapters(model, rank=2)
    learned = {name for name, weight in adapted.named_parameters() if weight.requires_grad and "reducers" in name}
    prefix = "base_model.model.reducers.0.rates.modules_to_save.default."
    assert learned == {prefix + name.removeprefix("reducers.0.rates.") for name in trained}


def test_adapters_of_another_model_are_refused(build, tmp_path):
    with_adapters(build(ATP), rank=2).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="do not fit their model"):
        merged_with(build(ATP, encoder="tiny:width=32,heads=2,channels=8+8+8"), tmp_path)
