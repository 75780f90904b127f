"""The judge: its request, its ratings, a stub of the endpoint with all its moods, the cache, the commands' flags."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmllm import cli
from mmllm.errors import ConfigError, InputError, MmllmError
from mmllm.evaluation.endpoint import Endpoint, EndpointConfig
from mmllm.evaluation.judge import Judge, judge_messages, judge_scores, ratings_of
from mmllm.evaluation.samples import Sample, write_samples
from mmllm.times.answers import Span


def answered(number, text="He chops onions.", **fields):
    return Sample(
        question_id=f"v{number}_0",
        vid=f"v{number}",
        family="temporal_reasoning",
        question="When is the stove not used?",
        duration_s=60.0,
        truth_spans=(Span(10, 30),),
        truth_text="The cook is away and chops onions.",
        prediction_raw=f"<10> <20> {text}",
        prediction_spans=(Span(10, 20),),
        prediction_text=text,
        **fields,
    )


class Stub(ThreadingHTTPServer):
    """An endpoint that gives what `replies` says, in turn; the last one for ever. A reply is a text or a status."""

    daemon_threads = True

    def __init__(self, *replies):
        self.replies, self.requests = list(replies), []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        replies = self.server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply == "slow":
            threading.Event().wait(6.0)
            reply = "9 9"
        status = reply if isinstance(reply, int) else 200
        message = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
        text = reply[1:] if isinstance(reply, str) and reply.startswith("!") else json.dumps(message)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()
        self.wfile.write(text.encode() if status == 200 else b'{"error": "no such model"}')

    def log_message(self, *_):
        pass


@pytest.fixture
def stub():
    running = []

    def start(*replies):
        running.append(Stub(*replies))
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def judge_at(server, folder, **fields):
    config = EndpointConfig(**{"url": server.url, "model": "m", "pause_s": 0, "timeout_s": 30, **fields})
    return Judge(config, folder, {"v0": "<0> <9> He enters."})


@pytest.mark.parametrize(
    ("reply", "ratings"),
    [
        ("8 6\nThe first is better.", (8, 6)),
        ("\n\n 8, 6.5 \n", (8, 6.5)),
        ("7/10 4/10", (7, 4)),
        ("10 1", (10, 1)),
        ("8", None),
        ("8 6 4", None),
        ("Assistant 1: 8", None),
        ("I rate them\n8 6", None),
        ("0 11", None),
        ("-8 6", None),
        ("", None),
        ("٨ ٦ x", None),
    ],
)
def test_ratings_stand_alone_on_the_first_line(reply, ratings):
    assert ratings_of(reply) == ratings


def test_the_judge_reads_the_captions_the_question_and_both_explanations_without_their_times():
    system, request = judge_messages(answered(0), "<0> <9> He enters.")
    assert (system["role"], request["role"]) == ("system", "user")
    parts = ["<0> <9> He enters.", "When is the stove not used?", "The cook is away", "He chops onions."]
    places = [request["content"].index(part) for part in parts]
    assert places == sorted(places)
    assert "<10>" not in request["content"]
    assert "nothing was written down" in judge_messages(answered(0))[1]["content"]


def test_the_score_is_a_ratio_of_means_and_leaves_out_what_cannot_be_read(tmp_path, stub):
    server = stub("8 4", "Both are fine.", "10 5")
    judge = judge_at(server, tmp_path)
    # different texts: a reply to the same text may be kept before it is asked for again
    samples = [answered(i, text=f"He chops {i} onions.") for i in range(3)] + [answered(3, error="no frames")]
    scores = judge.judge(samples, tmp_path / "judged.jsonl")
    assert scores["score"] == pytest.approx((4 + 5) / (8 + 10))
    assert (scores["rated"], scores["unparseable"], scores["unanswered"]) == (2, 1, 1)
    assert (scores["model"], scores["reference_rating"], scores["answer_rating"]) == ("m", 9, 4.5)
    lines = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == ["v0_0", "v1_0", "v2_0"]
    assert sum(line["ratings"] is None for line in lines) == 1
    assert len(server.requests) == 3
    assert server.requests[0]["path"] == "/v1/chat/completions"
    assert (server.requests[0]["temperature"], server.requests[0]["max_tokens"]) == (0.2, 1024)


def test_nothing_to_rate():
    assert judge_scores([])["score"] is None


def test_a_reply_is_asked_for_once(tmp_path, stub):
    server = stub("8 4")
    judge = judge_at(server, tmp_path)
    first = judge.judge([answered(0), answered(1)])
    assert judge_at(server, tmp_path).judge([answered(0), answered(1)]) == first
    assert len(server.requests) == 2
    judge.judge([answered(0, text="Something else.")])  # another answer
    judge_at(server, tmp_path, model="other").judge([answered(0)])
    assert len(server.requests) == 4
    next((tmp_path / "judge").glob("*.json")).write_text('{"reply"')  # damaged
    assert judge.judge([answered(0), answered(1)]) == first


def test_a_busy_or_slow_endpoint_is_asked_again(tmp_path, stub):
    server = stub(429, 503, "!<html>", '!{"choices": []}', "slow", "6 3")
    assert judge_at(server, tmp_path, attempts=6, timeout_s=2).verdict(answered(0)).ratings == (6, 3)
    assert len(server.requests) == 6


def test_an_endpoint_that_stays_down_is_an_error_and_keeps_what_was_said(tmp_path, stub):
    server = stub("6 3", 500)
    judge = judge_at(server, tmp_path, attempts=2)
    judge.verdict(answered(0))
    with pytest.raises(MmllmError, match=r"no reply in 2 attempts: 500") as failure:
        judge.judge([answered(1)])
    assert failure.value.exit_code == 1
    assert judge.verdict(answered(0)).ratings == (6, 3)
    nowhere = Endpoint(EndpointConfig(url="http://127.0.0.1:9/v1", model="m", attempts=1), tmp_path)
    with pytest.raises(MmllmError, match="refused"):
        nowhere.reply([{"role": "user", "content": "?"}])


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_refusal_is_not_repeated(tmp_path, stub, status, monkeypatch):
    monkeypatch.setenv("MMLLM_JUDGE_KEY", "secret")
    server = stub(status)
    with pytest.raises(InputError, match=f"{status}.*no such model") as failure:
        judge_at(server, tmp_path).verdict(answered(0))
    assert ("MMLLM_JUDGE_KEY" in str(failure.value)) == (status == 401)
    assert "secret" not in str(failure.value)
    assert [request["key"] for request in server.requests] == ["Bearer secret"]


def test_no_key_is_sent_where_none_is_set(tmp_path, stub, monkeypatch):
    for name in ("MMLLM_JUDGE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    server = stub("6 3")
    judge_at(server, tmp_path).verdict(answered(0))
    assert server.requests[0]["key"] is None
    assert all("secret" not in file.read_text() for file in (tmp_path / "judge").iterdir())


@pytest.mark.parametrize("fields", [{"url": "file:///etc"}, {"model": ""}, {"timeout_s": 0}, {"attempts": 0}])
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ConfigError):
        EndpointConfig(**{"url": "http://a", "model": "m", **fields})


def test_the_score_command_asks_a_judge_and_says_so_where_there_is_none(tmp_path, stub, capsys):
    write_samples(tmp_path / "samples.jsonl", [answered(i) for i in range(2)])
    (tmp_path / "val_1.json").write_text(
        json.dumps({"v_v0": {"duration": 60, "timestamps": [[1.5, 9]], "sentences": [" A man cooks. "]}})
    )

    def run(*more):
        with pytest.raises(SystemExit) as ended:
            cli.main(["score", str(tmp_path / "samples.jsonl"), *more])
        printed = capsys.readouterr()
        return ended.value.code, " ".join(printed.out.split()), printed.err

    assert "not judged (--judge-url and --judge-model)" in run()[1]
    server = stub("8 4")
    flags = ["--judge-url", server.url, "--judge-model", "m"]
    assert "judged by m 50.0 (2 rated, 0 unparseable)" in run(*flags)[1]
    captioned = run(*flags, "--judge-captions", str(tmp_path / "val_1.json"), "--json")[1]
    assert json.loads(captioned)["judge"]["score"] == 0.5
    assert sum("<1.5> <9> A man cooks." in request["messages"][1]["content"] for request in server.requests) == 1
    for wrong in (flags[:2], flags[2:], ["--judge-captions", str(tmp_path / "val_1.json")]):
        code, _, err = run(*wrong)
        assert code == 2
        assert "--judge-" in err
