"""A whole model for vLLM: what it renders, cuts into ids and stops at is what mmllm does."""

import json

import pytest
from transformers import AutoTokenizer

from mmllm import cli
from mmllm.engines.whole_model import require_same_ids, save_whole
from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


def small_qa(**fields):
    decoder = DecoderConfig(width=32, layers=2, heads=2, mlp_width=64)
    fields = {"path": "plain", "time": "text", "num_frames": 6, "decoder": decoder} | fields
    return VideoQA(*build_model(ModelConfig(**fields), seed=0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model that vLLM can run."""
    folder = tmp_path_factory.mktemp("models") / "trained"
    qa = small_qa(sampling="slow-fast:fps=2", num_frames=9)
    qa.model.save_pretrained(folder)
    qa.processor.save_pretrained(folder)
    return folder


def test_the_command_writes_what_vllm_serves(trained, tmp_path, capsys):
    folder = tmp_path / "whole"
    assert run("export", trained, folder, "--to", "vllm-plugin", "--reducer", "evs:ratio=0.5") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    options = json.loads(line.split("'")[1])["video"]
    assert options == {"video_backend": "mmllm", "num_frames": 9, "sampling": {"rule": "slow-fast", "fps": 2.0}}
    qa = VideoQA.from_pretrained(folder)
    assert [reducer.registered_name for reducer in qa.model.reducers] == ["evs"]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == qa.stop_tokens
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["MmllmForConditionalGeneration"]


def test_a_system_prompt_is_in_the_template(tmp_path):
    qa = small_qa()
    qa.processor.system_prompt = 'You are "helpful" and see \\ é 🎥.'
    save_whole(qa, tmp_path / "whole")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    question = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When does it spin?"}]}
    for messages in ([question], [{"role": "system", "content": "Be short."}, question]):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        own = qa.processor.apply_chat_template(messages, add_generation_prompt=True)
        assert text == own
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == qa.processor.encode(own).input_ids.tolist()
    again = VideoQA.from_pretrained(tmp_path / "whole").processor  # and nothing is said twice
    assert again.apply_chat_template([question], add_generation_prompt=True) == qa.processor.apply_chat_template(
        [question], add_generation_prompt=True
    )


def test_ids_that_a_whole_text_would_not_have_are_refused(monkeypatch):
    processor = small_qa().processor
    require_same_ids(processor, processor.chat_template)
    with pytest.raises(ConfigError, match="cuts a whole text otherwise"):
        require_same_ids(processor, processor.chat_template + "!")


def test_what_vllm_cannot_run_writes_nothing(trained, tmp_path, capsys):
    assert run("export", "default", tmp_path / "a", "--to", "vllm-plugin") == 2
    assert "path 'slowfast'" in capsys.readouterr().err
    assert run("export", trained, tmp_path / "b", "--to", "vllm-plugin", "--reducer", "fastv:layer=1") == 2
    assert "fastv works inside the LLM" in capsys.readouterr().err
    assert run("export", trained, trained, "--to", "vllm-plugin") == 2
    assert not list(tmp_path.iterdir())
