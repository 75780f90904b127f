"""Where the parts of joined FLV files begin: found without reading the data of their tags, also behind a cut tag."""

import io

import pytest

from mmllm.video._joined_flv import joined_flv

HEADER = b"FLV\x01\x05\0\0\0\x09\0\0\0\0"


def tag(data: bytes, kind: int = 9) -> bytes:
    size = len(data).to_bytes(3, "big")
    return bytes([kind]) + size + bytes(7) + data + (11 + len(data)).to_bytes(4, "big")


class Counted(io.BytesIO):
    """A file that counts the bytes it gives."""

    given = 0

    def read(self, size=-1):
        block = super().read(size)
        self.given += len(block)
        return block


class Media:
    """An open file in place of a file of the disk."""

    path = None

    def __init__(self, data: bytes) -> None:
        self.file, self.length = Counted(data), len(data)

    def stream(self):
        return self.file


def never() -> bool:
    return False


PART = HEADER + tag(b"about", 18) + tag(bytes(100_000)) + tag(b"sound", 8)


def test_one_part_is_left_as_it_is_and_its_data_are_not_read():
    media = Media(PART)
    assert joined_flv(media, never) is None
    assert media.file.given < 200


@pytest.mark.parametrize("cut", [0, 1, 5, 30])
def test_later_headers_are_left_out_also_behind_a_tag_that_was_cut(cut):
    first = PART[: len(PART) - cut]
    media = Media(first + PART + PART)
    assert joined_flv(media, never).read() == first + PART[13:] + PART[13:]


def test_a_header_within_the_data_of_a_tag_is_data():
    assert joined_flv(Media(HEADER + tag(b"a" + PART[:40]) + tag(b"b")), never) is None


def test_useless_bytes_are_searched_until_it_is_given_up():
    asked = iter([False] * 6 + [True] * 100)
    media = Media(PART + bytes(40 << 20) + PART)
    assert joined_flv(media, lambda: next(asked)) is None
    assert media.file.given < 10 << 20
    assert joined_flv(media, never).read() == PART + bytes(40 << 20) + PART[13:]
