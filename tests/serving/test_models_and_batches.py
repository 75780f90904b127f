"""Several models behind one address, hosted ones, many clients at once, and metrics."""

import threading
from types import SimpleNamespace

import httpx
import pytest
import torch
from running_server import QUESTION, about, asked, refused, served

from mmllm.errors import CheckpointError
from mmllm.serving.models import Models
from mmllm.serving.refusals import Refused


class Weights(torch.nn.Module):
    """A model of so many bytes."""

    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size // 4))


def models(most, **sizes):
    """Models of some sizes, and the names that were loaded."""
    loads = []

    def load(name):
        loads.append(name)
        return SimpleNamespace(model=Weights(sizes[name]))

    return Models({name: name for name in sizes}, load, most), loads


def test_the_models_used_least_recently_are_dropped():
    served_models, loads = models(1000, a=400, b=400, c=400)
    for name in ("a", "b", "a", "c", "a", "b"):
        with served_models.use(name) as model:
            assert model.name == name
    assert loads == ["a", "b", "c", "b"]
    assert served_models.loaded == ["a", "b"]


def test_a_model_in_use_is_never_dropped():
    served_models, _ = models(500, a=400, b=400)
    with served_models.use("a"), served_models.use("b"):
        assert served_models.loaded == ["a", "b"]
    assert served_models.loaded == ["b"]
    with pytest.raises(Refused, match="known: a, b"):
        served_models.taken("c")


def test_a_model_that_cannot_be_loaded_is_tried_again():
    tries = []

    def load(name):
        tries.append(name)
        raise RuntimeError("broken")

    broken = Models({"a": "a"}, load, 100)
    for _ in range(2):
        with pytest.raises(RuntimeError), broken.use("a"):
            pass
    assert len(tries) == 2
    assert broken.loaded == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_cannot_be_loaded_is_the_servers_fault(untrained_qa, limits, caplog, tmp_path, stream):
    weights = tmp_path / "model.safetensors"

    def load(qa):
        if qa is None:
            raise CheckpointError(f"{weights}: this is no safetensors file")
        return qa

    with served(Models({"tiny": untrained_qa, "bad": None}, load, 10**12), limits) as ready:
        url = f"{ready.url}/v1/chat/completions"
        message = refused(httpx.post(url, json=asked(model="bad", stream=stream)), 500, "model_not_loaded")
        assert httpx.post(url, json=asked(), timeout=60).status_code == 200
    assert "'bad'" in message
    assert str(tmp_path) not in message
    assert "safetensors" not in message
    (record,) = [record for record in caplog.records if message.split()[-1] in record.getMessage()]
    assert str(weights) in str(record.exc_info[1])


def test_a_question_goes_to_the_model_that_it_names(untrained_qa, limits, short_clip):
    other = untrained_qa.with_stages(reducers=["uniform:ratio=0.5"])
    with served({"whole": untrained_qa, "half": other}, limits) as ready:
        tokens = {}
        for name in ("whole", "half"):
            body = {"model": name, "messages": about(short_clip)}
            usage = httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=60).json()["usage"]
            tokens[name] = usage["prompt_tokens_details"]["video_tokens_after_reducers"]
        assert tokens["half"] * 2 == tokens["whole"]
        listed = httpx.get(f"{ready.url}/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["whole", "half"]


def test_many_clients_at_once_get_the_answers_of_one_at_a_time(untrained_qa, limits, short_clip, second_clip):
    questions = [QUESTION, "What?", "When does the blue square grow on the left?", "When is it?"]
    bodies = [
        {"model": "tiny", "messages": about(path, question)}
        for question in questions
        for path in (short_clip, second_clip)
    ]

    def content(answer):
        message = answer.json()["choices"][0]["message"]
        return message["content"], str(message["spans"])

    with served({"tiny": untrained_qa}, limits, batching={"rows": 8, "window_s": 0.3}) as ready:
        url = f"{ready.url}/v1/chat/completions"
        alone = [content(httpx.post(url, json=body, timeout=120)) for body in bodies]
        together = [None] * len(bodies)

        def ask(number):
            together[number] = content(httpx.post(url, json=bodies[number], timeout=120))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert together == alone
        text = ready.answering.metrics.text()
    batches = float(text.split("mmllm_batch_rows_count ")[1].split("\n")[0])
    assert batches < 2 * len(bodies)
    assert len(set(alone)) > 1


def test_a_video_that_is_decoded_holds_up_no_answer_about_another(untrained_qa, limits, short_clip, second_clip):
    from mmllm.serving.reading_pool import PoolReading

    begun, going_on, read = threading.Event(), threading.Event(), PoolReading.read

    def slowly(self, path, *arguments, **options):
        if path.read_bytes() == second_clip.read_bytes():
            begun.set()
            assert going_on.wait(120)
        return read(self, path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, served({"tiny": untrained_qa}, limits) as ready:
        patch.setattr(PoolReading, "read", slowly)

        def ask(path):
            body = {"model": "tiny", "messages": about(path)}
            return httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=120).status_code

        held = []
        thread = threading.Thread(target=lambda: held.append(ask(second_clip)))
        thread.start()
        try:
            assert begun.wait(60)
            assert [ask(short_clip), ask(short_clip)] == [200, 200]  # decoded, then kept
            assert httpx.get(f"{ready.url}/health").status_code == 200
            assert not held
        finally:
            going_on.set()
            thread.join(60)
        assert held == [200]


def test_questions_about_one_video_are_one_batch_behind_its_cache(untrained_qa, limits, short_clip):
    with served({"tiny": untrained_qa}, limits, batching={"rows": 8, "window_s": 2.0}) as ready:
        url = f"{ready.url}/v1/chat/completions"
        bodies = [{"model": "tiny", "messages": about(short_clip, f"When is it {'there ' * n}?")} for n in range(4)]
        alone = [httpx.post(url, json=body, timeout=120).json() for body in bodies]
        before = ready.answering.metrics.text()
        together = [None] * len(bodies)

        def ask(number):
            together[number] = httpx.post(url, json=bodies[number], timeout=120).json()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        texts = (before, ready.answering.metrics.text())
    batches = [float(text.split("mmllm_batch_rows_count ")[1].split()[0]) for text in texts]
    assert [reply["choices"] for reply in together] == [reply["choices"] for reply in alone]
    assert batches[1] - batches[0] < len(bodies)
    cached = [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in (*alone, *together)]
    assert cached[0] == 0
    assert len(set(cached[1:])) == 1
    assert cached[1] > 0


def test_metrics_count_and_say_no_word_of_a_user(server, client, short_clip):
    client.chat.completions.create(model="tiny", messages=about(short_clip, "When does the secret word come?"))
    httpx.get(f"{server.url}/v1/secret")
    text = httpx.get(f"{server.url}/metrics").text
    assert 'mmllm_requests_total{endpoint="/v1/chat/completions",code="200"}' in text
    assert 'mmllm_requests_total{endpoint="other",code="404"}' in text
    assert 'mmllm_prompt_tokens_total{kind="visual"}' in text
    assert "mmllm_first_token_seconds_count" in text
    assert "secret" not in text
    for line in text.splitlines():
        if not line.startswith("#"):
            float(line.split()[-1])
