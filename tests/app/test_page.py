"""The page as people use it, in a browser: Debian's chromium through selenium."""

import json
import shutil
import threading
import time

import pytest

pytestmark = pytest.mark.slow
WAIT_S = 90


@pytest.fixture(scope="module")
def chromium():
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed (it comes with the extra dev)"
    )
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,1400"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Page:
    """What a visitor does and sees."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url

    def open(self, theme="light", width=1280):
        metrics = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.browser.get(f"{self.url}?__theme={theme}")
        self.wait(lambda: self.all(".mm-frame") and self.all("#mm-suggestions button") and self.text("#mm-status"))
        return self

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.wait(lambda: self.all(selector))[0]

    def text(self, selector):
        return " ".join(found.text for found in self.all(selector)).strip()

    def js(self, code, *given):
        return self.browser.execute_script(code, *given)

    def wait(self, what, seconds=WAIT_S):
        from selenium.common.exceptions import WebDriverException

        deadline, told = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                if found := what():
                    return found
            except WebDriverException as problem:  # an element that was just replaced
                told = problem
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds} s in vain; the page says {self.text('#mm-status')!r} {told or ''}")

    def press(self, selector):
        self.wait(lambda: self.one(selector).is_enabled())
        self.js("arguments[0].scrollIntoView({block: 'center'})", self.one(selector))
        self.one(selector).click()

    def choose(self, selector, value):
        """An entry of a list that can be typed into."""
        from selenium.webdriver.common.keys import Keys

        box = self.one(f"{selector} input")
        self.js("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", box)
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(value, Keys.ENTER)
        self.js("arguments[0].blur()", box)

    def tab(self, name):
        for button in self.all("button[role=tab]"):
            if button.text == name:
                self.js("arguments[0].click()", button)
                return
        raise AssertionError(f"no tab {name}")

    def type(self, question):
        box = self.one("#mm-question textarea")
        box.clear()
        box.send_keys(question)

    def ask(self, question):
        """Asks, and gives every state of the last message that was seen until the answer was complete."""
        before = len(self.all("#mm-timeline .mm-answer"))
        self.type(question)
        self.press("#mm-ask")
        seen = []

        def finished():
            said = self.all("#mm-chat .bot .message-content, #mm-chat .bot.message")
            if said and (not seen or said[-1].text != seen[-1]):
                seen.append(said[-1].text)
            return len(self.all("#mm-timeline .mm-answer")) > before

        self.wait(finished)
        return seen

    @property
    def position_s(self):
        return self.js("return document.querySelector('#mm-player video').currentTime")

    def arrives(self, time_s):
        self.wait(lambda: abs(self.position_s - time_s) <= 0.3, 20)

    def problems(self):
        """What the browser complained of."""
        return [one for one in self.browser.get_log("browser") if one["level"] == "SEVERE"]


@pytest.fixture
def page(chromium, demo, script):
    script.words = type(script).words
    chromium.get_log("browser")
    return Page(chromium, demo.url)


def test_from_a_question_to_the_instant(page, example):
    page.open()
    question = next(iter(example.truths))
    assert question in page.text("#mm-suggestions")
    page.press("#mm-suggestions button")
    page.wait(lambda: page.one("#mm-question textarea").get_property("value") == question)
    page.press("#mm-ask")
    page.wait(lambda: page.all("#mm-timeline .mm-answer"))
    assert page.wait(lambda: page.one("#mm-question textarea").get_property("value") == "")
    assert "the red circle spins." in page.text("#mm-chat")
    assert "<t" not in page.text("#mm-chat")
    bar, truth = page.one("#mm-timeline .mm-answer"), page.one("#mm-timeline .mm-truth")
    start_s = float(bar.get_attribute("data-time"))
    assert start_s > 3
    assert float(truth.get_attribute("data-time")) == pytest.approx(example.truths[question].start_s, abs=0.01)
    page.press("#mm-timeline .mm-answer")
    page.arrives(start_s)
    page.press("#mm-here")  # the position as the server is told it
    told = page.wait(lambda: page.one("#mm-question textarea").get_property("value"))
    assert float(told.split(" at ")[1].split(" s")[0]) == pytest.approx(start_s, abs=0.3)
    frame = page.all("#mm-timeline .mm-frame")[6]
    frame.click()
    page.arrives(float(frame.get_attribute("data-time")))
    page.press("#mm-timeline .mm-span")
    page.arrives(start_s)
    assert not page.problems()


def test_answers_come_word_by_word_and_turns_follow_each_other(page, script):
    page.open()
    script.words = ("<t10>", "<t20>", *["the", "red", "circle", "spins", "."] * 30)
    seen = page.ask("When does the red circle spin?")
    assert len(seen) > 2
    assert len(seen[0]) < len(seen[-1])
    script.words = type(script).words
    page.ask("When does the red circle spin?")
    assert "nothing decoded or encoded again" in page.wait(lambda: page.text("#mm-status"))
    assert len(page.all("#mm-timeline .mm-span")) == 2


def test_an_answer_can_be_stopped(page, script):
    page.open()
    script.words = ("<t10>", "<t20>", *["the", "red", "circle", "spins", "."] * 79)
    page.type("When does the red circle spin?")
    page.press("#mm-ask")
    page.wait(lambda: "red" in page.text("#mm-chat .bot"))
    page.press("#mm-stop")
    page.wait(lambda: "was stopped" in page.text("#mm-status"))
    assert page.one("#mm-timeline .mm-answer")
    page.wait(lambda: page.one("#mm-ask").is_enabled())


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
    seen = page.all("#mm-sight .mm-seen")
    assert len(seen) == 12
    seen[5].click()
    page.arrives(float(seen[5].get_attribute("data-time")))
    page.tab("Settings and cost")
    page.choose("#mm-reducer-a", "diffrate:keep=4")
    page.wait(lambda: "inside the blocks" in page.text("#mm-cost-a .mm-refusal"))
    page.type("When does the red circle spin?")
    page.press("#mm-ask")
    page.wait(lambda: "inside the blocks" in page.text("#mm-status .mm-refusal"))


def test_two_settings_side_by_side(page):
    page.open()
    page.type("When does the red circle spin?")
    page.tab("Compare")
    page.choose("#mm-path-b", "slowfast:mode=temporal")
    page.wait(lambda: "at most 12" in page.text("#mm-cost-b"))
    page.press("#mm-compare")
    page.wait(lambda: page.all("#mm-comparison .mm-other"))
    rows = {row.text.split("\n")[0] for row in page.all("#mm-comparison tbody tr")}
    assert any(row.startswith("visual tokens 28 12") for row in rows)
    page.press("#mm-comparison .mm-other")
    page.arrives(float(page.one("#mm-comparison .mm-other").get_attribute("data-time")))


def test_answers_can_be_taken_away(page, tmp_path):
    page.open()
    taken = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", taken)
    page.ask("When does the red circle spin?")
    page.tab("Export")
    for name in ("json", "vtt", "png"):
        page.press(f"#mm-{name}")
        page.wait(lambda name=name: list(tmp_path.glob(f"*.{name}")))
    (told,), (subtitles,), (plot,) = (list(tmp_path.glob(f"*.{name}")) for name in ("json", "vtt", "png"))
    assert json.loads(told.read_text())["answers"][0]["text"] == "the red circle spins."
    assert subtitles.read_text().startswith("WEBVTT\n\n00:00:")
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["text.mp4", "empty.mp4", "sound.mp4", "long.mp4", "huge.mp4", "cut.mp4"])
def test_a_bad_upload_gets_a_message_and_the_page_goes_on(page, demo, bad_videos, name):
    page.open()
    page.press("#mm-player button[aria-label='Clear']")
    page.wait(lambda: page.all("#mm-player input[type=file]"))
    page.all("#mm-player input[type=file]")[0].send_keys(str(bad_videos[name]))
    page.wait(lambda: "cannot be used" in page.text("#mm-status"))
    assert "Traceback" not in page.text("body")
    assert str(demo.folder) not in page.text("body")
    assert not list(demo.folder.rglob(name))
    page.choose("#mm-clip", next(iter(demo.handlers.examples)))
    page.wait(lambda: page.all("#mm-timeline .mm-frame"))
    page.ask("When does the red circle spin?")


def test_an_own_video_can_be_asked_about(page, demo, bad_videos):
    page.open()
    page.press("#mm-player button[aria-label='Clear']")
    page.wait(lambda: page.all("#mm-player input[type=file]"))
    page.all("#mm-player input[type=file]")[0].send_keys(str(bad_videos["mine.mp4"]))
    page.wait(lambda: "mine.mp4" in page.text("#mm-status"))
    page.ask("When does the red circle spin?")
    page.press("#mm-timeline .mm-answer")
    page.arrives(float(page.one("#mm-timeline .mm-answer").get_attribute("data-time")))
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


def test_everything_is_reached_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.open()
    page.type("When does the red circle spin?")
    page.one("#mm-question textarea").send_keys(Keys.ENTER)
    page.wait(lambda: page.all("#mm-timeline .mm-answer"))
    bar = page.one("#mm-timeline .mm-answer")
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
  if (!element.innerText || !element.offsetParent) continue;
  const ground = behind(element), raw = rgb(getComputedStyle(element).color), share = raw[3] / 255;
  const color = raw.map((value, i) => value * share + ground[i] * (1 - share));
  const [a, b] = [light(color), light(ground)].sort((p, q) => q - p);
  const ratio = (a + 0.05) / (b + 0.05);
  const name = element.className || element.tagName;
  least[name] = Math.min(least[name] ?? 99, ratio);
}
return least;
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_is_legible_in_both_themes_and_on_narrow_screens(page, theme, width):
    page.open(theme, width)
    page.ask("When does the red circle spin?")
    assert page.js("return document.documentElement.scrollWidth") <= width
    contrasts = page.js(CONTRAST, ".mm-name, .mm-tick, .mm-note, .mm-span, .mm-table th, .mm-table td, #mm-head h1")
    assert {"mm-name", "mm-tick", "mm-note", "mm-span"} <= set(contrasts)
    assert all(ratio >= 4.5 for ratio in contrasts.values()), contrasts
    bar = page.one("#mm-timeline .mm-answer").rect
    assert bar["height"] >= 15


def test_nothing_is_fetched_from_elsewhere(page, demo):
    page.open()
    page.ask("When does the red circle spin?")
    fetched = page.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    elsewhere = [name for name in fetched if not name.startswith((demo.url, "data:", "blob:"))]
    assert not elsewhere
