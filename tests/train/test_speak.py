"""The recipe `speak` from end to end, with tiny parts: alignment, adapters, talk; stopped and gone on with."""

import json
from dataclasses import replace

import pytest
import torch
from open_llm import open_llm, save_open_llm
from own_clips import TINY
from own_pictures import pictures_folder
from own_speak import small
from safetensors.torch import save_file

from mmllm import cli, registry
from mmllm.datasets.dialogues import read_dialogues
from mmllm.errors import ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.inference.own_prompts import OwnPrompts
from mmllm.synthetic.rendering import ON_SCREEN
from mmllm.train.building import build_model
from mmllm.train.data import RunData
from mmllm.train.metrics import read_metrics
from mmllm.train.own_talk import SENTENCES, made_up_questions, questions_about
from mmllm.train.recipes import recipe
from mmllm.train.run import train

__all__ = ["open_llm", "pictures_folder", "small"]


def test_it_trains_projector_then_adapters_and_goes_on_where_it_was_stopped(small, tmp_path, monkeypatch):
    from mmllm.train import fitting

    whole = train(small, tmp_path / "whole", workers=0)
    words = read_metrics(tmp_path / "whole" / "word_alignment" / "metrics.jsonl")
    assert words[-2]["loss"] < words[0]["loss"]
    assert (tmp_path / "whole" / "word_alignment" / "projector.safetensors").exists()

    saved = fitting.Scheduled._save_checkpoint

    def killed(trainer, *arguments):
        saved(trainer, *arguments)
        raise KeyboardInterrupt

    for _ in range(4):  # each sitting ends behind its first checkpoint
        monkeypatch.setattr(fitting.Scheduled, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(small, tmp_path / "stopped", workers=0)
    monkeypatch.undo()
    train(small, tmp_path / "stopped", workers=0)
    states = [VideoQA.from_pretrained(tmp_path / name / "model").model.state_dict() for name in ("whole", "stopped")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    answer = VideoQA.from_pretrained(whole)
    assert answer.note is None or "things" in answer.note


@pytest.mark.slow
def test_of_a_pretrained_llm_only_what_was_trained_is_saved(small, open_llm, tmp_path, short_clip, capsys):
    encoder = "timm:name=resnet18,image_size=32,classes=frame"
    save_file(registry.build("encoder", encoder).tower.state_dict(), tmp_path / "resnet.safetensors")
    parts = {"language_model": str(open_llm), "encoder_weights": str(tmp_path / "resnet.safetensors")}
    words = {"visual_tokenizer": "words:best=2", "encoder": encoder, "path": "slowfast:mode=temporal,image_frames=8"}
    made = small.changed({"model": {**parts, **words}, "adapter_only": True, "language": {"max_steps": 2}})
    folder = train(made, tmp_path / "run", workers=0)
    assert folder == tmp_path / "run" / "adapter"
    assert json.loads((folder / "pretrained.json").read_text()) == parts
    assert "# run\n" in (folder / "README.md").read_text()  # its card
    assert train(made, tmp_path / "run", workers=0) == folder  # it is finished
    for arguments in ([str(short_clip), "When?"], ["What is the capital of France?"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["ask", *arguments, "--model", str(folder), "--max-new-tokens", "4"])
        assert not ended.value.code
    untied = save_open_llm(tmp_path / "untied", tied=False)
    with pytest.raises(ConfigError, match="table of its own"):
        train(made.changed({"model": {"language_model": str(untied)}}), tmp_path / "other", workers=0)


def test_the_llm_keeps_its_own_words(open_llm, tmp_path, monkeypatch):
    model, processor = build_model(replace(TINY, language_model=str(open_llm), template="chatml"))
    whole = replace(recipe("speak").data, own_talk=True)
    data = RunData(
        [], 0, talk=talk_dialogues(tmp_path), talk_share=whole.talk, on_screen={"a": {"owl": [], "kite": []}}
    )
    questions = [
        *(turn.text for dialogue in data.talk for turn in dialogue.turns[:1]),
        *questions_about(["kite", "owl"]),
    ]
    assert questions[-2:] == ["What is a kite?", "Tell me something short about the owl."]
    stop = VideoQA(model, processor).stop_tokens[0]
    asked = []

    def generate(prompts, batch):
        asked.extend(batch)
        ends = [[70 + len(asked), stop], [71]]  # every other answer has no end
        return torch.tensor([[*ends[number % 2], 0][:2] for number in range(len(batch))])

    monkeypatch.setattr(OwnPrompts, "generate", generate)
    data.answer_talk(model, processor, tmp_path / "talk.jsonl")
    assert len(asked) == len(questions) == 4
    assert [dialogue.turns[0].text for dialogue in data.talk] == questions[::2]
    assert all(dialogue.turns[1].text and not dialogue.media for dialogue in data.talk)
    data.answer_talk(model, processor, tmp_path / "talk.jsonl")
    assert len(asked) == 4  # they are kept
    monkeypatch.setattr(OwnPrompts, "generate", lambda prompts, batch, **options: torch.full((len(batch), 1), 71))
    with pytest.raises(InputError, match="no answer of the LLM has a sentence"):
        data.answer_talk(model, processor, tmp_path / "other.jsonl")


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        ("It is a bird. It flies", "It is a bird."),
        ("Is it? Yes!\nIt", "Is it? Yes!"),
        ("Take:\n1. Wood", None),
        ("It weighs 1.5 kg", None),
    ],
)
def test_a_long_answer_keeps_its_whole_sentences(answer, whole):
    found = SENTENCES.match(answer)
    assert (found and found[0]) == whole


def test_the_llm_makes_up_questions_where_a_user_begins_to_speak(open_llm, monkeypatch):
    model, processor = build_model(replace(TINY, language_model=str(open_llm), template="chatml"))
    qa = VideoQA(model, processor)
    stop = qa.stop_tokens[0]

    def said(words, filling, length=32):
        ids = processor.tokenizer.encode(words, add_special_tokens=False)
        return [*ids, *[filling] * (length - len(ids))]

    turns = torch.tensor([said(words, stop) for words in ("What is it?", "When?", "Two\nlines.", " ")])
    endless = torch.tensor([said("Where?", int(turns[0, 0]))])
    begun = []

    def generate(input_ids, attention_mask, **options):
        assert options["do_sample"]
        assert options["suppress_tokens"] == model.config.time_token_ids
        begun.append(input_ids)
        rows = torch.cat([turns, endless])
        return torch.cat([input_ids[: len(rows)], rows], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    assert made_up_questions(qa, 2, seed=0) == ["What is it?", "When?"]
    asked = processor.apply_chat_template([{"role": "user", "content": "When?"}], add_generation_prompt=True)
    assert torch.equal(processor.encode(asked).input_ids[: begun[0].shape[1]], begun[0][0])
    assert processor.decode_text(processor.encode(asked).input_ids[begun[0].shape[1] :].tolist()).startswith("When?")
    with pytest.raises(InputError, match=r"makes up 2 questions .*own_questions = 3 is too many"):
        made_up_questions(qa, 3, seed=0)


def test_made_up_questions_follow_the_seed(open_llm):
    model, processor = build_model(replace(TINY, language_model=str(open_llm), template="chatml"))
    qa = VideoQA(model, processor)
    ends = [number for number in range(len(processor.tokenizer)) if number % 3 == 0]  # a random LLM rarely ends
    qa.model.generation_config.eos_token_id = ends
    state = torch.random.get_rng_state()
    first, again, other = (made_up_questions(qa, 5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


def talk_dialogues(folder):
    """Two dialogues of text."""
    rows = [{"id": name, "question": f"What is {name}?", "answer": "It."} for name in ("bread", "ice")]
    (folder / "given.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_dialogues(folder / "given.jsonl", policy="raise").items


def test_own_talk_needs_a_pretrained_llm(small):
    with pytest.raises(ConfigError, match="own_talk needs a pretrained"):
        small.changed({"data": {"own_talk": True}})
    with pytest.raises(ConfigError, match="own_talk"):
        small.changed({"data": {"own_talk": True, "talk": 0.0}})
    with pytest.raises(ConfigError, match="own_questions"):
        small.changed({"data": {"own_talk": False, "own_questions": 3}})


def test_adapters_need_pretrained_parts_with_names(small):
    with pytest.raises(ConfigError, match="adapter_only"):
        small.changed({"adapter_only": True})


def test_clips_without_names_cannot_be_aligned(small, tmp_path):
    root = tmp_path / "unnamed"
    root.mkdir()
    source = small.data.root
    for name in ("videos", "train.json", "talk.jsonl"):
        (root / name).symlink_to(f"{source}/{name}")
    with pytest.raises(InputError, match=ON_SCREEN):
        train(small.changed({"data": {"root": str(root)}}), tmp_path / "run", workers=0)


def test_a_prompt_is_the_beginning_of_what_is_trained(open_llm):
    """With chatml an answer begins on a new line; a time token at its beginning must not swallow that."""
    settings = recipe("speak").model
    changes = {"template": settings.template, "strip_time_tokens": settings.strip_time_tokens}
    _, processor = build_model(replace(TINY, language_model=str(open_llm), **changes))
    asked = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}
    prompt = processor.encode(processor.apply_chat_template([asked], add_generation_prompt=True)).input_ids
    for answer in ("<t1> <t2> It is there.", "It does not happen."):
        whole = processor.encode_conversation([asked, {"role": "assistant", "content": answer}])
        assert torch.equal(whole.input_ids[: len(prompt)], prompt)
        assert (whole.labels[: len(prompt)] == -100).all()
        assert whole.labels[len(prompt)] != -100


def test_its_parts_are_those_of_the_presets_and_its_settings_are_a_file():
    made = recipe("speak")
    assert made.model.encoder.startswith("timm:name=tf_efficientnet_lite0,image_size=192,mean=0.498039")
    assert made.model.encoder.endswith("classes=frame,output_grid=4")
    assert made.changed(json.loads(json.dumps(made.to_mapping()))) == made
