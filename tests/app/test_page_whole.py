"""Everything that the page can do, in a browser. It takes minutes; run it with `make test-browser`."""

import threading

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_answers_come_word_by_word_and_turns_follow_each_other(page, script):
    page.open()
    script.words = ("<t10>", "<t20>", *["the", "red", "circle", "spins", "."] * 30)
    states = page.ask("When does the red circle spin?")
    assert len(states) > 2
    assert len(states[0]) < len(states[-1])
    script.words = type(script).words
    page.ask("When does the red circle spin?")
    assert "nothing decoded or encoded again" in page.wait(lambda: page.text("#mm-status"))
    assert len(page.all("#mm-timeline .mm-span")) == 2


def test_an_answer_can_be_stopped(page, script, monkeypatch):
    page.open()
    monkeypatch.setattr(script, "pause_s", 0.12)
    script.words = ("<t10>", "<t20>", *["the", "red", "circle", "spins", "."] * 79)
    page.type("When does the red circle spin?")
    page.press("#mm-ask")
    page.wait(lambda: "red" in page.text("#mm-chat .bot"))
    page.press("#mm-stop")
    page.wait(lambda: "was stopped" in page.text("#mm-status"))
    assert page.first("#mm-timeline .mm-answer")
    page.wait(lambda: page.first("#mm-ask").is_enabled())


def test_several_videos_keep_their_answers(page, demo):
    page.open()
    page.ask("When does the red circle spin?")
    names = list(demo.handlers.examples)
    page.choose("#mm-clip", names[1])
    page.wait(lambda: names[1] in page.text("#mm-status"))
    page.wait(lambda: not page.all("#mm-timeline .mm-answer"))
    assert "the red circle" not in page.text("#mm-chat")
    page.choose("#mm-clip", names[0])
    page.wait(lambda: page.all("#mm-timeline .mm-answer"))
    assert "the red circle spins." in page.text("#mm-chat")


def test_settings_tell_their_cost_and_change_what_the_model_sees(page):
    page.open()
    before = page.text("#mm-cost-a")
    page.choose("#mm-reducer-a", "uniform:keep=4")
    page.wait(lambda: page.text("#mm-cost-a") != before)
    assert "reducer uniform" in page.text("#mm-cost-a")
    page.choose("#mm-path-a", "slowfast:mode=temporal")
    page.wait(lambda: "at most 12 visual tokens" in page.text("#mm-cost-a"))
    page.ask("When does the red circle spin?")
    page.tab("What the model sees")
    page.wait(lambda: "25% of the patches are kept" in page.text("#mm-sight"))
    assert "kept from before" in page.text("#mm-sight")
    frames = page.all("#mm-sight .mm-seen")
    assert len(frames) == 12
    frames[5].click()
    page.arrives(float(frames[5].get_attribute("data-time")))
    page.tab("Settings")
    page.choose("#mm-reducer-a", "diffrate:keep=4")
    page.wait(lambda: "inside the blocks" in page.text("#mm-cost-a .mm-refusal"))
    page.type("When does the red circle spin?")
    page.press("#mm-ask")
    page.wait(lambda: "inside the blocks" in page.text("#mm-status .mm-refusal"))


def test_an_own_video_can_be_asked_about(page, demo, bad_videos):
    page.open()
    page.press("#mm-player button[aria-label='Clear']")
    page.wait(lambda: page.all("#mm-player input[type=file]"))
    page.all("#mm-player input[type=file]")[0].send_keys(str(bad_videos["mine.mp4"]))
    page.wait(lambda: "mine.mp4" in page.text("#mm-status"))
    page.ask("When does the red circle spin?")
    page.press("#mm-timeline .mm-answer")
    page.arrives(float(page.first("#mm-timeline .mm-answer").get_attribute("data-time")))
    page.choose("#mm-clip", next(iter(demo.handlers.examples)))
    page.wait(lambda: "Example 1" in page.text("#mm-status"))
    page.choose("#mm-clip", "mine.mp4")
    page.wait(lambda: "mine.mp4" in page.text("#mm-status"))
    assert page.all("#mm-timeline .mm-answer")


def test_who_leaves_stops_the_answer(page, script, monkeypatch):
    page.open()
    script.words = ("<t10>", "<t20>", *["the", "red", "circle", "spins", "."] * 79)
    monkeypatch.setattr(script, "pause_s", 0.1)
    page.type("When does the red circle spin?")
    page.press("#mm-ask")
    page.wait(lambda: "red" in page.text("#mm-chat .bot"))
    page.browser.get("about:blank")
    page.wait(lambda: all(thread.name != "mmllm-generate" for thread in threading.enumerate()), 5)


def test_nothing_is_fetched_from_elsewhere(page, demo):
    page.open()
    page.ask("When does the red circle spin?")
    resources = page.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    foreign = [name for name in resources if not name.startswith((demo.url, "data:", "blob:"))]
    assert not foreign
