"""The LLM alone, in its own layout: transformers writes our ids from our embeddings, as an engine would."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmllm import cli
from mmllm.errors import ConfigError
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.inference.own_prompts import OwnPrompts
from mmllm.inference.plain_decoder import require_plain
from mmllm.inference.prompts import Medium, Turn

QUESTIONS = ("When does the red circle spin?", "When is the blue square on screen at 3.5 s?", "Who?")


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The LLM of the model that comes with mmllm, written by the command."""
    folder = tmp_path_factory.mktemp("export") / "llm"
    assert run("export", DEFAULT, folder, "--to", "vllm") == 0
    return folder


@pytest.mark.parametrize("reducers", [None, ["fastervlm:keep=2"]])
def test_transformers_writes_our_ids_from_our_embeddings(exported, short_clip, second_clip_frames, reducers):
    qa = VideoQA.from_pretrained(DEFAULT, reducers=reducers)
    prompts = OwnPrompts(qa)
    media = [Medium(kind="video", encoded=qa.encode_video(video)) for video in (short_clip, second_clip_frames)]
    plain = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    assert type(plain).__name__ == "LlamaForCausalLM"
    contents = [(media[0], QUESTIONS[0]), (media[1], QUESTIONS[1]), (*media, QUESTIONS[0]), (QUESTIONS[2],)]
    answers = set()
    for content in contents:
        prompt = prompts.prompt([Turn(role="user", content=content)])
        embeddings = prompts.embeddings(prompt)
        assert embeddings.shape == (prompt.positions, qa.model.config.text_config.hidden_size)
        ids = plain.generate(
            inputs_embeds=embeddings[None],
            attention_mask=torch.ones(1, prompt.positions),
            max_new_tokens=24,
            suppress_tokens=prompts.unsaid(prompt) or None,
        )[0].tolist()
        expected = prompts.generate([prompt], max_new_tokens=24)[0].tolist()
        assert ids == expected
        answers.add(tuple(ids))
    assert len(answers) > 1


@pytest.fixture(scope="module")
def second_clip_frames():
    """Frames of noise in memory."""
    import numpy as np

    from mmllm.tokens import VideoClip

    pixels = np.random.default_rng(4).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    return VideoClip(frames=pixels, times_s=np.linspace(0, 9, 20, endpoint=False), duration_s=9.0)


def test_the_folder_holds_what_an_engine_reads(exported):
    qa = VideoQA.from_pretrained(DEFAULT)
    names = {path.name for path in exported.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert not any(name.startswith(("processor", "modeling_")) for name in names)  # nothing of ours is needed
    plain = AutoModelForCausalLM.from_pretrained(exported)
    assert list(plain.generation_config.eos_token_id) == qa.stop_tokens
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.convert_tokens_to_ids("<t50>") == qa.processor.tokenizer.convert_tokens_to_ids("<t50>")
    for name, weight in qa.model.language_model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], weight)


def test_what_an_engine_cannot_run_is_refused(untrained_qa, exported, tmp_path, capsys):
    require_plain(untrained_qa)
    with pytest.raises(ConfigError, match="fastv works inside the LLM"):
        require_plain(untrained_qa.with_stages(reducers=["fastv:layer=1"]))
    assert run("export", DEFAULT, tmp_path / "inside", "--to", "vllm", "--reducer", "fastv:layer=1") == 2
    assert not list(tmp_path.iterdir())
    assert run("export", DEFAULT, exported, "--to", "vllm") == 2
    assert "exists already" in capsys.readouterr().err
    assert run("export", tmp_path / "nothing", tmp_path / "new", "--to", "vllm") == 2
    assert run("export", DEFAULT, tmp_path / "new", "--to", "abacus") == 2
    assert not list(tmp_path.glob("new*"))
