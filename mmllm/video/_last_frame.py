"""For how long the last frame is shown."""

from __future__ import annotations

import numpy as np

from mmllm.video._packet_headers import Packets


def shown_last(
    last: int | None, pts: int, end: float | None, packets: Packets, times_s: np.ndarray, rate: float
) -> float:
    """Seconds for which the last frame is shown: as its packet says, but not beyond the end of the stream.

    Args:
        last: the packet of that frame.
        pts: its time, in the stream's units.
        end: of the stream by the header; None if unknown.
        packets: all packets of the stream.
        times_s: of all frames.
        rate: frames a second, used only if there is no other frame.
    """
    usual_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1 / rate
    if last is None:
        duration = int(np.median(packets.duration))
    elif end is None:
        duration = int(packets.duration[last])
    else:  # an mp4 says for how long packets last in stored order, so a packet stored later may have the right number
        duration = int(packets.duration[last:].max())
    duration_s = float(duration * packets.time_base)
    guessed = float(np.median(packets.duration)) * float(packets.time_base) < usual_s / 2  # FFmpeg's, from a wrong rate
    if duration_s <= 0 or (guessed and duration_s < usual_s / 2):
        return usual_s
    if end is None or pts + duration <= end + 1:
        return duration_s
    declared_s = float((end - pts) * packets.time_base)
    return declared_s if declared_s >= usual_s / 2 else min(duration_s, usual_s)
