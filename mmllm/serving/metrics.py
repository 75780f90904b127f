"""Counts and times of the server, in Prometheus' text form. No word of a user is in them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class Histogram:
    """How many values were at most each of some bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts, self.sum, self.count = [0] * len(bounds), 0.0, 0

    def add(self, value: float) -> None:
        """Counts a value."""
        self.sum += value
        self.count += 1
        for number, bound in enumerate(self.bounds):
            self.counts[number] += value <= bound

    def lines(self, name: str) -> Iterator[str]:
        """The histogram in Prometheus' form."""
        for bound, count in zip(self.bounds, self.counts, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self.count}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {self.count}"


class Metrics:
    """What the server counts; several threads may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, str]] = Counter()
        self._histograms = {
            "mmllm_request_seconds": Histogram(_SECONDS),
            "mmllm_first_token_seconds": Histogram(_SECONDS),
            "mmllm_batch_rows": Histogram(_ROWS),
        }
        self.gauges: dict[str, Callable[[], float]] = {}
        """Name -> what gives its value when somebody looks."""

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        """Adds to a counter, such as `generated_tokens`."""
        pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
        with self._lock:
            self._counters[f"mmllm_{name}_total", f"{{{pairs}}}" if pairs else ""] += amount

    def observe(self, name: str, value: float) -> None:
        """Adds to a histogram, such as `request_seconds`."""
        with self._lock:
            self._histograms[f"mmllm_{name}"].add(value)

    def text(self) -> str:
        """Everything, as `/metrics` gives it."""
        lines: list[str] = []
        with self._lock:
            for name in sorted({name for name, _ in self._counters}):
                lines.append(f"# TYPE {name} counter")
                lines += [f"{key}{labels} {count}" for (key, labels), count in self._counters.items() if key == name]
            for name, histogram in self._histograms.items():
                lines += [f"# TYPE {name} histogram", *histogram.lines(name)]
        for name, value in self.gauges.items():
            lines += [f"# TYPE mmllm_{name} gauge", f"mmllm_{name} {value():g}"]
        return "\n".join(lines) + "\n"
