"""CRC-32 checksums of files, one for each block of 1 MiB.

The checksums of a file are a string of 8 hexadecimal digits for each block; the last block may be shorter.
"""

import os
import zlib
from pathlib import Path

import numpy as np

BLOCK_BYTES = 1 << 20
DIGITS = 8


class ChecksummedFile:
    """A file that is written from a position on, with the checksums of all its blocks.

    Args:
        path: the file, created if it does not exist.
        checksums: those of the first `size` bytes.
        size: the position. What follows it in the file is removed.

    Raises:
        ValueError: the file is shorter than `size`, or the checksums are not those of as many blocks.
    """

    def __init__(self, path: Path, checksums: str = "", size: int = 0) -> None:
        path.touch()
        if file_size(path) < size:
            raise ValueError(f"{path} is damaged: expected {size} bytes, got {file_size(path)}")
        check_count(path, size, checksums)
        os.truncate(path, size)
        self._file, self._size = path.open("ab"), size
        self._complete, self._last = checksums, 0
        if size % BLOCK_BYTES:  # the checksum of a part of a block is continued
            self._complete, self._last = checksums[:-DIGITS], int(checksums[-DIGITS:], 16)

    @property
    def checksums(self) -> str:
        return self._complete + (_digits(self._last) if self._size % BLOCK_BYTES else "")

    def write(self, content: bytes | np.ndarray) -> int:
        """Appends bytes or numbers, and returns the number of bytes."""
        data = memoryview(np.frombuffer(content, np.uint8))
        start = 0
        while start < len(data):
            stop = start + BLOCK_BYTES - self._size % BLOCK_BYTES
            part = data[start:stop]
            self._last, self._size = zlib.crc32(part, self._last), self._size + len(part)
            if self._size % BLOCK_BYTES == 0:
                self._complete, self._last = self._complete + _digits(self._last), 0
            start = stop
        return self._file.write(data)

    def synchronize(self) -> None:
        """Waits until the content is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def checksums_of(path: Path) -> str:
    """Returns the checksums of a file."""
    with path.open("rb") as file:
        return "".join(_digits(zlib.crc32(block)) for block in iter(lambda: file.read(BLOCK_BYTES), b""))


def file_size(path: Path) -> int:
    """Returns the size of a file in bytes.

    Raises:
        FileNotFoundError: it does not exist, or is a folder, a pipe or a device.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is not a file")
    return path.stat().st_size


def check_size(path: Path, expected: int) -> None:
    """Raises a ValueError if a file has another size, in bytes, or a FileNotFoundError if it does not exist."""
    if (size := file_size(path)) != expected:
        raise ValueError(f"{path} is damaged: expected {expected} bytes, got {size}")


def count_blocks(size: int) -> int:
    """Returns the number of blocks of a file of `size` bytes."""
    return -(-size // BLOCK_BYTES)


def check_count(path: Path, size: int, checksums: str) -> None:
    """Raises a ValueError if a file of `size` bytes has another number of checksums."""
    if len(checksums) != DIGITS * count_blocks(size):
        raise ValueError(
            f"{path} is damaged: it has {count_blocks(size)} blocks, but {len(checksums) / DIGITS:g} checksums"
        )


def read_block(path: Path, number: int, checksums: str) -> bytes:
    """Reads a block, and checks it if there are checksums.

    Raises:
        ValueError: its content has changed.
    """
    with path.open("rb") as file:
        file.seek(number * BLOCK_BYTES)
        block = file.read(BLOCK_BYTES)
    found, expected = _digits(zlib.crc32(block)), checksums[number * DIGITS : (number + 1) * DIGITS]
    if checksums and found != expected:
        raise ValueError(
            f"{path} is damaged: block {number}, from byte {number * BLOCK_BYTES:,}, has the CRC-32 {found}, expected "
            f"{expected}"
        )
    return block


def _digits(crc: int) -> str:
    return f"{crc:0{DIGITS}x}"
