"""`check-times` of back ends: ours are right, transformers' processors have their known faults, an address answers."""

import copy
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from tiny_models import CASES as TINY
from tiny_processors import processor

from mmllm import cli
from mmllm.errors import InputError
from mmllm.evaluation.clock_address import AddressBackend
from mmllm.evaluation.clock_backends import NotOffered, TimesRefused
from mmllm.evaluation.clock_check import check_backend
from mmllm.evaluation.clock_own import OwnBackend
from mmllm.evaluation.clock_prompt import prompt_texts, written_times
from mmllm.evaluation.clock_requests import CASES, requests
from mmllm.evaluation.clock_transformers import TransformersBackend
from mmllm.evaluation.endpoint import EndpointConfig
from mmllm.hosting.model import HostedModel
from mmllm.inference.answering import VideoQA
from mmllm.inference.hosted import HostedVideoQA


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


def report(backend, folder, clips=1, **options):
    return check_backend(
        backend, requests(folder, clips), count=clips * len(CASES), progress=False, **{"ask": False, **options}
    )


def hosted(name, **settings):
    return OwnBackend(HostedVideoQA(HostedModel(TINY[name].model, processor(name)), max_new_tokens=4, **settings), name)


def large(name):
    """A tiny processor that leaves pictures large enough to be read."""
    changed = copy.copy(processor(name))
    changed.video_processor = copy.copy(changed.video_processor)
    if name in ("qwen2_5_vl", "qwen3_vl", "glm4v"):
        changed.video_processor.size = {"shortest_edge": 64 * 64, "longest_edge": 64 * 64 * 256}
    elif name == "llava_onevision":
        changed.video_processor.size = {"height": 64, "width": 64}
    return changed


def faults(found, kind):
    return set(found.fed[kind].faults)


# --- ours -----------------------------------------------------------------------------------------------------------


def test_the_packaged_model_has_no_fault(folder):
    found = report(OwnBackend(VideoQA.from_pretrained("default"), "default"), folder, clips=4, ask=True)
    assert found.healthy
    assert faults(found, "frame times") == set()
    assert found.answers.sees_clock
    assert found.answers.faults == {}
    assert found.answers.noise_s < 1.0
    assert "refused, as it should be" in found.remarks["frame list without times"]
    cases = {seen.situation.name for seen in found.observations}
    assert cases == {*CASES} - {"frame list without times", "second video"}
    assert all(len(seen.units) >= 16 for seen in found.observations)


def test_without_the_clock_of_its_frames_the_packaged_model_is_wrong(folder, monkeypatch):
    monkeypatch.setattr(VideoQA, "frame_clock", lambda *_: None)
    found = report(OwnBackend(VideoQA.from_pretrained("default"), "default"), folder, clips=4, ask=True)
    assert not found.healthy
    assert "index over fps" in found.answers.faults


def test_times_written_before_frames_are_read(folder):
    from mmllm.train.building import build_model
    from mmllm.train.recipes import DecoderConfig, ModelConfig

    decoder = DecoderConfig(width=32, layers=1, mlp_width=64)
    config = ModelConfig(
        encoder="tiny:width=16,heads=2,channels=8+8+8", decoder=decoder, num_frames=12, time="interleaved"
    )
    qa = VideoQA(*build_model(config, seed=0), max_new_tokens=4)
    found = report(OwnBackend(qa, "interleaved"), folder)
    assert found.healthy
    assert {seen.kind for seen in found.observations} == {"frame times", "time text"}
    text = [seen for seen in found.observations if seen.kind == "time text"]
    assert all(np.abs(seen.errors_s).max() <= 0.051 for seen in text)
    assert any(seen.fed_s.max() > 20 for seen in text)


@pytest.mark.parametrize(
    ("name", "kind"), [("qwen3_vl", "time text"), ("qwen2_5_vl", "position rows"), ("video_llama_3", "time text")]
)
def test_hosted_models_are_told_exact_times(folder, name, kind):
    found = report(hosted(name), folder)
    assert found.healthy
    assert {seen.kind for seen in found.observations} == {"frame times", kind}
    for seen in found.observations:
        assert np.abs(seen.errors_s).max() <= seen.tolerance_s + 1e-6
    assert {seen.situation.name for seen in found.observations if seen.kind == kind} == {
        *CASES
    } - {"frame list without times", "second video"}  # fmt: skip


