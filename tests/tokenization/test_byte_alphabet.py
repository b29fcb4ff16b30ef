import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_gpt.tokenization.byte_alphabet import BYTE_CHARACTERS, bytes_to_characters, characters_to_bytes


def test_alphabet_is_that_of_gpt2():
    assert {byte: bytes_to_characters(bytes([byte])) for byte in range(256)} == bytes_to_unicode()
    assert {*bytes_to_unicode().values()} == BYTE_CHARACTERS


def test_tokens_of_several_bytes():
    token = bytes(range(256))
    assert characters_to_bytes(bytes_to_characters(token)) == token
    assert bytes_to_characters(" 红".encode()) == "Ġçº¢"


def test_character_that_is_no_byte():
    with pytest.raises(UnicodeEncodeError):
        characters_to_bytes("a€")
