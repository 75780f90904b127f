"""A back end with planted faults, written down literally, and a model that sees events with noise."""

import numpy as np

from mmllm.evaluation.clock_backends import ClockAnswer, ClockBackend, Look, NotOffered, TimesRefused
from mmllm.evaluation.clock_faults import Observation
from mmllm.times.answers import Span


class StubBackend(ClockBackend):
    """Looks at a frame every half second.

    Args:
        planted: names of faults.
        noise_s: of the answers.
        blunders: share of answers that are anywhere.
        blind: whether answers have nothing to do with the video.
        group: frames that share a time.
        decimals: of the time text.
        shows: whether fed times can be seen.
        seed: of noise and blunders.
    """

    name = "stub"

    def __init__(
        self, *planted, noise_s=0.0, blunders=0.0, blind=False, group=1, decimals=None, shows=True, pairs=True, seed=0
    ):
        self.planted, self.noise_s, self.blunders, self.blind = set(planted), noise_s, blunders, blind
        self.group, self.decimals, self.shows, self.pairs = group, decimals, shows, pairs
        self.random = np.random.default_rng(seed)

    def look(self, request):
        if request.first is not None and not self.pairs:
            raise NotOffered("one at a time")
        if not request.with_times and "frames without times" not in self.planted:
            raise TimesRefused("give their times")
        numbers = self.numbers(request)
        fed_s = self.fed(request, numbers)
        units = [tuple(int(n) for n in numbers[i : i + self.group]) for i in range(0, len(numbers), self.group)]
        unit_s = np.array([fed_s[i : i + self.group].mean() for i in range(0, len(numbers), self.group)])
        if "whole seconds" in self.planted:
            unit_s = np.array([float(round(time_s)) for time_s in unit_s])
        if self.decimals is not None:
            unit_s = np.array([float(f"{time_s:.{self.decimals}f}") for time_s in unit_s])
        seen = Observation(
            situation=request.situation(numbers, request.first and self.numbers(request.first)),
            kind="time text",
            units=tuple(units),
            fed_s=unit_s,
            tolerance_s=1e-3 if self.decimals is None else 0.5 * 10.0**-self.decimals,
        )
        truth_s = np.array([request.clip.times_s[list(unit)].mean() for unit in units])

        def ask(questions):
            spans = [span for _, span in request.questions(True)][: len(questions)]
            return [self.answer(span, truth_s, unit_s, request.clip.duration_s) for span in spans]

        return Look(observations=(seen,) if self.shows else (), ask=ask)

    def numbers(self, request):
        """Which frames are looked at."""
        if request.listed is not None:
            return request.listed
        begin, end = request.start_s or 0.0, request.end_s or request.clip.duration_s
        inside = np.flatnonzero((request.clip.times_s >= begin) & (request.clip.times_s <= end))
        wanted_s = np.arange(request.clip.times_s[inside[0]], request.clip.times_s[inside[-1]], 0.5)
        return np.unique([inside[np.abs(request.clip.times_s[inside] - time_s).argmin()] for time_s in wanted_s])

    def fed(self, request, numbers):
        """The time of each frame, as the planted faults have it."""
        clip = request.clip
        if not request.with_times or (request.listed is not None and "ignored times" in self.planted):
            return np.arange(len(numbers)) / 24.0
        if request.first is not None and "first video's times" in self.planted:
            others = self.fed(request.first, self.numbers(request.first))
            return np.interp(np.arange(len(numbers)), np.arange(len(others)), others)
        if request.start_s is not None and "stretched range" in self.planted:
            return np.arange(len(numbers)) * clip.duration_s / len(numbers)
        if request.sampled_fps is not None and "sampled fps" in self.planted:
            times_s = numbers / request.sampled_fps
        elif "index over fps" in self.planted:
            times_s = numbers / (len(clip.times_s) / (clip.duration_s - clip.times_s[0]))
        else:
            times_s = clip.times_s[numbers]
            if "dropped offset" in self.planted and request.start_s is None:
                times_s = times_s - clip.times_s[0]
        if "dropped start" in self.planted and request.start_s is not None:
            times_s = times_s - times_s[0]
        return times_s * (2.0 if "wrong constant" in self.planted else 1.0)

    def answer(self, span, truth_s, fed_s, duration_s):
        """What the model says of an event: the fed times around it."""
        if self.blind or self.random.random() < self.blunders:
            ends = np.sort(self.random.uniform(0, duration_s, 2))
        else:
            noise_s = self.random.laplace(0, self.noise_s + 1e-9, 2)
            ends = np.interp([span.start_s, span.end_s], truth_s, fed_s) + noise_s
        if "whole seconds" in self.planted:
            ends = ends.round()
        start_s, end_s = sorted(np.clip(ends, 0, None))
        return ClockAnswer(f"{start_s:.2f} - {end_s:.2f} seconds", Span(float(start_s), float(end_s)))