def test_with_the_times_of_transformers_a_hosted_model_is_told_wrong_ones(folder):
    found = report(hosted("qwen3_vl", times="transformers"), folder)
    assert faults(found, "frame times") == set()
    assert faults(found, "time text") == {"index over fps", "ignored times"}
    assert found.unexplained == ()


def test_a_random_model_does_not_see_the_clock(folder):
    found = report(hosted("qwen3_vl"), folder, ask=True)
    assert found.healthy
    assert not found.answers.sees_clock
    assert found.answers.reason


# --- transformers' own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("qwen3_vl", "time text", {"index over fps", "frames without times"}),
        ("qwen2_5_vl", "grid seconds", {"index over fps", "frames without times", "stretched range"}),
        ("video_llama_3", "time text", {"index over fps", "frames without times"}),
        ("glm4v", "time text", {"index over fps", "frames without times", "whole seconds"}),
    ],
)
def test_faults_of_transformers_processors(folder, name, kind, expected):
    found = report(TransformersBackend(large(name), None, name), folder)
    assert faults(found, kind) == expected
    assert found.unexplained == ()
    seen = {each.situation.name for each in found.observations}
    assert {"plain", "late start", "variable rate", "cut range", "frame list", "frame list without times"} <= seen
    assert found.answers is None


def test_a_prompt_without_times_says_so(folder):
    found = report(TransformersBackend(large("llava_onevision"), None, "onevision"), folder)
    assert found.fed == {}
    assert found.healthy
    assert found.remarks["plain"] == "the prompt has no times"


def test_a_processor_without_videos_is_not_offered_any(folder):
    found = report(TransformersBackend(processor("gemma3"), None, "gemma3"), folder)
    assert "prepares no videos" in found.remarks["plain"]


def test_a_model_of_transformers_is_asked(folder):
    backend = TransformersBackend(large("qwen3_vl"), TINY["qwen3_vl"].model, "qwen3_vl", max_new_tokens=3)
    look = backend.look(next(requests(folder, 1)))
    (answer,) = look.ask(["When is the red circle on screen?"])
    assert isinstance(answer.text, str)
    assert answer.span is None


@pytest.mark.parametrize(
    ("texts", "times", "decimals"),
    [
        (["<0.5 seconds>", "<12.25 seconds>", "question 4"], (0.5, 12.25), 2),
        (["Time 1.0s:", ",Time 2.0s:", ""], (1.0, 2.0), 1),
        (["Frame from 00:12:", "Frame from 01:02:30:", "?"], (12.0, 3750.0), 0),
        (["video:", "3 seconds", "4.5 seconds end"], (3.0, 4.5), 1),
        (["<b>", "<e>3<b>", "<e>4<b> what"], (3.0, 4.0), 0),
        (["see 1.0 seconds, 2.0 s", "then", ""], None, 0),
        (["Frame1: ", "Frame2: ", "When?"], None, 0),
        (["When?", ""], None, 0),
    ],
)
def test_times_beside_frames(texts, times, decimals):
    found = written_times(texts)
    assert (None if found is None else found.times_s) == times
    assert found is None or found.decimals == decimals


def test_texts_between_placeholders():
    class Words:
        def decode(self, ids):
            return " ".join(map(str, ids))

    assert prompt_texts([1, 2, 9, 9, 3, 9], {9}, Words()) == ["1 2", "3", ""]
    assert prompt_texts([9, 1], {9}, Words()) == ["", "1"]
    assert prompt_texts([1], {9}, Words()) == ["1"]


# --- an address -----------------------------------------------------------------------------------------------------


class Seer(ThreadingHTTPServer):
    """A server that knows the clips: it answers with the true span, changed by `change` of start, end and request."""

    daemon_threads = True

    def __init__(self, folder, change=lambda span, case: span, refuses=()):
        self.change, self.refuses, self.bodies = change, refuses, []
        self.truth = {}
        for request in requests(folder, 4):
            for question, span in request.questions(counter=True):
                self.truth[request.clip.path.name, question] = span
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["messages"][0]["content"]
        kinds = [part["type"] for part in parts]
        self.server.bodies.append(body)
        status = 400 if set(kinds) & set(self.server.refuses) else 200
        question = parts[-1]["text"].split(" Answer with")[0]
        spans = [span for (_, asked), span in self.server.truth.items() if asked == question]
        start_s, end_s = self.server.change(spans[0], kinds)
        text = f"It happens from {start_s:.1f} to {end_s:.1f} seconds."
        self.send_response(status)
        self.end_headers()
        reply = {"choices": [{"message": {"content": text}}]} if status == 200 else {"error": "no such part"}
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(folder):
    running = []

    def start(*arguments, **options):
        running.append(Seer(folder, *arguments, **options))
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def at(server, folder, media="video"):
    return AddressBackend(EndpointConfig(url=server.url, model="m", pause_s=0, attempts=1), media, folder / "replies")


