"""Whether a gap in the picture is a frame that is shown for long, or a jump of the file's clock."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from mmllm.video import _pyav_open
from mmllm.video._broken_clock import JUMP_S
from mmllm.video._packet_headers import Packets
from mmllm.video._player_clock import RUNNING_CLOCKS, container_name, played

if TYPE_CHECKING:
    from mmllm.video._pyav_decoder import Decoder


class JumpJudge:
    """Tells a jump of the clock from a picture that is shown for long."""

    def __init__(self, decoder: Decoder, packets: Packets, reopened: Callable[[], Decoder]) -> None:
        """Prepares; the file is read again only if a gap must be judged.

        Args:
            decoder: the open container.
            packets: the headers of the picture's packets.
            reopened: opens the container once more.
        """
        self._packets, self._reopened = packets, reopened
        self._sound_s: np.ndarray | None = None
        in_fragments = container_name(decoder.container) == "mov" and not decoder.stream.frames
        self._possible = container_name(decoder.container) in RUNNING_CLOCKS or in_fragments

    def __call__(self, before: int, after: int) -> bool:
        """Whether the clock jumps between two packets. While a picture is shown for long, the sound goes on."""
        packets = self._packets
        begin_s = float(int(packets.pts[before]) * packets.time_base)
        until_s = begin_s + float(int(packets.duration[before]) * packets.time_base)
        end_s = float(int(packets.pts[after]) * packets.time_base)
        if not self._possible or end_s - until_s <= JUMP_S:
            return False
        if self._sound_s is None:
            self._sound_s = self._sound_times()
        first, last = np.searchsorted(self._sound_s, [begin_s, end_s])
        return bool(np.diff([begin_s, *self._sound_s[first:last], end_s]).max() > JUMP_S)

    def _sound_times(self) -> np.ndarray:
        """float64, ascending: the times of the packets of sound in seconds of the file's own time."""
        with closing(self._reopened()) as decoder:
            sounds = [stream for stream in played(decoder.container, decoder.stream) if stream.type == "audio"]
            if not sounds:
                return np.zeros(0)
            with _pyav_open.only(decoder.container, sounds):
                times_s = [
                    float(packet.pts * packet.time_base) for packet in decoder.packets(sounds) if packet.pts is not None
                ]
        return np.sort(np.array(times_s))
