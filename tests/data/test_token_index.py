import json
import random

import pytest

from hf_gpt.data.token_index import ADDED, CHECKSUM, INDEX, Place, TokenIndex, read_index, with_checksum

FIELDS = {
    "dtype": "<u2",
    "eos_token_id": 299,
    "shards": [1000, 500],
    "documents": 30,
    "skipped": 1,
    "skipped_bytes": 30,
    "text_bytes": 6000,
    "place": [2, 0],
    "vocab_size": 300,
    "checksums": {
        "documents.bin": "00112233",
        "skipped.jsonl": "44556677",
        "tokenizer.json": "8899aabb" * 3,
        "tokens-00000.bin": "ccddeeff",
        "tokens-00001.bin": "01234567",
    },
}


def write(folder, content) -> None:
    (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))


def test_is_read_as_it_was_written(tmp_path):
    index = TokenIndex(**FIELDS | {"place": Place(2, 0)})
    write(tmp_path, index.to_json())
    assert read_index(tmp_path) == index
    assert index.tokens == 1500
    assert index.token_files == {"tokens-00000.bin": 1000, "tokens-00001.bin": 500}
    shuffled = dict(reversed(index.checksums.items()))
    assert TokenIndex(**FIELDS | {"place": Place(2, 0), "checksums": shuffled}).to_json() == index.to_json()


def test_of_an_earlier_version(tmp_path):
    """It has neither checksums nor the size of the vocabulary."""
    write(tmp_path, {name: value for name, value in FIELDS.items() if name not in ADDED})
    index = read_index(tmp_path)
    assert (index.checksums, index.vocab_size, index.tokens) == ({}, None, 1500)


def test_a_folder_without_an_index(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no index\.json: expected a folder that `hf-gpt tokenize` wrote"):
        read_index(tmp_path)


def test_every_flipped_bit_is_found(tmp_path):
    write(tmp_path, TokenIndex(**FIELDS | {"place": Place(2, 0)}).to_json())
    content, bits = (tmp_path / INDEX).read_bytes(), random.Random(0)
    for position in range(len(content) - 1):  # not the line end
        changed = bytearray(content)
        changed[position] ^= 1 << bits.randrange(8)
        (tmp_path / INDEX).write_bytes(changed)
        with pytest.raises(ValueError, match=rf"{tmp_path}/index\.json") as raised:
            read_index(tmp_path)
        assert "\n" not in str(raised.value)


# Values with a right checksum, and what the error says.
WRONG = [
    ({"dtype": "<f8"}, r"dtype is '<f8', expected one of \|u1, <u2, <u4"),
    ({"dtype": ">u2"}, "dtype is '>u2'"),
    ({"dtype": "|O"}, r"dtype is '\|O'"),
    ({"dtype": ["<u2"]}, "dtype is"),
    ({"eos_token_id": -1}, "eos_token_id is -1, expected an integer of at least 0"),
    ({"eos_token_id": 300}, "eos_token_id is 300, expected at most 299"),
    ({"eos_token_id": 70000, "vocab_size": None}, "eos_token_id is 70000, expected at most 65535"),
    ({"eos_token_id": True}, "eos_token_id is True"),
    ({"eos_token_id": 10**100}, "an integer has 101 digits"),
    ({"shards": [1000, -500]}, "shards is .*expected a list of integers of at least 1"),
    ({"shards": [1000, 0]}, "shards is"),
    ({"shards": {"0": 1000}}, "shards is"),
    ({"shards": [1000] * 100_000}, "checksums has no 'tokens-00002.bin'"),
    ({"documents": 1501}, "documents is 1501, expected at most the 1500 tokens"),
    ({"documents": 10**18}, "documents is 1000000000000000000"),
    ({"documents": 2.5}, "documents is 2.5"),
    ({"skipped": None}, "skipped is None"),
    ({"skipped_bytes": -30}, "skipped_bytes is -30"),
    ({"text_bytes": "6000"}, "text_bytes is '6000'"),
    ({"place": [2]}, "place is .2., expected two integers"),
    ({"place": [2, -1]}, "place is"),
    ({"place": None}, "place is None"),
    ({"vocab_size": -5}, "vocab_size is -5"),
    ({"checksums": None}, "checksums is None"),
    ({"checksums": {}}, "checksums has no 'documents.bin'"),
    ({"checksums": FIELDS["checksums"] | {"documents.bin": "0011223"}}, "checksums is .*8 hexadecimal digits"),
    ({"checksums": FIELDS["checksums"] | {"documents.bin": [1]}}, "checksums is"),
    (
        {"checksums": FIELDS["checksums"] | {"../../etc/passwd": "00112233"}},
        "a key of checksums is '../../etc/passwd', expected the name",
    ),
    ({"checksums": FIELDS["checksums"] | {"/etc/passwd": "00112233"}}, "a key of checksums is '/etc/passwd'"),
    ({"checksums": FIELDS["checksums"] | {"..": "00112233"}}, "a key of checksums is"),
    ({"checksums": FIELDS["checksums"] | {"tokens-00002.bin": "00112233"}}, "a key of checksums is 'tokens-00002.bin'"),
    ({"extra": 1}, "the key 'extra' is unknown"),
    ({"x" * 10**6: 1}, "the key 'x{80}' is unknown"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value(tmp_path, changes, message):
    write(tmp_path, with_checksum(FIELDS | changes))
    with pytest.raises(ValueError, match=rf"{tmp_path}/index\.json is (damaged|not valid JSON): .*{message}") as raised:
        read_index(tmp_path)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("name", [*FIELDS, CHECKSUM])
def test_a_missing_key(tmp_path, name):
    content = with_checksum(FIELDS)
    write(tmp_path, {each: value for each, value in content.items() if each != name})
    with pytest.raises(ValueError, match=f"index.json is damaged: (the key '{name}' is missing|{name} is None)"):
        read_index(tmp_path)


@pytest.mark.parametrize("content", ["[]", "", "null", "[" * 100_000, '{"dtype": NaN}', '{"shards": [], "shards": []}'])
def test_something_else(tmp_path, content):
    write(tmp_path, content)
    with pytest.raises(ValueError, match=r"index\.json"):
        read_index(tmp_path)
