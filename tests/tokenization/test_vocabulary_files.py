import json
import re
from base64 import b64encode

import pytest

from hf_gpt.tokenization import train_tokenizer
from hf_gpt.tokenization.byte_alphabet import BYTE_CHARACTERS
from hf_gpt.tokenization.vocabulary_files import (
    check_tokenizer_files,
    read_merges,
    read_ranks,
    read_vocab,
    write_ranks,
)

BYTE_IDS = {character: index for index, character in enumerate(sorted(BYTE_CHARACTERS))}


def test_vocab(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "é": 1, "红": 2}), "utf-8")
    assert read_vocab(tmp_path / "vocab.json") == {"a": 0, "é": 1, "红": 2}


# A vocabulary with an invalid id, and the message.
BAD_IDS = {
    '{"a": "0"}': "'a' has the id '0': expected an integer from 0 to 10001",
    '{"a": true}': "'a' has the id True: expected an integer",
    '{"a": 0.0}': "'a' has the id 0.0: expected an integer",
    '{"a": null}': "'a' has the id None: expected an integer",
    '{"a": [[]]}': "'a' has the id [[]]: expected an integer",
    '{"a": -1}': "'a' has the id -1: expected an integer",
    '{"a": 10002}': "'a' has the id 10002: expected an integer from 0 to 10001",
    '{"a": 4294967295}': "'a' has the id 4294967295: expected an integer",
    '{"a": 1, "b": 0, "c": 1}': "'a' and 'c' have the same id 1: expected distinct ids",
}


@pytest.mark.parametrize("text", [*BAD_IDS, "{", '["a"]', '{"a": 0, "a": 1}', '{"a": 1' + "0" * 400 + "}"])
def test_bad_vocab(text, tmp_path):
    (tmp_path / "vocab.json").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json") as caught:
        read_vocab(tmp_path / "vocab.json")
    assert BAD_IDS.get(text, "") in str(caught.value)


@pytest.mark.parametrize("text", BAD_IDS)
@pytest.mark.parametrize("place", ["vocab.json", "added_tokens.json", "model", "added_tokens"])
def test_bad_ids_of_a_tokenizer(place, text, tmp_path):
    vocab, added = json.loads(text), []
    if place == "added_tokens":
        vocab, added = {}, [{"content": token, "id": index} for token, index in vocab.items()]
    content = vocab if place.endswith(".json") else {"model": {"vocab": vocab}, "added_tokens": added}
    file = tmp_path / (place if place.endswith(".json") else "tokenizer.json")
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"{file}: {BAD_IDS[text]}")):
        check_tokenizer_files(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": []},
        {"model": {"vocab": 3}, "added_tokens": []},
        {"model": {"vocab": {}}, "added_tokens": [[]]},
        {"model": {"vocab": {}}, "added_tokens": {"a": 1}},
        {"model": {"vocab": [[1]]}, "added_tokens": []},
        {"model": {"vocab": [3]}, "added_tokens": []},
        {"model": {"vocab": [[[], 0.0]]}, "added_tokens": []},
        {"model": {"vocab": {}}, "added_tokens": [{"content": [], "id": 0}]},
        {"model": {"vocab": {}}, "added_tokens": [{"content": 7, "id": -1}]},
    ],
)
def test_file_of_no_tokenizer(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer: expected model and added_tokens"):
        check_tokenizer_files(tmp_path)


def test_files_of_a_tokenizer(tmp_path):
    check_tokenizer_files(tmp_path)  # none
    train_tokenizer(["to be or not to be"], 300).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 7}))
    check_tokenizer_files(tmp_path)
    unigram = {"model": {"vocab": [["a", 0.0], ["b", -1.0]]}, "added_tokens": [{"content": "a", "id": 0}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    check_tokenizer_files(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: expected a JSON object"):
        check_tokenizer_files(tmp_path)


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
        (0, "YWI= -1", ", line 257: expected base64 and a rank"),
        (0, "YWI= +1", ", line 257: expected base64 and a rank"),
        (0, "YWI= 1_0", ", line 257: expected base64 and a rank"),
        (0, "YWI= 1.0", ", line 257: expected base64 and a rank"),
        (0, "YWI= 1" + "0" * 400, ", line 257: expected base64 and a rank"),
        (0, "YWI= 1" + "0" * 5000, ", line 257: expected base64 and a rank"),
        (0, f"{b64encode(b'a' * 1025).decode()} 256", ", line 257: expected base64 and a rank"),
        (0, "YWI= 255", ", line 257: expected every token and every rank once"),
        (0, "YQ== 256", ", line 257: expected every token and every rank once"),
        (0, "YWI= 256\nYWI= 256", ", line 258: expected every token and every rank once"),
        (2, "", ": expected each of the 256 bytes, but 2 are missing"),
    ],
)
def test_bad_ranks(missing, added, message, tmp_path):
    lines = [f"{b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256 - missing)]
    (tmp_path / "ranks.tiktoken").write_text("".join(lines) + added)
    with pytest.raises(ValueError, match=rf"ranks\.tiktoken{message}"):
        read_ranks(tmp_path / "ranks.tiktoken")
