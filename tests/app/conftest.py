"""An engine with the untrained model, good and bad videos, a running demo, and a browser that shows its page."""

import os
import shutil
import time

import pytest

_WAIT_S = 90


@pytest.fixture(scope="session")
def demo_limits():
    from mmllm.app.limits import DemoLimits

    return DemoLimits(
        video_s=60.0, new_tokens=400, frames=40, kept_videos=6, upload_mb=2, all_uploads_mb=60, waiting=16
    )


@pytest.fixture
def engine(untrained_qa, demo_limits):
    from mmllm.app.engine import Engine

    return Engine(untrained_qa, demo_limits)


@pytest.fixture(scope="module")
def example(demo):
    """The first example clip of the running demo."""
    return next(iter(demo.handlers.examples.values()))


class Script:
    """The words that the model of the running demo generates, then the end of the answer."""

    words = ("<t20>", "<t60>", "the", "red", "circle", "spins", ".")
    pause_s = 0.0

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, ids, scores):
        """Logits that allow only the next word after ids B L."""
        time.sleep(self.pause_s)
        words = [*self.words, self.tokenizer.eos_token]
        position = ids.shape[1] - self.prompt
        scores[:] = -float("inf")
        scores[:, self.tokenizer.convert_tokens_to_ids(words[min(position, len(words) - 1)])] = 0.0
        return scores


@pytest.fixture(scope="module")
def script(untrained_qa):
    """Makes the model generate the words of a script; the model still reads the video."""
    from mmllm.inference.answering import VideoQA

    script, generate = Script(untrained_qa.processor.tokenizer), VideoQA.generate

    def scripted(self, encoded, input_ids, *arguments, **options):
        visual = sum(sequence.embeddings.shape[1] for sequence in encoded.sequences.values())
        script.prompt = input_ids.shape[1] - 1 + visual
        return generate(self, encoded, input_ids, *arguments, **options, logits_processor=[script])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoQA, "generate", scripted)
        patch.setattr(untrained_qa, "max_new_tokens", 400)
        yield script


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The folder of the example clips."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def demo(untrained_qa, script, demo_limits, cache):
    """A running demo."""
    from mmllm.commands.demo import running

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        with running(untrained_qa, "untrained", demo_limits) as server:
            yield server
    assert not server.folder.exists()


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[dev]'")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,1400"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


_WATCH_CHAT = """
window.texts = [];
window.watching?.disconnect();
window.watching = new MutationObserver(() => {
  const text = Array.from(document.querySelectorAll("#mm-chat .bot .message-content, #mm-chat .bot.message")).at(-1);
  if (text?.innerText && text.innerText !== window.texts.at(-1)) window.texts.push(text.innerText);
});
window.watching.observe(document.body, {childList: true, subtree: true, characterData: true});
"""


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

    def first(self, selector):
        return self.wait(lambda: self.all(selector))[0]

    def text(self, selector):
        return " ".join(element.text for element in self.all(selector)).strip()

    def js(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def wait(self, condition, seconds=_WAIT_S):
        """The value of a condition once it is true."""
        from selenium.common.exceptions import WebDriverException

        deadline, error = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                if value := condition():
                    return value
            except WebDriverException as problem:  # an element that was just replaced
                error = problem
            time.sleep(0.1)
        raise AssertionError(f"waited {seconds} s; the page says {self.text('#mm-status')!r} {error or ''}")

    def press(self, selector):
        self.wait(lambda: self.first(selector).is_enabled())
        self.js("arguments[0].scrollIntoView({block: 'center'})", self.first(selector))
        self.first(selector).click()

    def choose(self, selector, value):
        """Types an entry into a list and takes it."""
        from selenium.webdriver.common.keys import Keys

        def chosen():  # tried again, because the list loses an entry that comes too early
            box = self.first(f"{selector} input")
            self.js("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", box)
            box.send_keys(Keys.CONTROL, "a")
            box.send_keys(value)
            time.sleep(0.2)
            box.send_keys(Keys.ENTER)
            self.js("arguments[0].blur()", box)
            time.sleep(0.2)
            return self.first(f"{selector} input").get_property("value") == value

        self.wait(chosen)

    def tab(self, name):
        for button in self.all("button[role=tab]"):
            if button.text == name:
                self.js("arguments[0].click()", button)
                return
        raise AssertionError(f"no tab {name}")

    def type(self, question):
        box = self.first("#mm-question textarea")
        box.clear()
        box.send_keys(question)

    def ask(self, question=None):
        """Asks a question; returns every state of the last message until the answer is complete."""
        before = len(self.all("#mm-timeline .mm-answer"))
        if question is not None:
            self.type(question)
        self.js(_WATCH_CHAT)
        self.press("#mm-ask")
        self.wait(lambda: len(self.all("#mm-timeline .mm-answer")) > before)
        return self.js("return window.texts")

    @property
    def position_s(self):
        return self.js("return document.querySelector('#mm-player video').currentTime")

    def arrives(self, time_s):
        self.wait(lambda: abs(self.position_s - time_s) <= 0.3)

    def problems(self):
        """Errors in the browser's log."""
        return [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def page(chromium, demo, script):
    """The running demo in the browser."""
    script.words, script.pause_s = type(script).words, type(script).pause_s
    chromium.get_log("browser")
    return Page(chromium, demo.url)


def pytest_collection_modifyitems(items):
    """Skips the long tests in a browser unless they were asked for."""
    if os.environ.get("MMLLM_BROWSER_TESTS"):
        return
    skip = pytest.mark.skip(reason="minutes in a browser, or whole demo processes: run `make test-browser`")
    for item in items:
        if item.path.parent.name == "app" and (item.path.name == "test_page_whole.py" or "ends_cleanly" in item.name):
            item.add_marker(skip)
