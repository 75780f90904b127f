"""Where weights are and come from: on disk, missing in a file, resized, adapted, replaced layer by layer."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoTokenizer
from versions import puts_whole_models_on_disk

from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA

VIDEO = 200
IDS = torch.tensor([[5, VIDEO, 6, 7, 0, 0], [5, VIDEO, 3, VIDEO, 8, 9]])
MASK = (IDS != 0).long()
CLIP = "clip:image_size=64,patch_size=16,width=16,layers=3,heads=2,mlp_width=32"
SIGLIP = "siglip:image_size=32,patch_size=16,width=16,layers=3,heads=2,mlp_width=32,pooling_head=true"


def inputs(side=64):
    pixels = torch.randn(3, 6, 3, side, side, generator=torch.Generator().manual_seed(1))
    return {"input_ids": IDS, "attention_mask": MASK, "pixel_values_videos": pixels}


def logits(model, side=64):
    with torch.no_grad():
        return model(**inputs(side)).logits


MODELS = {
    "time anchors": {"blend": {"rms": 0.3, "time_anchor": 1.0}, "loss": {"grounding_weight": 1.0}},
    "mqt": {"visual_tokenizer": "mqt:queries=4,tokens=4,heads=2", "path": "plain"},
    "stage inside the LLM": {"reducers": ["atp:depths=0.5,ratio=0.8"]},
    "stage inside CLIP": {"encoder": CLIP, "reducers": ["diffrate:target=0.95,granularity=1"]},
    "score of a pooling head": {"encoder": SIGLIP, "reducers": ["fastervlm:keep=2,score=probe_attention"]},
}


@pytest.mark.parametrize(
    ("name", "on_disk"),
    [pytest.param(name, "all", marks=puts_whole_models_on_disk) for name in MODELS]
    + [("time anchors", "encoder"), ("time anchors", "language_model"), ("stage inside CLIP", "reducers")],
)
def test_parts_on_disk_answer_as_in_memory(make_model, tmp_path, name, on_disk):
    model = make_model(**MODELS[name])
    side = model.config.stage("encoder").image_size
    model.save_pretrained(tmp_path / "model")
    wanted = logits(model, side)
    where = {"": "disk"} if on_disk == "all" else {**{n: "cpu" for n, _ in model.named_children()}, on_disk: "disk"}
    apart = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", device_map=where, offload_folder=tmp_path / "disk"
    ).eval()
    assert any(weight.is_meta for weight in apart.parameters()) or on_disk == "reducers"
    assert torch.equal(logits(apart, side), wanted)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(apart.generate(**inputs(side), **options), model.generate(**inputs(side), **options))
    assert apart.input_device == torch.device("cpu")


@puts_whole_models_on_disk
def test_a_question_is_answered_from_disk(untrained_qa, short_clip, tmp_path):
    untrained_qa.model.save_pretrained(tmp_path / "model")
    untrained_qa.processor.save_pretrained(tmp_path / "model")
    apart = VideoQA.from_pretrained(tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "disk")
    assert apart.ask(short_clip, "When?", max_new_tokens=6) == untrained_qa.ask(short_clip, "When?", max_new_tokens=6)


def lacking(model, folder, *prefixes):
    """Saves the model without the tensors of these parts."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(prefixes)}
    model.save_pretrained(folder, state_dict=state)


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_a_file_lacks_are_drawn_as_in_a_new_model(make_model, tmp_path, name):
    fields = MODELS[name]
    model = make_model(**fields)
    parts = ("encoder", "reducers", "visual_tokenizer", "grounding")
    lacking(model, tmp_path, *parts)
    torch.empty(10_000_000).fill_(float("nan"))  # what was in memory before
    torch.manual_seed(5)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    again = make_model(**fields)
    for part, new in again.state_dict().items():
        drawn = loaded.state_dict()[part]
        if not part.startswith(parts):
            assert torch.equal(drawn, new), part
            continue
        assert drawn.isfinite().all(), part
        if new.unique().numel() == 1 or "pos_embed" in part:  # a constant
            assert torch.equal(drawn, new), part
        elif new.numel() > 50:
            torch.testing.assert_close(drawn.std(), new.std(), rtol=0.35, atol=0)
            assert not torch.equal(drawn, new), part


def test_one_missing_tensor_leaves_the_others_as_they_are(make_model, tmp_path):
    model = make_model()
    lacking(model, tmp_path, "encoder.position")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    different = [n for n, value in model.state_dict().items() if not torch.equal(value, loaded.state_dict()[n])]
    assert different == ["encoder.position"]
    assert loaded.encoder.position.abs().max() < 0.2


def test_a_new_model_is_drawn_as_before(make_model):
    """transformers must not draw our parts a second time: seeds would mean other weights."""
    encoder = make_model().encoder
    assert not encoder.embed.bias.eq(0).all()  # torch's own rule; transformers would write zeros


