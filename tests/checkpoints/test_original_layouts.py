"""The authors' own layouts: LLaVA-1.5 and NeXT with and without their tower, MQT-LLaVA, Apple's FastVLM."""

import json
from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmllm import cli, registry
from mmllm.checkpoints import fastvlm, llava, llava_next, mqt_llava
from mmllm.config import MmllmConfig
from mmllm.encoders.fastvithd import FastVitHdConfig, build_tower
from mmllm.encoders.fastvithd_names import to_release
from mmllm.errors import CheckpointError
from mmllm.inference.answering import VideoQA
from mmllm.tokens import VisualTokens

TOWER = "model.vision_tower.vision_tower.vision_model."
GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "fastvithd.safetensors")


def authors_names(state, tower=True):
    """A state dict of transformers' port under the authors' names."""
    named = {}
    for name, value in state.items():
        name = name.replace("model.language_model.", "model.").replace("model.vision_tower.", TOWER)
        for number, theirs in ((1, 0), (2, 2)):
            name = name.replace(f"model.multi_modal_projector.linear_{number}.", f"model.mm_projector.{theirs}.")
        named[name] = value
    return {name: value for name, value in named.items() if tower or not name.startswith(TOWER)}


@pytest.fixture(scope="module")
def tower_folder(published, tiny, tmp_path_factory):
    """The vision tower of the tiny LLaVA, published apart as CLIP's are."""
    _, theirs, _ = published("llava")
    tower = CLIPVisionModel(CLIPVisionConfig(**{k: v for k, v in tiny.clip_vision().items() if k != "model_type"}))
    tower.load_state_dict(theirs.model.vision_tower.state_dict())
    folder = tmp_path_factory.mktemp("clip")
    tower.save_pretrained(folder)
    return folder


