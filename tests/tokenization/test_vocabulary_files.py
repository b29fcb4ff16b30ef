import json
from base64 import b64encode

import pytest

from hf_gpt.tokenization.byte_alphabet import BYTE_CHARACTERS
from hf_gpt.tokenization.vocabulary_files import read_merges, read_ranks, read_vocab, write_ranks

BYTE_IDS = {character: index for index, character in enumerate(sorted(BYTE_CHARACTERS))}


def test_vocab(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "é": 1, "红": 2}), "utf-8")
    assert read_vocab(tmp_path / "vocab.json") == {"a": 0, "é": 1, "红": 2}


@pytest.mark.parametrize("text", ["{", '["a"]', '{"a": "0"}', '{"a": true}'])
def test_bad_vocab(text, tmp_path):
    (tmp_path / "vocab.json").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json: expected a JSON object from token to id"):
        read_vocab(tmp_path / "vocab.json")


@pytest.mark.parametrize("version_line", ["", "#version: 0.2\n"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_merges(version_line, end, tmp_path):
    (tmp_path / "merges.txt").write_text(f"{version_line}a b\n# #{end}", "utf-8")
    vocab = {token: index for index, token in enumerate(["a", "b", "ab", "#", "##"])}
    assert list(read_merges(tmp_path / "merges.txt", vocab)) == [("a", "b"), ("#", "#")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected two tokens separated by a space, got ''"),
        ("#version: 0.2\na b c\n", "line 2: expected two tokens .*, got 'a b c'"),
        ("a €", r"line 1: expected tokens of the vocabulary, got \['€', 'a€'\]"),
        ("a b\n", r"line 1: expected tokens of the vocabulary, got \['ab'\]"),
    ],
)
def test_bad_merges(text, message, tmp_path):
    (tmp_path / "merges.txt").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=rf"merges\.txt, {message}"):
        list(read_merges(tmp_path / "merges.txt", BYTE_IDS))


def test_ranks_are_written_in_order(tmp_path):
    ranks = {"ab": 256, **BYTE_IDS, "Ġa": 257}
    write_ranks(tmp_path / "ranks.tiktoken", ranks)
    assert read_ranks(tmp_path / "ranks.tiktoken") == ranks
    lines = (tmp_path / "ranks.tiktoken").read_text().splitlines()
    assert [int(line.split()[1]) for line in lines] == list(range(258))
    assert lines[256:] == [f"{b64encode(b'ab').decode()} 256", f"{b64encode(b' a').decode()} 257"]


@pytest.mark.parametrize(
    ("missing", "added", "message"),
    [
        (0, "YWI=", ", line 257: expected base64 and a rank, got b'YWI='"),
        (0, "YWI 256", ", line 257: expected base64 and a rank"),
        (0, "YWI= high", ", line 257: expected base64 and a rank"),
        (0, "YWI= 255", ": expected every token and every rank once"),
        (0, "YQ== 256", ": expected every token and every rank once"),
        (2, "", ": expected each of the 256 bytes, but 2 are missing"),
    ],
)
def test_bad_ranks(missing, added, message, tmp_path):
    lines = [f"{b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256 - missing)]
    (tmp_path / "ranks.tiktoken").write_text("".join(lines) + added)
    with pytest.raises(ValueError, match=rf"ranks\.tiktoken{message}"):
        read_ranks(tmp_path / "ranks.tiktoken")
