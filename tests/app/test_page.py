"""The page in a browser: chromium, controlled by selenium."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_from_a_question_to_its_instant_and_to_the_exports(page, demo, script, tmp_path):
    page.open()
    name, example = list(demo.handlers.examples.items())[1]
    page.choose("#mm-clip", name)
    page.wait(lambda: name in page.text("#mm-status"))

    # ask a suggestion: the answer comes word by word, then it has a bar
    question = next(iter(example.truths))
    page.wait(lambda: page.text("#mm-suggestions button").startswith(question))
    page.press("#mm-suggestions button")
    page.wait(lambda: page.first("#mm-question textarea").get_property("value") == question)
    script.words, script.pause_s = ("<t20>", "<t60>", *["the", "red", "circle", "spins", "."] * 30), 0.03
    states = [text for text in page.ask() if "the red" in text]
    assert len(states) > 2
    assert all(after.startswith(before.rstrip("… \n")) for before, after in pairwise(states[:-1]))
    assert "<t" not in page.text("#mm-chat")
    bar, truth = page.first("#mm-timeline .mm-answer"), page.first("#mm-timeline .mm-truth")
    start_s = float(bar.get_attribute("data-time"))
    assert start_s > 3
    assert float(truth.get_attribute("data-time")) == pytest.approx(example.truths[question].start_s, abs=0.01)

    # the bar, a frame and a row of the list move the player
    page.press("#mm-timeline .mm-answer")
    page.arrives(start_s)
    page.press("#mm-here")  # sends the position to the server
    question_here = page.wait(lambda: page.first("#mm-question textarea").get_property("value"))
    assert float(question_here.split(" at ")[1].split(" s")[0]) == pytest.approx(start_s, abs=0.3)
    frame = page.all("#mm-timeline .mm-frame")[6]
    frame.click()
    page.arrives(float(frame.get_attribute("data-time")))
    page.press("#mm-timeline .mm-span")
    page.arrives(start_s)

    # with another reducer the cost changes and the model sees fewer patches
    script.words, script.pause_s = type(script).words, 0.0
    page.choose("#mm-reducer-a", "uniform:keep=4")
    page.wait(lambda: "reducer uniform" in page.text("#mm-cost-a"))
    page.ask(question)
    assert "nothing decoded or encoded again" in page.text("#mm-status")
    page.tab("What the model sees")
    page.wait(lambda: "25% of the patches are kept" in page.text("#mm-sight"))

    # the same question under two settings
    page.tab("Compare")
    page.choose("#mm-path-b", "slowfast:mode=temporal")
    page.wait(lambda: "at most 12" in page.text("#mm-cost-b"))
    page.press("#mm-compare")
    page.wait(lambda: page.all("#mm-comparison .mm-other"))
    rows = dict(row.text.split(" tokens ") for row in page.all("#mm-comparison tbody tr") if " tokens " in row.text)
    assert rows["visual"].split()[1] == "12"
    page.press("#mm-comparison .mm-other")
    page.arrives(float(page.first("#mm-comparison .mm-other").get_attribute("data-time")))

    # export all files
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.tab("Export")
    for ending in ("json", "vtt", "png"):
        page.press(f"#mm-{ending}")
        page.wait(lambda ending=ending: list(tmp_path.glob(f"*.{ending}")))
    (answers,), (subtitles,), (plot,) = (list(tmp_path.glob(f"*.{ending}")) for ending in ("json", "vtt", "png"))
    assert [turn["question"] for turn in json.loads(answers.read_text())["answers"]] == [question] * 2
    assert subtitles.read_text().startswith("WEBVTT\n\n00:00:")
    assert plot.read_bytes().startswith(b"\x89PNG")
    screenshot(page, tmp_path, "whole")
    assert not page.problems()


def test_files_of_an_earlier_answer_are_not_those_of_the_next(page, script):
    page.open()
    page.ask("When does the red circle spin?")
    page.tab("Export")
    page.wait(lambda: page.first("#mm-json").is_enabled())
    script.words, script.pause_s = ("<t20>", "<t60>", *["the", "red", "circle", "spins", "."] * 30), 0.03
    page.type("When does the red circle spin?")
    page.press("#mm-ask")
    page.wait(lambda: not page.first("#mm-json").is_enabled())
    page.wait(lambda: page.first("#mm-json").is_enabled())
    assert len(page.all("#mm-timeline .mm-answer")) == 2


def test_bad_uploads_get_a_message_and_the_page_goes_on(page, demo, bad_videos):
    page.open()
    page.press("#mm-player button[aria-label='Clear']")
    page.wait(lambda: not page.all("#mm-timeline .mm-frame"))  # what clears the page must not clear the first message
    for name in ("text.mp4", "empty.mp4", "sound.mp4", "long.mp4", "huge.mp4", "cut.mp4"):
        page.wait(lambda: page.all("#mm-player input[type=file]"))
        page.all("#mm-player input[type=file]")[0].send_keys(str(bad_videos[name]))
        page.wait(lambda name=name: f"cannot be used. {name}" in page.text("#mm-status"))
        assert "Traceback" not in page.text("body")
        assert str(demo.folder) not in page.text("body")
        assert not list(demo.folder.rglob(name))
    page.choose("#mm-clip", next(iter(demo.handlers.examples)))
    page.wait(lambda: page.all("#mm-timeline .mm-frame"))
    page.ask("When does the red circle spin?")


def test_everything_is_reached_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.open()
    page.type("When does the red circle spin?")
    page.first("#mm-question textarea").send_keys(Keys.ENTER)
    page.wait(lambda: page.all("#mm-timeline .mm-answer"))
    bar = page.first("#mm-timeline .mm-answer")
    active = ""
    page.js("document.querySelector('#mm-clip input').focus()")
    for _ in range(60):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        active = page.js("return document.activeElement.className")
        if "mm-answer" in active:
            break
    assert "mm-answer" in active
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)
    page.arrives(float(bar.get_attribute("data-time")))


CONTRAST = """
const rgb = (text) => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
  return Array.from(canvas.getImageData(0, 0, 1, 1).data);
};
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const color = rgb(getComputedStyle(element).backgroundColor);
    if (color[3] > 200) return color;
  }
  return [255, 255, 255, 255];
};
const least = {};
for (const element of document.querySelectorAll(arguments[0])) {
  const own = Array.from(element.childNodes).some((node) => node.nodeType == Node.TEXT_NODE && node.data.trim());
  if (!own || !element.offsetParent || element.closest("[disabled]")) continue;
  const ground = behind(element), raw = rgb(getComputedStyle(element).color), alpha = raw[3] / 255;
  const color = raw.map((value, i) => value * alpha + ground[i] * (1 - alpha));
  const [a, b] = [light(color), light(ground)].sort((p, q) => q - p);
  const ratio = (a + 0.05) / (b + 0.05);
  const name = element.className || element.tagName;
  least[name] = Math.min(least[name] ?? 99, ratio);
}
return least;
"""


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 400)])
def test_it_is_legible_in_both_themes_and_on_narrow_screens(page, theme, width, tmp_path):
    page.open(theme, width)
    page.ask("When does the red circle spin?")
    assert page.js("return document.documentElement.scrollWidth") <= width
    contrasts = page.js(CONTRAST, ".gradio-container *")  # all text of the page
    assert {"mm-name", "mm-tick", "mm-note", "mm-span", "TD"} <= set(contrasts)
    assert len(contrasts) > 20
    assert all(ratio >= 4.5 for ratio in contrasts.values()), contrasts
    assert len(page.all("#mm-tabs button[role=tab]")) >= 4  # no tab is hidden in a menu
    bar = page.first("#mm-timeline .mm-answer").rect
    assert bar["height"] >= 15
    screenshot(page, tmp_path, f"{theme}-{width}")


def screenshot(page, folder, name):
    """Saves a picture of the page; a copy goes to the folder that MMLLM_SCREENSHOTS names."""
    path = folder / f"{name}.png"
    assert page.browser.save_screenshot(str(path))
    assert path.stat().st_size > 10_000
    if target := os.environ.get("MMLLM_SCREENSHOTS"):
        Path(target).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
