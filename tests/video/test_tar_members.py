"""Videos inside tar files are read where they lie."""

import io
import tarfile

import numpy as np
import pytest

from mmllm.errors import InputError
from mmllm.video.errors import VideoOpenError
from mmllm.video.opening import open_video
from mmllm.video.tar_members import member_of, members_of, status_of, tar_of


def written(tar, contents):
    with tarfile.open(tar, "w") as archive:
        for name, data in contents:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return tar


@pytest.fixture
def packed(short_clip, tmp_path):
    """A tar file with two copies of a clip, and a text between them."""
    data = short_clip.read_bytes()
    return written(tmp_path / "clips.tar", [("a.mp4", data), ("a.json", b"{}"), ("b.mp4", data)])


@pytest.mark.parametrize("name", ["a.mp4", "b.mp4"])
def test_a_video_in_a_tar_file_is_the_video(packed, short_clip, name):
    with open_video(short_clip) as alone, open_video(packed / name) as inside:
        assert inside.info.duration_s == alone.info.duration_s
        np.testing.assert_array_equal(inside.times_s, alone.times_s)
        clips = [video.frames_by_index([0, -1]).frames for video in (alone, inside)]
        np.testing.assert_array_equal(*clips)


def test_the_window_is_a_file_of_its_own(packed, short_clip):
    data = short_clip.read_bytes()
    member = member_of(packed / "a.mp4")
    assert member.read() == data
    with member.open() as file:
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert file.read(100) == data[-10:]
        file.seek(5)
        file.seek(3, io.SEEK_CUR)
        assert file.read(4) == data[8:12]
        file.seek(10**9)
        assert file.read() == b""


def test_paths_that_lead_into_no_tar_file(tmp_path, short_clip):
    (tmp_path / "folder.tar").mkdir()
    for path in (short_clip, tmp_path / "folder.tar" / "a.mp4", tmp_path / "missing.tar" / "a.mp4"):
        assert member_of(path) is None
        assert tar_of(path) is None


def test_status_is_that_of_the_member(packed, short_clip):
    assert status_of(packed / "a.mp4") == (short_clip.stat().st_size, packed.stat().st_mtime_ns)
    assert status_of(short_clip) == (short_clip.stat().st_size, short_clip.stat().st_mtime_ns)
    with pytest.raises(InputError, match="No such file"):
        status_of(short_clip.with_name("missing.mp4"))


def test_a_changed_tar_file_is_read_again(packed, short_clip):
    assert list(members_of(packed)) == ["a.mp4", "a.json", "b.mp4"]
    written(packed, [("c.mp4", short_clip.read_bytes())])
    assert list(members_of(packed)) == ["c.mp4"]


@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_a_tar_file_that_is_cut_off_is_refused(packed, keep):
    packed.write_bytes(packed.read_bytes()[: int(packed.stat().st_size * keep)])
    with pytest.raises(InputError, match="no whole tar file"):
        members_of(packed)
    with pytest.raises(VideoOpenError, match="no whole tar file"):
        open_video(packed / "a.mp4")


def test_what_is_no_tar_file_or_has_a_name_twice_is_refused(tmp_path):
    noise = tmp_path / "noise.tar"
    noise.write_bytes(b"x" * 4096 + bytes(1024))
    with pytest.raises(InputError, match="no whole tar file"):
        members_of(noise)
    with pytest.raises(InputError, match=r"the name a\.mp4 occurs twice"):
        members_of(written(tmp_path / "twice.tar", [("a.mp4", b"1"), ("a.mp4", b"2")]))
    with pytest.raises(InputError, match="cannot be read"):
        members_of(tmp_path / "missing.tar")


@pytest.mark.parametrize("stored", ["raw/a.mp4", "./raw/a.mp4", "/raw/a.mp4", "raw//a.mp4"])
def test_members_in_folders_are_paths_below_the_tar_file(tmp_path, short_clip, stored):
    tar = written(tmp_path / "clips.tar", [(stored, short_clip.read_bytes())])
    assert list(members_of(tar)) == ["raw/a.mp4"]
    video = tar / "raw" / "a.mp4"
    assert tar_of(video) == tar
    assert member_of(video).read() == short_clip.read_bytes()
    with open_video(video) as inside, open_video(short_clip) as alone:
        assert list(inside.times_s) == list(alone.times_s)
    with pytest.raises(VideoOpenError, match=r"there is no raw/b\.mp4 in clips\.tar"):
        open_video(tar / "raw" / "b.mp4")


@pytest.mark.parametrize("stored", ["../a.mp4", "raw/../../a.mp4"])
def test_names_that_lead_out_are_refused(tmp_path, stored):
    with pytest.raises(InputError, match="leads out of it"):
        members_of(written(tmp_path / "clips.tar", [(stored, b"1")]))


def test_a_missing_member_is_named(packed):
    with pytest.raises(VideoOpenError, match=r"there is no c\.mp4 in clips\.tar, which has 3 files"):
        open_video(packed / "c.mp4")


def test_links_and_paths_outside_are_not_followed(packed, tmp_path, short_clip):
    tar = tmp_path / "link.tar"
    with tarfile.open(tar, "w") as archive:
        link = tarfile.TarInfo("a.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, str(short_clip)
        archive.addfile(link)
    with pytest.raises(VideoOpenError, match=r"no a\.mp4"):
        open_video(tar / "a.mp4")
    (tmp_path / "other").mkdir()
    with pytest.raises(VideoOpenError, match="outside"):
        open_video(packed / "a.mp4", inside=tmp_path / "other")
