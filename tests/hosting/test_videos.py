"""How hosted models' videos are read and their times written."""

import numpy as np
import pytest
from tiny_models import CASES
from tiny_processors import processor

from mmllm.errors import ConfigError, InputError
from mmllm.hosting.family import family_of
from mmllm.hosting.reading import rewritten
from mmllm.hosting.videos import FPS, FRAMES, HostedReading, Seconds, SecondsConfig
from mmllm.preprocessing.whole_frames import WholeFrames
from mmllm.tokens import VideoClip
from mmllm.video.sampling import FrameRule, even


def reading(name="qwen3_vl"):
    return HostedReading(processor(name), family_of(CASES[name].model.config))


def test_frames_stay_as_they_are_decoded_and_the_processors_rate_is_used(short_clip):
    reader = reading()
    clip = reader.load(short_clip)
    assert (reader.frame_rule, reader.num_frames) == (FrameRule(rule="even", fps=FPS), FRAMES)
    assert (len(clip), clip.times_s[0]) == (16, 0.0)
    assert clip.frames.shape[1:3] == clip.original_size
    assert len(reader.load(short_clip, 5)) == 5
    assert len(reader.load(short_clip, fps=0.5)) == 4
    assert reader.load(short_clip, sampling="slow-fast:fps=1").times_s[0] == 0.0
    given = VideoClip(frames=clip.frames[:2], times_s=clip.times_s[:2], duration_s=clip.duration_s)
    assert len(reader.load(given)) == 2
    with pytest.raises(InputError, match="does not hear"):
        reader.load(short_clip, audio=True)


def test_even_frames_are_at_most_so_many_a_second():
    assert even(300, 30.0, 64, 2.0).tolist() == np.rint(np.linspace(0, 299, 20)).tolist()
    assert even(300, 30.0, 5, 2.0).tolist() == [0, 75, 150, 224, 299]
    assert even(3, 30.0, 5, 2.0).tolist() == [0]
    assert even(3, 1.0, 64, 2.0).tolist() == [0, 1, 2]
    assert FrameRule.of("even:fps=1").indices(10, 1.0, 4).tolist() == [0, 3, 6, 9]
    with pytest.raises(InputError, match="frames must be at least 1"):
        even(3, 30.0, 0)


def test_only_very_large_frames_are_scaled_down():
    frame = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    assert WholeFrames().video_frame(frame) is frame
    assert WholeFrames(longest_edge=10).video_frame(frame).shape == (5, 10, 3)
    with pytest.raises(ConfigError, match="longest_edge"):
        WholeFrames(longest_edge=0)


def test_times_are_written_in_words_and_read_as_stamps():
    writing = Seconds(SecondsConfig())
    assert writing.write("after <12.44> and <3>", 60.0) == "after 12.4 seconds and 3.0 seconds"
    assert writing.read("It is in 12.5 - 17.0 seconds.", 60.0) == "It is in <12.5> - <17>."
    assert writing.read("2 to 3 people at 5 s", 60.0, template="{} s") == "2 to 3 people at 5 s"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[3, 4]", "[<3>, <4>]"),
        ("00:12 - 00:17.5 and 1:00:00", "<12> - <17.5> and <3600>"),
        ("It starts at 12 seconds and ends at 00:15.", "It starts at <12> and ends at <15>."),
        ("<12.5 seconds> to 3 seconds", "<12.5> to <3>"),
        ("frame 3 of 7, 2 dogs", "frame 3 of 7, 2 dogs"),
        ("", ""),
    ],
)
def test_texts_with_times_written_anew(text, expected):
    assert rewritten(text, lambda time_s: f"<{time_s:g}>", "s", 60.0) == expected
