"""Which hosts, origins and calls are served, and the headers of every answer."""

import httpx
import pytest

from mmllm.app.browser_rules import BrowserRules
from mmllm.app.calls import Calls


def refused(rules, method="GET", **headers):
    answer = rules.refused(method, {name.replace("_", "-"): value for name, value in headers.items()})
    return answer is not None


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "127.0.0.1", ""])
def test_hosts_of_this_machine_are_served(host):
    assert not refused(BrowserRules(), host=host)
    assert not refused(BrowserRules(), "POST", host=host)


@pytest.mark.parametrize(
    "host",
    ["evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.5:7860", "[::2]:1", "x:y:z"],
)
def test_other_hosts_are_refused_unless_they_were_allowed(host):
    assert refused(BrowserRules(), host=host)
    assert refused(BrowserRules(host="localhost"), "POST", host=host)
    assert not refused(BrowserRules(allowed_hosts=["evil.example", "127.0.0.1.evil.example", "localhost.evil.example",
                                                   "10.0.0.5", "::2", "x:y:z"]), host=host)  # fmt: skip


def test_a_server_of_a_network_is_known_by_many_names():
    assert not refused(BrowserRules(host="0.0.0.0"), host="lab.local:7860")
    assert refused(BrowserRules(host="0.0.0.0", allowed_hosts=["lab.local"]), host="evil.example")
    assert refused(BrowserRules(host="0.0.0.0"), "POST", host="lab.local:7860", origin="http://evil.example")


def test_a_public_link_is_allowed_later():
    rules = BrowserRules()
    rules.allow("abc.gradio.live")
    assert not refused(rules, "POST", host="abc.gradio.live", origin="https://abc.gradio.live")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:3000", "https://127.0.0.1", "http://[", "", "file://"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_foreign_origins_are_refused(origin, method):
    assert refused(BrowserRules(), method, host="127.0.0.1:7860", origin=origin)


def test_the_demos_own_page_and_programs_are_served():
    rules = BrowserRules()
    own = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860", "sec_fetch_site": "same-origin"}
    assert not refused(rules, "POST", **own)
    assert not refused(rules, "POST", host="127.0.0.1:7860")
    proxied = BrowserRules(allowed_hosts=["demo.example"])
    assert not refused(proxied, "POST", host="127.0.0.1:7860", origin="https://demo.example")


@pytest.mark.parametrize("site", ["cross-site", "same-site", "odd"])
def test_what_other_sites_may_do_is_to_link_to_the_page(site):
    rules, host = BrowserRules(), "127.0.0.1:7860"
    assert not refused(rules, "GET", host=host, sec_fetch_site=site, sec_fetch_mode="navigate")
    assert refused(rules, "POST", host=host, sec_fetch_site=site, sec_fetch_mode="navigate")
    assert refused(rules, "GET", host=host, sec_fetch_site=site, sec_fetch_mode="no-cors")


CALLS = Calls(
    by_name={"ask": ["video", "textbox", "slider", "checkbox", "state"]}, by_number={3: ["state", "dropdown"]}
)
FILE = {"path": "/a", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/call/ask", {"data": [FILE, "When?", 0.5, True, None]}),
        ("/call/v2/ask/", {"data": [None, None, 4, False, {"a": 1}]}),
        ("/run/ask", {"data": [{"video": FILE, "subtitles": None}, "", 1, True, 5]}),
        ("/queue/join", {"data": [None, "x"], "fn_index": 3, "session_hash": "a"}),
        ("/run/predict", {"data": [None, None], "fn_index": 3, "session_hash": "a"}),
        ("/reset", {"event_id": 5}),
    ],
)
def test_calls_that_fit(path, message):
    assert CALLS.malformed(path, message) is None


@pytest.mark.parametrize(
    ("path", "message", "said"),
    [
        ("/call/ask", [], "JSON object"),
        ("/reset", None, "JSON object"),
        ("/call/ask", {}, "must be a list"),
        ("/call/nothing", {"data": []}, "no endpoint"),
        ("/call/ask", {"data": [FILE] * 4}, "must have 5 values"),
        ("/call/ask", {"data": [{"path": 5}, "", 1, True, 0]}, r"data\[0\]"),
        ("/call/ask", {"data": [FILE, 5, 1, True, 0]}, r"data\[1\]"),
        ("/call/ask", {"data": [FILE, "", "1", True, 0]}, r"data\[2\]"),
        ("/call/ask", {"data": [FILE, "", None, True, 0]}, r"data\[2\]"),
        ("/call/ask", {"data": [FILE, "", True, True, 0]}, r"data\[2\]"),
        ("/call/ask", {"data": [FILE, "", 1, "yes", 0]}, r"data\[3\]"),
        ("/queue/join", {"data": [], "fn_index": 4, "session_hash": "a"}, "names no endpoint"),
        ("/queue/join", {"data": [], "fn_index": 10**40, "session_hash": "a"}, "names no endpoint"),
        ("/queue/join", {"data": [], "fn_index": "3", "session_hash": "a"}, "names no endpoint"),
        ("/queue/join", {"data": [None, "x"], "fn_index": 3, "session_hash": 5}, "session_hash"),
    ],
)
def test_calls_that_do_not_fit(path, message, said):
    import re

    assert re.search(said, CALLS.malformed(path, message))


@pytest.mark.slow
def test_the_running_demo_follows_the_rules(demo, caplog):
    with httpx.Client(base_url=demo.url, timeout=60) as http:
        page = http.get("")
        assert page.status_code == 200
        for answer in (page, http.get("config"), http.get("nowhere"), http.post("gradio_api/call/ask", json={})):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert http.get("", headers={"host": "evil.example"}).status_code == 403
        assert http.get("config", headers={"origin": "http://evil.example"}).status_code == 403
        crossed = {"origin": "http://evil.example", "content-type": "text/plain"}
        assert http.post("gradio_api/call/cost", content="{}", headers=crossed).status_code == 403
        data = ["none", 0.5, "as trained", 4]
        assert http.post("gradio_api/call/cost", json={"data": data}).status_code == 200
        caplog.clear()
        for path in ("call/cost", "run/cost", "queue/join", "call/nothing"):
            for body in (b"{", b"\xff", b"[1]", b'{"data": 5}', b'{"data": [1]}', b'{"data": [], "fn_index": 999}'):
                assert http.post(f"gradio_api/{path}", content=body).status_code == 400, (path, body)
        assert http.post("gradio_api/reset", json={}).status_code == 400
        assert len(caplog.records) == 25
        assert not any(record.exc_info for record in caplog.records)
