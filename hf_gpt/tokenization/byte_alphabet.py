"""GPT-2's byte alphabet: the printable character that stands for each byte in a vocabulary."""

from tokenizers import pre_tokenizers

# A byte is written as the Latin-1 character of the same number, or as one from U+0100 on where that is not printable.
BYTE_CHARACTERS = frozenset(pre_tokenizers.ByteLevel.alphabet())
_UNPRINTABLE = (byte for byte in range(256) if chr(byte) not in BYTE_CHARACTERS)
_TO_PRINTABLE = {byte: 256 + number for number, byte in enumerate(_UNPRINTABLE)}
_TO_BYTE = {character: byte for byte, character in _TO_PRINTABLE.items()}


def bytes_to_characters(token: bytes) -> str:
    """Returns the token as a vocabulary writes it, one character per byte."""
    return token.decode("latin-1").translate(_TO_PRINTABLE)


def characters_to_bytes(token: str) -> bytes:
    """Returns the bytes of a token of a vocabulary.

    Raises:
        UnicodeEncodeError: `token` contains a character that stands for no byte.
    """
    return token.translate(_TO_BYTE).encode("latin-1")
