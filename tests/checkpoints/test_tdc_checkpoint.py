"""TDC's released layout: a tiny model under the published names is read, answers, and is written back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

from mmllm import cli, registry
from mmllm.checkpoints import tdc
from mmllm.checkpoints.loading import describe
from mmllm.encoders.siglip import SiglipConfig
from mmllm.errors import CheckpointError
from mmllm.inference.answering import VideoQA
from mmllm.modalities.video import VideoInputs
from mmllm.paths.qformer import QFormerSizes
from mmllm.paths.tdc_compressor import Compressor
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.tokenizers.sva import SpatialAggregator, SvaConfig

WIDTH, HIDDEN = 32, 32
SIGLIP = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 36,
    "patch_size": 6,
}  # fmt: skip
DINO = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
QFORMER = {"q_hidden": 24, "q_layers": 3, "q_heads": 4, "q_inter": 48, "q_vocab": 60, "q_maxpos": 32}
WORDS = ("when", "is", "the", "red", "square")


def config_of(tiny, folder, **changes):
    """A `config.json` in the authors' layout, with LongVU's keys and TDC's."""
    return {
        **tiny.llm("qwen2"),
        "model_type": "cambrian_qwen",
        "architectures": ["CambrianQwenForCausalLM"],
        "mm_projector_type": "sva",
        "connector_only": True,
        "mm_vision_tower_aux_list": [str(folder / "towers" / "siglip"), str(folder / "towers" / "dinov2-res42")],
        "mm_vision_tower_aux_token_len_list": [16, 16],
        "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False,
        "image_token_len": 4,
        "query_num_list": [4],
        "connector_depth": 2,
        "num_query_group": 1,
        "vision_hidden_size": WIDTH,
        "tokenizer_model_max_length": 1024,
        "context_token_num": 3,
        "max_num_segments": 2,
        "text_input": True,
        "query_type": "Avg_pool",
        "add_static": True,
        "audio_input": False,
        "frame_pos": False,
        "highres": True,
        "lowres_token": 8,
        "pretrained_qformer": "bert",
        "rope_scaling": {"type": "linear", "factor": 4.0},
        **QFORMER,
        **changes,
    }


def published_state(tiny, kind="qwen2"):
    """Random weights under the authors' names, made from parts that do not know these names."""
    torch.manual_seed(0)
    from transformers import CONFIG_MAPPING

    fields = {name: value for name, value in tiny.llm(kind).items() if name != "model_type"}
    llm = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields))
    connector = SpatialAggregator(
        SvaConfig(queries=4, width=WIDTH, depth=2), in_width=40, out_width=HIDDEN, grid=(4, 4), tower_widths=(16, 24)
    )
    sizes = QFormerSizes(width=24, layers=3, heads=4, mlp_width=48, vocabulary=60, positions=32)
    compressor = Compressor(sizes, width=HIDDEN, tokens=3)
    state = dict(llm.state_dict())
    renamed = {
        "aux_projectors.0.": "mm_projector_aux_0.", "aux_projectors.1.": "mm_projector_aux_1.",
        "projector.": "mm_projector.", "query": "vision_query", "layers.": "vision_sampler_0.layers.",
    }  # fmt: skip
    for name, value in connector.state_dict().items():
        ours = next(prefix for prefix in renamed if name.startswith(prefix))
        state[f"model.{renamed[ours]}{name.removeprefix(ours)}"] = value
    for name, value in compressor.state_dict().items():
        state["model." + (f"Qformer.{name}" if name.startswith("bert.") else name)] = value
    state["model.Qformer.bert.embeddings.position_ids"] = torch.arange(32).unsqueeze(0)
    state["model.Qformer.cls.predictions.bias"] = torch.zeros(60)
    state["model.image_newline"], state["model.frame_seg"] = torch.randn(HIDDEN), torch.randn(HIDDEN)
    return {name: value.clone() for name, value in state.items()}


