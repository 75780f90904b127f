"""An engine over the untrained model, videos that a demo may be given, and a browser that shows the page."""

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


@pytest.fixture(scope="session")
def bad_videos(tmp_path_factory, short_clip):
    """Name -> path of a file that is no usable video though it is called one, and of two that are."""
    import shutil
    import struct

    import av

    folder = tmp_path_factory.mktemp("bad")
    whole = short_clip.read_bytes()
    made = {
        "text.mp4": b"this is not a video\n" * 50,
        "empty.mp4": b"",
        "cut.mp4": whole[: len(whole) // 3],
        "list.mp4": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 16000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(folder / "long.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width = stream.height = 32
        for _ in range(90):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode())
    # a canvas of 20,000 x 20,000 pixels in 40 bytes
    side = struct.pack("<HH", 20000, 20000)
    picture = b"\x2c\x00\x00\x00\x00" + side + b"\x00\x02\x02\x44\x01\x00\x3b"
    (folder / "huge.mp4").write_bytes(b"GIF89a" + side + b"\x80\x00\x00" + b"\x00\x00\x00\xff\xff\xff" + picture)
    shutil.copy(short_clip, folder / "good.jpg")
    shutil.copy(short_clip, folder / "mine.mp4")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def example(demo):
    """The first example clip of the running demo."""
    return next(iter(demo.handlers.examples.values()))


class Script:
    """What the model of the running demo says: words, then the end."""

    words = ("<t20>", "<t60>", "the", "red", "circle", "spins", ".")
    pause_s = 0.0

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, ids, scores):
        """Logits that leave only the next word, of ids B L that `generate` has so far."""
        time.sleep(self.pause_s)
        words = [*self.words, self.tokenizer.eos_token]
        said = ids.shape[1] - self.prompt
        scores[:] = -float("inf")
        scores[:, self.tokenizer.convert_tokens_to_ids(words[min(said, len(words) - 1)])] = 0.0
        return scores


@pytest.fixture(scope="module")
def script(untrained_qa):
    """Makes the model say what is written, through all of generation; it reads the video nevertheless."""
    from mmllm.inference.answering import VideoQA

    script, generate = Script(untrained_qa.processor.tokenizer), VideoQA.generate

    def scripted(self, encoded, input_ids, *given, **options):
        visual = sum(sequence.embeddings.shape[1] for sequence in encoded.sequences.values())
        script.prompt = input_ids.shape[1] - 1 + visual
        return generate(self, encoded, input_ids, *given, **options, logits_processor=[script])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoQA, "generate", scripted)
        patch.setattr(untrained_qa, "max_new_tokens", 400)
        yield script


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where the example clips are drawn."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def demo(untrained_qa, script, demo_limits, cache):
    """A running demo."""
    from mmllm.commands.demo import running

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        with running(untrained_qa, "untrained", demo_limits) as up:
            yield up
    assert not up.folder.exists()


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium here: pip install -e '.[dev]'")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,1400"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


_WATCH_CHAT = """
window.said = [];
window.watching?.disconnect();
window.watching = new MutationObserver(() => {
  const text = Array.from(document.querySelectorAll("#mm-chat .bot .message-content, #mm-chat .bot.message")).at(-1);
  if (text?.innerText && text.innerText !== window.said.at(-1)) window.said.push(text.innerText);
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

    def one(self, selector):
        return self.wait(lambda: self.all(selector))[0]

    def text(self, selector):
        return " ".join(found.text for found in self.all(selector)).strip()

    def js(self, code, *given):
        return self.browser.execute_script(code, *given)

    def wait(self, what, seconds=_WAIT_S):
        from selenium.common.exceptions import WebDriverException

        deadline, told = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                if found := what():
                    return found
            except WebDriverException as problem:  # an element that was just replaced
                told = problem
            time.sleep(0.1)
        raise AssertionError(f"waited {seconds} s in vain; the page says {self.text('#mm-status')!r} {told or ''}")

    def press(self, selector):
        self.wait(lambda: self.one(selector).is_enabled())
        self.js("arguments[0].scrollIntoView({block: 'center'})", self.one(selector))
        self.one(selector).click()

    def choose(self, selector, value):
        """An entry of a list that can be typed into."""
        from selenium.webdriver.common.keys import Keys

        def chosen():  # what was entered before the list had followed the text is lost
            box = self.one(f"{selector} input")
            self.js("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", box)
            box.send_keys(Keys.CONTROL, "a")
            box.send_keys(value)
            time.sleep(0.2)
            box.send_keys(Keys.ENTER)
            self.js("arguments[0].blur()", box)
            time.sleep(0.2)
            return self.one(f"{selector} input").get_property("value") == value

        self.wait(chosen)

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

    def ask(self, question=None):
        """Asks, and gives every state of the last message until the answer was complete."""
        before = len(self.all("#mm-timeline .mm-answer"))
        if question is not None:
            self.type(question)
        self.js(_WATCH_CHAT)
        self.press("#mm-ask")
        self.wait(lambda: len(self.all("#mm-timeline .mm-answer")) > before)
        return self.js("return window.said")

    @property
    def position_s(self):
        return self.js("return document.querySelector('#mm-player video').currentTime")

    def arrives(self, time_s):
        self.wait(lambda: abs(self.position_s - time_s) <= 0.3)

    def problems(self):
        """What the browser complained of."""
        return [one for one in self.browser.get_log("browser") if one["level"] == "SEVERE"]


@pytest.fixture
def page(chromium, demo, script):
    """The running demo in the browser."""
    script.words, script.pause_s = type(script).words, type(script).pause_s
    chromium.get_log("browser")
    return Page(chromium, demo.url)


def pytest_collection_modifyitems(items):
    """Everything that the page can do takes minutes in a browser, so most of it is run on request."""
    if os.environ.get("MMLLM_BROWSER_TESTS"):
        return
    skip = pytest.mark.skip(reason="minutes in a browser, or whole demo processes: run `make test-browser`")
    for item in items:
        if item.path.parent.name == "app" and (item.path.name == "test_page_whole.py" or "ends_cleanly" in item.name):
            item.add_marker(skip)