@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_keep_the_old_logits_and_survive_saving(make_model, tmp_path, tied):
    model = make_model(decoder={"tie_word_embeddings": tied})
    before = logits(model)
    model.resize_token_embeddings(130)
    assert model.config.text_config.vocab_size == model.language_model.config.vocab_size == 130
    assert model.language_model.vocab_size == 130
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    for resized in (model, again):
        assert torch.equal(logits(resized)[..., :120], before)
        assert logits(resized).shape[-1] == 130
        same = resized.get_input_embeddings().weight.data_ptr() == resized.get_output_embeddings().weight.data_ptr()
        assert same == tied
    assert again.config.time_token_ids == list(range(100, 110))
    assert again.config.video_token_id == VIDEO
    assert again(**inputs(), labels=IDS.masked_fill(MASK == 0, -100)).loss.isfinite()


def test_new_words_of_a_tokenizer_get_rows(untrained_qa, short_clip, tmp_path):
    untrained_qa.model.save_pretrained(tmp_path)
    untrained_qa.processor.save_pretrained(tmp_path)
    qa = VideoQA.from_pretrained(tmp_path)
    wanted = qa.ask(short_clip, "When?", max_new_tokens=5)
    qa.processor.tokenizer.add_tokens(["<action>", "<scene>"])
    qa.model.resize_token_embeddings(len(qa.processor.tokenizer), mean_resizing=False)
    with torch.no_grad():  # as long as they are not trained, they are not said
        qa.model.get_output_embeddings().weight[-4:] = 0
    qa.model.save_pretrained(tmp_path)
    qa.processor.save_pretrained(tmp_path)
    again = VideoQA.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("<action>", add_special_tokens=False).input_ids
    assert max(ids) < again.model.get_input_embeddings().num_embeddings
    assert again.ask(short_clip, "When?", max_new_tokens=5).text == wanted.text


def test_time_tokens_keep_their_rows(make_model):
    with pytest.raises(ConfigError, match="time tokens have ids up to 109"):
        make_model().resize_token_embeddings(105)


@pytest.mark.parametrize("name", [*MODELS, "mlp"])
def test_adapters_on_all_linear_layers_are_trained_and_merged(make_model, name):
    from peft import LoraConfig, get_peft_model

    model = make_model(**MODELS.get(name, {"visual_tokenizer": "mlp"}))
    side = model.config.stage("encoder").image_size
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    for part in adapted.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    labels = IDS.masked_fill(MASK == 0, -100)
    adapted.train()
    adapted(**inputs(side), labels=labels).loss.backward()
    trained = {n for n, weight in adapted.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0}
    assert {n for n, _ in adapted.named_parameters() if "lora_" in n and "language_model" in n} <= trained
    if name in ("mqt", "mlp"):
        assert {n for n, _ in adapted.named_parameters() if "lora_" in n and "visual_tokenizer" in n} <= trained
    adapted.eval()
    apart = logits(adapted, side)
    torch.testing.assert_close(logits(adapted.merge_and_unload(), side), apart, rtol=1e-3, atol=1e-3)


def test_trained_rows_of_tied_embeddings_count_on_both_sides(make_model):
    from peft import LoraConfig, get_peft_model

    fields = {"decoder": {"tie_word_embeddings": True}, "blend": {"time_anchor": 1.0}}
    rows, new = [7, 100, 101], torch.randn(3, 32)
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows)
    adapted = get_peft_model(make_model(**fields), config)
    changed = make_model(**fields)
    with torch.no_grad():
        next(w for n, w in adapted.named_parameters() if "trainable_tokens_delta" in n).copy_(new)
        changed.get_input_embeddings().weight[rows] = new
    assert (logits(changed) - logits(make_model(**fields))).abs().max() > 0.1
    labels = IDS.masked_fill(MASK == 0, -100)
    torch.testing.assert_close(logits(adapted), logits(changed), rtol=1e-5, atol=1e-5)
    loss = adapted.eval()(**inputs(), labels=labels).loss
    torch.testing.assert_close(loss, changed(**inputs(), labels=labels).loss, rtol=1e-5, atol=1e-5)
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(adapted.generate(**inputs(), **options), changed.generate(**inputs(), **options))


class EightBits(nn.Module):
    """A layer in place of an `nn.Linear`, as quantising tools put it there: it takes tensors and holds integers."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.integers, self.bias = (linear.weight / self.scale).round().to(torch.int8), linear.bias
        self.calls = 0

    def forward(self, values):
        assert isinstance(values, torch.Tensor)
        self.calls += 1
        return nn.functional.linear(values, self.integers * self.scale, self.bias)


def quantised(module):
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, EightBits(child))
        else:
            quantised(child)
    return module


@pytest.mark.parametrize("name", [*MODELS, "mlp"])
def test_each_linear_layer_can_be_replaced(make_model, name):
    model = make_model(**MODELS.get(name, {"visual_tokenizer": "mlp"}))
    side = model.config.stage("encoder").image_size
    before = logits(model, side)
    after = logits(quantised(model), side)
    assert not any(isinstance(part, nn.Linear) for n, part in model.named_modules() if ".tower.head." not in n)
    assert all(part.calls for part in model.language_model.modules() if isinstance(part, EightBits))
    if name != "stage inside the LLM":  # there a token at a threshold may go or stay
        assert 0 < (after - before).abs().max() < 1.5
    options = {"max_new_tokens": 3, "do_sample": False}
    assert model.generate(**inputs(side), **options).shape == (2, 9)