def save_towers(folder):
    torch.manual_seed(1)
    SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).save_pretrained(folder / "towers" / "siglip")
    Dinov2Model(Dinov2Config(**DINO)).save_pretrained(folder / "towers" / "dinov2-res42")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A published folder with two pickled shards, the towers beside it."""
    root = tmp_path_factory.mktemp("tdc")
    save_towers(root)
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config_of(tiny, root)))
    tiny.tokenizer().save_pretrained(model)
    word_tokenizer(WORDS).save_pretrained(model / "bert")
    state = sorted(published_state(tiny).items())
    torch.save(dict(state[:20]), model / "pytorch_model-00001-of-00002.bin")
    torch.save(dict(state[20:]), model / "pytorch_model-00002-of-00002.bin")
    return model


@pytest.fixture(scope="module")
def qa(folder):
    return VideoQA.from_pretrained(folder, allow_pickle=True)


def test_settings_are_those_of_the_file(qa):
    config = qa.model.config
    assert (config.encoder["grid"], config.encoder["second"]["image_size"], config.encoder["fit"]) == (4, 42, "pad")
    assert config.encoder["first"]["select_layer"] == -1
    assert {name: config.visual_tokenizer[name] for name in ("queries", "width", "depth", "correct_unpad")} == {
        "queries": 4, "width": WIDTH, "depth": 2, "correct_unpad": False
    }  # fmt: skip
    expected = {"tokens": 3, "cuts": 2, "window": 8, "queries": "pooled", "frame_tokens": 4, "max_length": 1024}
    assert {name: config.path[name] for name in expected} == expected
    assert config.text_config.model_type == "qwen2"
    assert "linear" not in str(config.text_config.to_dict().get("rope_parameters"))
    assert qa.processor.sampling == {"rule": "steady", "fps": 1.0}
    assert qa.processor.frame_sizes
    text = qa.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}],
        add_generation_prompt=True,
    )
    assert text.startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<video>\nWhen?"
    )


def test_weights_are_where_their_names_say(qa, tiny):
    state, model = published_state(tiny), qa.model
    for ours, theirs in {
        model.path.frame_seg: "model.frame_seg",
        model.path.newline: "model.image_newline",
        model.visual_tokenizer.query: "model.vision_query",
        model.visual_tokenizer.layers[1].pos_embed_1: "model.vision_sampler_0.layers.1.pos_embed_1",
        model.path.compressor.bert.encoder.layer[0].crossattention.self.key.weight: (
            "model.Qformer.bert.encoder.layer.0.crossattention.self.key.weight"
        ),
        model.language_model.lm_head.weight: "lm_head.weight",
    }.items():
        assert torch.equal(ours, state[theirs])
    siglip = SiglipVisionModel.from_pretrained(model.config.origin["towers"][0])
    tower = dict(model.encoder.first.tower.named_parameters())
    assert torch.equal(tower["embeddings.patch_embedding.weight"], siglip.state_dict()[
        next(name for name in siglip.state_dict() if name.endswith("embeddings.patch_embedding.weight"))
    ])  # fmt: skip


def test_it_answers_about_a_clip_and_depends_on_the_question(qa, short_clip):
    encoded = qa.encode_video(short_clip)
    placeholder = qa.model.config.video_token_id
    red, square = (qa.for_question(encoded, text).sequences[placeholder] for text in ("when red", "when square"))
    assert not torch.equal(red.embeddings, square.embeddings) or len(encoded.clip) <= 3
    assert isinstance(qa.ask(encoded, "when is the red square").text, str)


def test_it_is_converted_and_written_back(folder, tiny, tmp_path):
    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        return end.value.code

    ours, back = tmp_path / "ours", tmp_path / "back"
    assert run("convert", folder, ours, "--allow-pickle") == 0
    assert run("convert", ours, back, "--to", "tdc") == 0
    left_out = ("model.Qformer.cls.", "model.Qformer.bert.embeddings.position_ids")
    expected = {name: value for name, value in published_state(tiny).items() if not name.startswith(left_out)}
    written = load_file(back / "model.safetensors")
    assert set(written) == set(expected)
    assert all(torch.equal(value, written[name]) for name, value in expected.items())
    assert json.loads((back / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    again = VideoQA.from_pretrained(ours)
    assert again.model.config.path["question_source"].endswith("bert")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "mlp"}, "mm_projector_type = 'mlp'"),
        ({"num_query_group": 2}, "num_query_group = 2"),
        ({"connector_only": False}, "connector_only = False"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio"),
        ({"query_num_list": [9]}, r"query_num_list = \[9\]"),
        ({"mm_vision_tower_aux_token_len_list": [16, 9]}, "token_len_list"),
        ({"mm_vision_tower_aux_list": ["one"]}, "must name two towers"),
        ({"mm_vision_tower_aux_list": ["one", "two"]}, "tower 'one' is neither a folder"),
        ({"query_type": "max"}, "query_type = 'max'"),
        ({"frame_pos": True}, "frame_pos = True"),
        ({"context_token_num": 0}, "tokens = 0"),
        ({"context_token_num": 5}, "tokens = 5: must be at most frame_tokens = 4"),
        ({"max_num_segments": 0}, "cuts = 0"),
    ],
)
def test_a_file_that_asks_for_something_else_is_refused(changes, message, tiny, folder):
    with pytest.raises((CheckpointError, ValueError), match=message):
        tdc.describe(config_of(tiny, folder.parent, **changes), folder)


@pytest.mark.parametrize("name", ["model.frame_seg", "model.vision_query", "model.query_proj.bias", "lm_head.weight"])
def test_a_missing_or_unknown_tensor_is_refused_by_its_name(name, tiny, folder):
    config = config_of(tiny, folder.parent)
    state = {key: value.to("meta") for key, value in published_state(tiny).items()}
    assert tdc.from_upstream(state, config).device.type == "meta"
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        tdc.from_upstream({key: value for key, value in state.items() if key != name}, config)
    with pytest.raises(CheckpointError, match=r"unexpected: model\.more"):
        tdc.from_upstream({**state, "model.more": state[name]}, config)
    with pytest.raises(CheckpointError, match=f"misshaped: {name}"):
        tdc.from_upstream({**state, name: torch.empty(3, 7, device="meta")}, config)


SMALL_BEATS = {
    "name": "beats", "width": 16, "layers": 1, "heads": 2, "mlp_width": 16, "patch_width": 8, "position_kernel": 4,
    "position_groups": 2, "buckets": 8, "max_distance": 16,
}  # fmt: skip


def heard(tiny, folder):
    """Configuration and weights of a tiny model with sound."""
    config = tdc.describe(config_of(tiny, folder.parent, audio_input=True), folder)
    assert config.audio_encoder["name"] == "beats"
    assert config.path["audio"]
    config.audio_encoder = SMALL_BEATS
    state = published_state(tiny)
    state["model.audio_proj.weight"], state["model.audio_proj.bias"] = torch.randn(HIDDEN, 16), torch.randn(HIDDEN)
    torch.manual_seed(2)
    encoder = registry.build("audio_encoder", SMALL_BEATS)
    return config, state, encoder


def published_beats(encoder):
    """A small BEATs under its published names."""
    named = {}
    for name, value in encoder.state_dict().items():
        if name == "encoder.pos_conv.weight":
            named["encoder.pos_conv.0.weight_g"] = value.norm(dim=(0, 1), keepdim=True)
            named["encoder.pos_conv.0.weight_v"] = value
        elif name == "encoder.pos_conv.bias":
            named["encoder.pos_conv.0.bias"] = value
        elif name == "encoder.relative_attention_bias.weight":
            named["encoder.layers.0.self_attn.relative_attention_bias.weight"] = value
        else:
            named[name] = value
    return named


@pytest.mark.parametrize("inside", [True, False])
def test_sound_is_heard_by_beats_from_the_checkpoint_or_from_its_own_file(inside, tiny, folder, tmp_path):
    config, state, encoder = heard(tiny, folder)
    weights = published_beats(encoder)
    file = tmp_path / tdc.BEATS
    if inside:
        state |= {f"{tdc.SOUND}{name}": value for name, value in weights.items()}
    else:
        torch.save({"cfg": {}, "model": weights}, file)
    model = tdc.from_upstream(state, config, beats=file)
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(model.audio_encoder.state_dict()[name], value, rtol=0, atol=1e-6)
    assert torch.equal(model.path.audio_proj.weight, state["model.audio_proj.weight"])
    assert set(tdc.to_upstream(model)) == {
        name for name in state if not name.startswith((tdc.UNUSED, tdc.SOUND)) and "position_ids" not in name
    }
    assert tdc.processor(folder, config).sound.channel == "first"
    pixels, waveform = torch.rand(1, 4, 3, 42, 42), torch.randn(1, 3 * 16000)
    inputs = VideoInputs(
        pixels=pixels, times_s=torch.arange(4.0).unsqueeze(0), waveform=waveform, question=torch.tensor([[4, 5]]),
        frame_size=torch.tensor([[42, 42]]),
    )  # fmt: skip
    with torch.no_grad():
        sequence = model.visual_sequences({"video": inputs})[model.config.video_token_id]
    windows = 3  # of 2 cuts
    frames = sequence.frame[0].tolist()
    assert frames.count(0) == 6 + 50 + 1  # 2 x 2 patches with row ends, sound, separator
    assert sequence.mask.sum() == windows * 57 + (4 - windows) * 4


def test_a_checkpoint_without_beats_is_refused(tiny, folder):
    config, state, _ = heard(tiny, folder)
    with pytest.raises(CheckpointError, match="no audio encoder of its own, and there is no file"):
        tdc.from_upstream(state, config)


def test_llama_has_its_own_words(tiny, folder, tmp_path):
    config = config_of(tiny, folder.parent) | tiny.llm("llama") | {"model_type": "cambrian_llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tiny.tokenizer().save_pretrained(tmp_path)
    described, processor = describe(tmp_path)
    assert described.text_config.model_type == "llama"
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}],
        add_generation_prompt=True,
    )
    assert text == (
        "<s><|start_header_id|>user<|end_header_id|>\n\n<video>\nWhen?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_the_published_config_describes_the_published_model(tiny):
    names = list(tdc.PUBLISHED_TOWERS)
    changes = {
        "mm_vision_tower_aux_list": names, "mm_vision_tower_aux_token_len_list": [576, 576], "image_token_len": 144,
        "query_num_list": [144], "vision_hidden_size": 1024, "connector_depth": 3, "context_token_num": 16,
        "max_num_segments": 24, "tokenizer_model_max_length": 8192,
    }  # fmt: skip
    upstream = config_of(tiny, Path("nowhere"), **changes)
    config = tdc.describe({name: value for name, value in upstream.items() if name not in QFORMER})
    assert config.stage("encoder").towers[0] == SiglipConfig()
    path = config.stage("path")
    assert (path.width, path.layers, path.vocabulary, path.question_source) == (
        768, 12, 30522, "google-bert/bert-base-uncased"
    )  # fmt: skip
