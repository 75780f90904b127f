"""A server of RTSP over loopback, as a camera is one: H.264 in RTP packets, interleaved with the commands."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np

_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=live\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:0\r\n"
)


class _Packets(list[bytes]):
    """RTP packets: FFmpeg writes one at a time."""

    def write(self, data: bytes) -> int:
        self.append(bytes(data))
        return len(data)


def rtp_packets(frames: np.ndarray, fps: int) -> list[bytes]:
    """Frames (uint8, T S S 3) as H.264 in RTP packets."""
    packets = _Packets()
    with av.open(packets, "w", format="rtp", options={"packetsize": "1400"}) as container:
        settings = {"preset": "ultrafast", "tune": "zerolatency", "g": "5"}
        stream = container.add_stream("libx264", rate=fps, options=settings)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return packets


class _Camera(socketserver.StreamRequestHandler):
    """One connection: it answers what is asked of a camera, plays the packets of its session and hangs up."""

    def handle(self) -> None:
        while lines := self._request():
            command = lines[0].split()[0]
            number = next(line for line in lines if line.lower().startswith("cseq"))
            if command == "DESCRIBE" and not self.server.sessions:
                self.wfile.write(f"RTSP/1.0 404 Not Found\r\n{number}\r\n\r\n".encode())
                return
            body = _SDP if command == "DESCRIBE" else ""
            facts = [number, "Session: 1", f"Content-Length: {len(body)}"]
            facts += ["Content-Type: application/sdp"] if body else []
            facts += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1"] if command == "SETUP" else []
            self.wfile.write(
                f"RTSP/1.0 200 OK\r\n{''.join(f'{fact}{chr(13)}{chr(10)}' for fact in facts)}\r\n{body}".encode()
            )
            if command == "PLAY":
                for packet in self.server.sessions.pop(0):
                    channel = 1 if 192 <= packet[1] <= 223 else 0  # reports of the sender, or pictures
                    self.wfile.write(b"$" + bytes([channel]) + len(packet).to_bytes(2, "big") + packet)
                return

    def _request(self) -> list[str]:
        """The lines of the next request; none at the end of the connection."""
        lines = []
        while (line := self.rfile.readline().decode().strip()) or not lines:
            if not line:
                return []
            lines.append(line)
        return lines


@contextmanager
def camera(*sessions: Sequence[bytes]) -> Iterator[str]:
    """The address of a camera that plays the packets of one session to each client, one client after the other."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Camera) as server:
        server.daemon_threads = True
        server.sessions = list(sessions)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"rtsp://127.0.0.1:{server.server_address[1]}/live"
        server.shutdown()
        thread.join()