def config_file(tiny, tower, **fields):
    authors = {
        "mm_vision_tower": str(tower),
        "mm_hidden_size": 32,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
    }
    return {**tiny.llm(), "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], **authors, **fields}


def save(tiny, folder, config, state):
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    tiny.tokenizer().save_pretrained(folder)


def same(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("with_tower", [True, False])
def test_llava_of_the_authors_is_transformers_port(
    with_tower, tiny, published, tower_folder, tmp_path, short_clip, sight
):
    _, theirs, _ = published("llava")
    state = authors_names(theirs.state_dict(), tower=with_tower)
    save(tiny, tmp_path, config_file(tiny, tower_folder), state)
    qa = VideoQA.from_pretrained(tmp_path)
    assert qa.processor.frame_transform.fit == "pad"
    pixels = torch.randn(1, 3, tiny.side, tiny.side)
    placeholder = qa.model.config.image_token_id
    with torch.no_grad():
        wanted = theirs(torch.tensor([[1, 9, *[4] * 16, 11]]), pixel_values=pixels).logits
        logits = qa.model(torch.tensor([[1, 9, placeholder, 11]]), pixel_values=pixels).logits
    assert_near(logits, wanted)
    assert sight(qa.model, {"input_ids": torch.tensor([[1, 9, placeholder, 11]]), "pixel_values": pixels}) > 0.1
    same(llava.to_upstream(qa.model), state)
    prompt = qa.processor.decode_text(qa.prompt("What is this?", 8.0).input_ids)
    assert prompt.startswith("A chat between a curious user")
    assert qa.ask(short_clip, "What is this?", max_new_tokens=2).text is not None


def test_a_tower_beside_the_model_must_be_the_one_it_was_trained_with(tiny, published, tower_folder, tmp_path):
    state = authors_names(published("llava")[1].state_dict(), tower=False)
    config = llava.describe(config_file(tiny, tower_folder))
    config.encoder |= {"activation": "gelu"}
    with pytest.raises(CheckpointError, match="activation 'quick_gelu'"):
        llava.from_upstream(state, config)
    with pytest.raises(CheckpointError, match=r"mm_hidden_size = 48.*32 wide"):
        llava.describe(config_file(tiny, tower_folder, mm_hidden_size=48))
    with pytest.raises(CheckpointError, match="LanguageBind/Video-LLaVA-7B-hf"):
        llava.describe(config_file(tiny, "LanguageBind/LanguageBind_Image"))
    with pytest.raises(CheckpointError, match="neither a folder nor one of openai"):
        llava.describe(config_file(tiny, tmp_path / "nowhere"))


def test_llava_next_of_the_authors(tiny, published, tower_folder, tmp_path, picture_file, sight):
    _, theirs, processor = published("llava_next")
    state = authors_names(theirs.state_dict())
    fields = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    pinpoints = [[width, height] for height, width in tiny.pinpoints]
    save(tiny, tmp_path, config_file(tiny, tower_folder, **fields, image_grid_pinpoints=pinpoints), state)
    qa = VideoQA.from_pretrained(tmp_path)
    assert qa.processor.pinpoints == tiny.pinpoints
    from PIL import Image

    their_inputs = processor(images=Image.open(picture_file), text="<image>?", return_tensors="pt")
    images = qa.processor.media_inputs("image", [picture_file]).flat()
    ids = torch.tensor([[1, qa.model.config.image_token_id, int(their_inputs["input_ids"][0, -1])]])
    with torch.no_grad():
        wanted, logits = theirs(**their_inputs).logits, qa.model(ids, **images).logits
    assert_near(logits, wanted)
    assert sight(qa.model, {"input_ids": ids, **images}) > 0.1
    same(llava_next.to_upstream(qa.model), state)


def save_mqt_llava(tiny, published, tower_folder, folder):
    """MQT-LLaVA as its authors saved it, tower apart; returns its tensors."""
    llm_state = authors_names(published("llava")[1].state_dict(), tower=False)
    state = {name: value for name, value in llm_state.items() if "mm_projector" not in name}
    made = registry.build("tokenizer", "mqt:heads=16", in_width=32, out_width=32, grid=(4, 4))
    state |= {f"model.query_abstractor.{name}": value for name, value in made.state_dict().items()}
    config = config_file(tiny, tower_folder, query_abstractor_type="matry_query", num_visual_tokens="second_stage")
    save(tiny, folder, config, state)
    return state


def save_lita(tiny, published, tower_folder, folder):
    """LITA as its authors saved it, tower apart, 10 time tokens; returns its tensors."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"<t{i}>" for i in range(10)])
    llm_state = authors_names(published("llava")[1].state_dict(), tower=False)
    state = {name: value for name, value in llm_state.items() if "mm_projector" not in name}
    state |= {name: value[: len(tokenizer)] for name, value in state.items() if len(value) > len(tokenizer)}
    projector = torch.nn.Linear(32, 32)
    state |= {f"model.mm_projector.{name}": value.data for name, value in projector.named_parameters()}
    fields = {"vocab_size": len(tokenizer), "num_time_tokens": 10, "num_frames": 6, "mm_projector_type": "linear"}
    config = config_file(tiny, tower_folder, **fields, model_type="llava", architectures=["LitaLlamaForCausalLM"])
    save(tiny, folder, config, state)
    tokenizer.save_pretrained(folder)
    return state


def test_mqt_llava(tiny, published, tower_folder, tmp_path, short_clip, sight):
    state = save_mqt_llava(tiny, published, tower_folder, tmp_path)
    qa = VideoQA.from_pretrained(tmp_path)
    encoded = qa.encode_video(short_clip, num_frames=2)
    assert encoded.token_counts["frames"] == 2 * 256
    assert qa.model.visual_tokenizer.eval().count() == 256
    pixels = torch.randn(1, 2, 3, tiny.side, tiny.side)
    ids = torch.tensor([[1, 9, qa.model.config.video_token_id, 11]])
    assert sight(qa.model, {"input_ids": ids, "pixel_values_videos": pixels}) > 0.1
    same(mqt_llava.to_upstream(qa.model), state)
    fewer = VideoQA.from_pretrained(tmp_path, visual_tokenizer="mqt:tokens=16")
    assert fewer.encode_video(short_clip, num_frames=2).token_counts["frames"] == 2 * 16


@pytest.mark.parametrize(("family", "save_original"), [("mqt_llava", save_mqt_llava), ("lita", save_lita)])
def test_asked_and_converted_there_and_back_by_command(
    family, save_original, tiny, published, tower_folder, tmp_path, short_clip, capsys
):
    theirs, ours, back = (tmp_path / name for name in ("theirs", "ours", "back"))
    theirs.mkdir()
    state = save_original(tiny, published, tower_folder, theirs)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return out

    def answer(folder):
        return json.loads(run("ask", short_clip, "When?", "--model", folder, "--max-new-tokens", 8, "--json"))

    first = answer(theirs)
    run("convert", theirs, ours)
    again = answer(ours)
    assert first["raw"]
    assert (again["raw"], again["spans"]) == (first["raw"], first["spans"])
    run("convert", ours, back, "--to", family)
    same(load_file(back / "model.safetensors"), state)


APPLE = {
    "model_type": "llava_qwen2",
    "architectures": ["LlavaQwen2ForCausalLM"],
    "mm_vision_tower": "mobileclip_l_1024",
    "mm_hidden_size": 3072,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "image_aspect_ratio": "pad",
    "unfreeze_mm_vision_tower": True,
    "rope_theta": 1000000.0,
}


def apples_llm(tiny):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    fields = {key: value for key, value in tiny.llm("qwen2", hidden_size=48).items() if key != "model_type"}
    return Qwen2ForCausalLM(Qwen2Config(**fields)).state_dict()


def apples_config(tiny):
    upstream = {**tiny.llm("qwen2", hidden_size=48), **APPLE}
    tower = FastVitHdConfig(image_size=128, layers=(1, 2, 1, 1, 1), dims=(4, 8, 16, 32, 64))
    config = fastvlm.describe(upstream)
    return MmllmConfig(**{**config.to_dict(), "encoder": registry.describe("encoder", tower)})


def test_apples_release_gives_the_recorded_tokens_and_comes_back_whole(tiny):
    recorded = {name.removeprefix("state."): value for name, value in GOLDEN.items() if name.startswith("state.")}
    width = recorded["model.mm_projector.0.weight"].shape[0]
    assert width == 48
    state = recorded | apples_llm(tiny)
    model = fastvlm.from_upstream(state, apples_config(tiny))
    with torch.no_grad():
        features = model.encoder._run(GOLDEN["in.image"], {}).features.unsqueeze(1)  # a picture that is not square
        tokens = model.visual_tokenizer(VisualTokens(features=features, grid=(2, 3)))
        other = model.encoder._run(GOLDEN["in.image"].flip(-1), {}).features.unsqueeze(1)
        changed = model.visual_tokenizer(VisualTokens(features=other, grid=(2, 3))).features - tokens.features
    assert_near(tokens.features[:, 0], GOLDEN["out.projected"])
    assert changed.abs().max() > 0.01  # the picture is seen
    same(fastvlm.to_upstream(model), state)
    without = {name: value for name, value in state.items() if not name.endswith("head.proj")}
    same(fastvlm.to_upstream(fastvlm.from_upstream(without, apples_config(tiny))), without)


def test_a_tower_in_training_form_is_fused(tiny):
    config = apples_config(tiny)
    encoder = config.stage("encoder")
    torch.manual_seed(0)
    branched = build_tower(encoder.layers, encoder.dims, inference=False).eval()
    names = {f"model.vision_tower.timm_model.{name}": value for name, value in branched.state_dict().items()}
    rest = {n.replace("model.", "model.language_model.", 1): v for n, v in apples_llm(tiny).items()}
    for number, shape in ((1, (48, 128)), (2, (48, 48))):
        rest[f"model.multi_modal_projector.linear_{number}.weight"] = torch.randn(shape)
        rest[f"model.multi_modal_projector.linear_{number}.bias"] = torch.randn(48)
    model = fastvlm.from_upstream(names | rest, config)
    pixels = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        wanted = branched.forward_features(pixels).flatten(2).mT
        features = model.encoder(pixels.unsqueeze(1)).features[:, 0]
    assert_near(features, wanted)
    on_meta = fastvlm.from_upstream({name: value.to("meta") for name, value in (names | rest).items()}, config)
    assert on_meta.encoder.tower.stem[0].reparam_conv.weight.is_meta


def test_all_names_of_the_released_half_billion_model(tiny):
    upstream = {**tiny.llm("qwen2", hidden_size=896, num_attention_heads=14), **APPLE}
    config = fastvlm.describe(upstream)
    assert config.encoder["image_size"] == 1024
    with torch.device("meta"):
        tower = build_tower((2, 12, 24, 4, 2), (96, 192, 384, 768, 1536))
    vision = {fastvlm.RELEASE + name: value for name, value in to_release(tower.state_dict()).items()}
    vision[f"{fastvlm.RELEASE}head.proj"] = torch.empty(3072, 768, device="meta")
    for number, shape in ((0, (896, 3072)), (2, (896, 896))):
        vision[f"model.mm_projector.{number}.weight"] = torch.empty(shape, device="meta")
        vision[f"model.mm_projector.{number}.bias"] = torch.empty(896, device="meta")
    assert len(vision) == 633
    with torch.device("meta"):
        from transformers import Qwen2Config, Qwen2ForCausalLM

        words = Qwen2ForCausalLM(Qwen2Config(**config.text_config.to_dict())).state_dict()
    model = fastvlm.from_upstream(vision | words, config)
    back = fastvlm.to_upstream(model)
    assert {name: value.shape for name, value in back.items()} == {
        name: value.shape for name, value in (vision | words).items()
    }
    assert config.text_config.rope_parameters["rope_theta"] == 1000000.0
