import zlib

import numpy as np
import pytest

from hf_gpt.data import checksums
from hf_gpt.data.checksums import ChecksummedFile, checksums_of, file_size, read_block

CONTENT = bytes(range(256)) * 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 100)


def expected_of(content: bytes) -> str:
    return "".join(f"{zlib.crc32(content[start : start + 100]):08x}" for start in range(0, len(content), 100))


def write(path, parts, stored="", size=0) -> str:
    file = ChecksummedFile(path, stored, size)
    assert sum(map(file.write, parts)) == len(b"".join(parts))
    file.close()
    return file.checksums


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000, 1280])
@pytest.mark.parametrize("step", [1, 7, 100, 350, 2000])
def test_are_those_of_the_blocks(tmp_path, size, step):
    content = CONTENT[:size]
    parts = [content[start : start + step] for start in range(0, size, step)]
    assert write(tmp_path / "file", [b"", *parts]) == expected_of(content)
    assert (tmp_path / "file").read_bytes() == content
    assert checksums_of(tmp_path / "file") == expected_of(content)
    for number in range(len(expected_of(content)) // 8):
        assert read_block(tmp_path / "file", number, expected_of(content)) == content[number * 100 : number * 100 + 100]


@pytest.mark.parametrize("dtype", ["<u2", "<i8", "|u1"])
def test_numbers(tmp_path, dtype):
    numbers = np.arange(200).astype(dtype)
    assert write(tmp_path / "file", [numbers]) == expected_of(numbers.tobytes())


@pytest.mark.parametrize("size", range(0, 420, 70))
def test_a_file_is_continued_at_any_position(tmp_path, size):
    """What an interrupted run wrote after it is removed, and nothing is read again."""
    (tmp_path / "file").write_bytes(CONTENT[:size] + b"unfinished")
    assert write(tmp_path / "file", [CONTENT[size:]], expected_of(CONTENT[:size]), size) == expected_of(CONTENT)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_that_cannot_be_continued(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT[:150])
    with pytest.raises(ValueError, match="file is damaged: expected 151 bytes, got 150"):
        ChecksummedFile(tmp_path / "file", expected_of(CONTENT[:151]), 151)
    with pytest.raises(ValueError, match="file is damaged: it has 2 blocks, but 1 checksums"):
        ChecksummedFile(tmp_path / "file", expected_of(CONTENT[:100]), 150)


@pytest.mark.parametrize("position", [0, 99, 100, 1279])
def test_a_flipped_bit(tmp_path, position):
    changed = bytearray(CONTENT)
    changed[position] ^= 4
    (tmp_path / "file").write_bytes(changed)
    number = position // 100
    with pytest.raises(
        ValueError, match=f"file is damaged: block {number}, from byte {number * 100:,}, has the CRC-32"
    ):
        read_block(tmp_path / "file", number, expected_of(CONTENT))
    assert read_block(tmp_path / "file", number, "") == changed[number * 100 : number * 100 + 100]


def test_only_files_have_a_size(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=f"{path} does not exist, or is not a file"):
            file_size(path)
