"""An LLM in a GGUF file becomes a folder that transformers and recipes load as any other."""

import numpy as np
import pytest
import torch
from nearness import assert_near
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmllm.errors import CheckpointError
from mmllm.hub.gguf import converted
from mmllm.train.building import build_model
from mmllm.train.model_config import ModelConfig

WIDTH, HEADS, KEY_HEADS, INNER, LAYERS = 32, 4, 2, 64, 2


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tokens():
    """Words of a byte-level vocabulary, as GPT-2 writes them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "th", "the"]


@pytest.fixture
def gguf_file(tmp_path):
    """A tiny Llama with random weights, the first projection in 4 bits."""
    import gguf

    words, random = tokens(), np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *[1] * (len(words) - 3)])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    keys = WIDTH // HEADS * KEY_HEADS
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (keys, WIDTH), "attn_v": (keys, WIDTH), "attn_output": (WIDTH, WIDTH),
              "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER), "attn_norm": (WIDTH,),
              "ffn_norm": (WIDTH,)}  # fmt: skip
    named = {f"blk.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in shapes.items()}
    for name, shape in {"token_embd.weight": (len(words), WIDTH), "output_norm.weight": (WIDTH,), **named}.items():
        values = random.normal(size=shape).astype(np.float32) * 0.3 + (len(shape) == 1)
        if name == "blk.0.ffn_up.weight":
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


@torch.no_grad()
def test_the_folder_computes_what_the_file_computes(gguf_file):
    folder = converted(gguf_file)
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    ).eval()
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 5, 70, 9, 200, 2]])
    assert_near(ours(ids).logits, theirs(ids).logits)
    assert "quantization" not in (folder / "config.json").read_text()
    assert (folder / "model.safetensors").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the")["input_ids"]) == ["the"]
    assert tokenizer.eos_token == "<|im_end|>"
    assert "message['content']" in tokenizer.chat_template


def test_it_is_made_once(gguf_file, monkeypatch):
    folder = converted(gguf_file)
    monkeypatch.setattr("mmllm.hub.gguf._convert", None)
    assert converted(gguf_file) == folder
    with gguf_file.open("ab") as file:
        file.write(b"more")
    with pytest.raises(TypeError):  # another file is converted anew
        converted(gguf_file)


def test_it_is_the_llm_of_a_model(gguf_file):
    model, processor = build_model(
        ModelConfig(encoder="tiny:width=16,heads=2,channels=8+8+8", language_model=str(gguf_file), num_time_tokens=5)
    )
    assert model.config.text_config.num_hidden_layers == LAYERS
    assert len(processor.tokenizer) >= len(tokens()) + 5


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(CheckpointError, match=r"bad\.gguf: transformers cannot read this file"):
        converted(tmp_path / "bad.gguf")
    assert not list(tmp_path.rglob("config.json"))