def exact(span, kinds):
    return span.start_s, span.end_s


def test_right_answers_of_an_address(folder, tmp_path, serve):
    server = serve(exact)
    found = report(at(server, tmp_path), folder, clips=4, ask=True)
    assert found.fed == {}
    assert "part of a video" in found.remarks["cut range"]
    assert found.answers.sees_clock
    known = {name: form for name, form in found.answers.faults.items() if name != "frames without times"}
    assert known == {}
    part = server.bodies[0]["messages"][0]["content"][0]
    assert part["type"] == "video_url"
    assert part["video_url"]["url"].startswith("data:video/mp4;base64,")


def test_whole_seconds_of_an_address(folder, tmp_path, serve):
    server = serve(lambda span, kinds: (round(span.start_s), round(span.end_s)))
    found = report(at(server, tmp_path), folder, clips=4, ask=True)
    assert "whole seconds" in found.answers.faults
    assert not found.healthy


def test_pictures_are_sent_with_their_times(folder, tmp_path, serve):
    server = serve(exact)
    found = report(at(server, tmp_path, "frames"), folder, ask=True)
    parts = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts[:3]] == ["text", "image_url", "text"]
    assert parts[0]["text"] == "0.0 seconds:"
    assert parts[2]["text"] == "0.5 seconds:"
    assert parts[1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    timeless = [body for body in server.bodies if len(body["messages"][0]["content"]) == 21]
    assert len(timeless) == 2
    assert "cut range" not in found.remarks
    assert found.remarks["frame list without times"] == "these answers are guesses at best"


def test_an_address_that_refuses_videos(folder, tmp_path, serve):
    server = serve(exact, refuses=("video_url",))
    found = report(at(server, tmp_path), folder, ask=True)
    assert re.search("not offered.*no such part", found.remarks["plain"])
    assert not found.answers.sees_clock


# --- the command ----------------------------------------------------------------------------------------------------


def run(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["check-times", *words])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_the_command_says_that_the_packaged_model_is_right(capsys):
    code, out, err = run(capsys, "--clips", "1", "--no-ask")
    assert code == 0
    assert "frame times: right" in out
    assert "answers: not asked" in out
    assert "look: 8/8 videos" in err


def test_the_command_prints_json_and_ends_with_1_for_a_fault(capsys, serve):
    server = serve(lambda span, kinds: (round(span.start_s), round(span.end_s)))
    code, out, _ = run(capsys, server.url, "--api-model", "m", "--clips", "4", "--json")
    content = json.loads(out)
    assert code == 1
    assert not content["healthy"]
    assert "whole seconds" in {fault["name"] for fault in content["faults"]}
    assert [case["case"] for case in content["cases"]] == list(CASES)
    assert content["cases"][0]["asked"] == 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["http://127.0.0.1:9/v1"], "--api-model is missing"),
        (["http://127.0.0.1:9/v1", "--api-model", "m", "--through", "transformers"], "--through transformers"),
        (["http://127.0.0.1:9/v1", "--api-model", "m", "--no-ask"], "--no-ask"),
        (["http://127.0.0.1:9/v1", "--api-model", "m", "--reducer", "fastervlm:keep=4"], "behind an address"),
        (["--api-model", "m"], "no address is given"),
        (["--media", "frames"], "--media frames is for addresses"),
        (["--clips", "0"], "--clips 0"),
        (["nowhere/at all"], "nowhere/at all"),
        (["default", "--through", "transformers", "--reducer", "fastervlm:keep=4"], "none of our stages"),
    ],
)
def test_flags_that_do_not_fit_are_refused(capsys, words, told):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert told in err


def test_reasons_are_errors_that_a_caller_can_tell_apart():
    assert issubclass(NotOffered, InputError)
    assert issubclass(TimesRefused, InputError)
