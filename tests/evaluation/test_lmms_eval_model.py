"""Our models in lmms-eval: with its own registry where it is installed, and else by what it asks of a model."""

import importlib
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from mmllm.errors import InputError, is_installed


@pytest.fixture
def module(monkeypatch):
    """The module of our class; lmms-eval is what it asks for if it is not installed."""
    if not is_installed("lmms_eval"):

        class Lmms:
            is_simple = True

            def __init__(self):
                self.task_dict = {}

        @dataclass
        class TokenCounts:
            input_tokens: int
            output_tokens: int

        @dataclass
        class GenerationResult:
            text: str
            token_counts: TokenCounts

        @dataclass(frozen=True)
        class ModelManifest:
            model_id: str
            chat_class_path: str

        contents = {
            "lmms_eval": {},
            "lmms_eval.api": {},
            "lmms_eval.models": {},
            "lmms_eval.api.instance": {"GenerationResult": GenerationResult, "TokenCounts": TokenCounts},
            "lmms_eval.api.model": {"lmms": Lmms},
            "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        }
        for name, values in contents.items():
            stub = ModuleType(name)
            vars(stub).update(values)
            monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.delitem(sys.modules, "mmllm.evaluation.lmms_eval_model", raising=False)
    loaded = importlib.import_module("mmllm.evaluation.lmms_eval_model")
    yield loaded
    sys.modules.pop("mmllm.evaluation.lmms_eval_model", None)


@pytest.fixture
def model(module, untrained_qa, monkeypatch):
    """Our class around the untrained model."""
    monkeypatch.setattr(module.VideoQA, "from_pretrained", lambda source, **options: untrained_qa)
    return module.MmllmChat(batch_size=3, num_frames=6)


def request(messages, number, **options):
    """A request as lmms-eval makes it."""
    return SimpleNamespace(args=("context", lambda doc: messages[doc], options, number, "task", "test"))


def test_the_entry_point_names_our_class(module):
    from mmllm.evaluation.lmms_eval_manifest import CLASS, manifest

    made = manifest()
    assert (made.model_id, made.chat_class_path) == ("mmllm", CLASS)
    assert f"{module.__name__}.MmllmChat" == CLASS
    assert module.MmllmChat.is_simple is False
    found = [entry for entry in entry_points(group="lmms_eval.models") if entry.name == "mmllm"]
    assert not found or found[0].value == "mmllm.evaluation.lmms_eval_manifest:manifest"


def test_answers_are_those_of_the_model_and_videos_are_encoded_once(model, untrained_qa, short_clip, monkeypatch):
    question = {"type": "text", "text": "When does the red circle spin?"}
    video = {"type": "video", "url": str(short_clip)}
    messages = [
        [{"role": "user", "content": [video, question]}],
        [{"role": "user", "content": [{**video, "start_time": 1.0, "end_time": 6.0}, question]}],
        [{"role": "user", "content": [{"type": "image", "url": np.zeros((20, 30, 3), dtype=np.uint8)}, question]}],
        [{"role": "user", "content": [question]}],
        [{"role": "user", "content": [video, question]}],
    ]
    model.task_dict = {"task": {"test": list(range(len(messages)))}}
    encoded = []
    encode = type(untrained_qa).encode_video

    def counted(self, *given, **options):
        encoded.append(options)
        return encode(self, *given, **options)

    monkeypatch.setattr(type(untrained_qa), "encode_video", counted)
    results = model.generate_until([request(messages, number, max_new_tokens=8) for number in range(5)])
    assert encoded == [{"num_frames": 6}, {"num_frames": 6, "start_s": 1.0, "end_s": 6.0}]
    seen = encode(untrained_qa, short_clip, num_frames=6)
    ids = untrained_qa.new_ids(seen, question["text"], max_new_tokens=8)[0].tolist()
    assert results[0].text == results[4].text == untrained_qa.text_of(seen, ids, seen.duration_s)
    assert results[0].token_counts.output_tokens == 8
    assert results[0].token_counts.input_tokens > results[3].token_counts.input_tokens


def test_an_answer_ends_before_the_tasks_texts(model, short_clip):
    messages = [
        [{"role": "user", "content": [{"type": "video", "url": str(short_clip)}, {"type": "text", "text": "When?"}]}]
    ]
    model.task_dict = {"task": {"test": [0]}}
    whole = model.generate_until([request(messages, 0)])[0].text
    end = whole[len(whole) // 2 :][:3]
    (cut,) = model.generate_until([request(messages, 0, until=[end, ""])])
    assert cut.text == whole[: whole.index(end)]


def test_options_are_read_or_said_to_have_no_effect(module, caplog):
    options, ends = module._options(
        {"temperature": 0.5, "top_p": 0.9, "until": "\n", "num_beams": 1, "max_new_tokens": 3}
    )
    assert options == {"max_new_tokens": 3, "do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 0}
    assert ends == ["\n"]
    assert not caplog.records
    assert module._options({"temperature": 0, "num_beams": 4, "do_sample": False})[0] == {}
    assert "num_beams=4" in caplog.text


def test_what_cannot_be_done_is_refused(module, model, monkeypatch):
    with pytest.raises(InputError, match="audio"):
        model._item({"type": "audio", "url": "a.wav"})
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            method([])
    with pytest.raises(InputError, match="device = cuda"):
        module.MmllmChat(device="cuda:0")
