import json
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_gpt.data import tokenizing
from hf_gpt.data.token_checks import open_tokens
from hf_gpt.data.token_files import TokenWriter, skipped_documents
from hf_gpt.data.token_index import Place, read_index
from hf_gpt.data.tokenizing import encode_texts, tokenize_files
from hf_gpt.tokenization import train_tokenizer

TEXTS = [f"Document {number}: the cat sat on the mat, <|endoftext|> {number} times. " * 40 for number in range(30)]
TOKENIZER = train_tokenizer(TEXTS, 350)


@pytest.fixture
def corpus(tmp_path):
    """Writes ten documents to a file each, and twenty to the rows of one file."""
    files = [tmp_path / f"{number}.txt" for number in range(10)]
    for file, text in zip(files, TEXTS, strict=False):
        file.write_text(text)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[10:]))
    return [*files, rows]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 3000)


def ids_of(texts) -> list[int]:
    encoded = TOKENIZER(texts, split_special_tokens=True)["input_ids"]
    return [token for ids in encoded for token in [*ids, TOKENIZER.eos_token_id]]


def assert_contains(tokens, texts):
    flat = np.concatenate(tokens.shards).tolist()
    assert flat == ids_of(texts)
    ends = np.flatnonzero(np.array(flat) == TOKENIZER.eos_token_id) + 1
    assert tokens.document_ends.tolist() == ends.tolist()
    assert len(tokens) == len(flat)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("engine", ["tiktoken", "tokenizers"])
@pytest.mark.parametrize("shard_tokens", [500, 10**9])
def test_every_token_is_in_order(corpus, tmp_path, engine, threads, shard_tokens):
    out = tmp_path / "tokens"
    index = tokenize_files(corpus, TOKENIZER, out, engine=engine, threads=threads, shard_tokens=shard_tokens)
    assert_contains(open_tokens(out), TEXTS)
    assert index == read_index(out)
    assert (index.dtype, index.documents, index.skipped) == ("<u2", 30, 0)
    assert index.text_bytes == sum(map(len, TEXTS))
    assert (len(index.shards) > 5) == (shard_tokens == 500)
    assert sorted(path.name for path in out.iterdir() if "token" not in path.name) == [
        "documents.bin",
        "index.json",
        "skipped.jsonl",
    ]
    assert AutoTokenizer.from_pretrained(out)("cat")["input_ids"] == TOKENIZER("cat")["input_ids"]


def test_encoding_in_memory():
    assert_contains(encode_texts(TOKENIZER, TEXTS), TEXTS)


def test_only_texts_are_encoded():
    with pytest.raises(ValueError, match="text 1 is not text but int"):
        encode_texts(TOKENIZER, ["a", 1])
    with pytest.raises(ValueError, match="text 0 is not Unicode"):
        encode_texts(TOKENIZER, ["\ud800"])
    with pytest.raises(ValueError, match="expected a list of texts"):
        encode_texts(TOKENIZER, "abc")


def test_many_skipped_rows_are_several_batches(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"x": 1}\n' * 1000)
    batches = list(tokenizing._read_batches([tmp_path / "rows.jsonl"], Place(0, 0), "text", whole=False))
    assert len(batches) > 10
    assert sum(len(batch.skipped) for batch in batches) == 1000


class Killed(BaseException):
    pass


def kill_after(monkeypatch, writes):
    """Ends a run after some batches, within a shard or between two, as if the process were killed."""
    write = TokenWriter.write
    calls = []

    def counted(self, batch):
        if len(calls) == writes:
            raise Killed
        calls.append(write(self, batch))

    monkeypatch.setattr(TokenWriter, "write", counted)


@pytest.mark.parametrize("writes", [0, 1, 2, 5, 10, 12])
@pytest.mark.parametrize("shard_tokens", [1, 2500])
def test_interrupted_run_resumes(corpus, tmp_path, monkeypatch, writes, shard_tokens):
    (tmp_path / "3.txt").write_bytes(b"\xff")
    out = tmp_path / "tokens"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, writes)
        tokenize_files(corpus, TOKENIZER, out, shard_tokens=shard_tokens)
    assert not out.exists()
    resumed = tokenize_files(corpus, TOKENIZER, out, shard_tokens=shard_tokens)
    at_once = tokenize_files(corpus, TOKENIZER, tmp_path / "at once", shard_tokens=shard_tokens)
    assert resumed == at_once
    for path in (tmp_path / "at once").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert_contains(open_tokens(out), TEXTS[:3] + TEXTS[4:])


def test_run_resumes_only_with_the_same_files(corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 5)
        tokenize_files(corpus, TOKENIZER, tmp_path / "tokens", shard_tokens=500)
    for others in (corpus[::-1], [*corpus, corpus[-1]]):
        with pytest.raises(FileExistsError, match="holds an unfinished run"):
            tokenize_files(others, TOKENIZER, tmp_path / "tokens", shard_tokens=500)
    corpus[0].write_text("another text")
    with pytest.raises(FileExistsError, match="holds an unfinished run"):
        tokenize_files(corpus, TOKENIZER, tmp_path / "tokens", shard_tokens=500)


@pytest.mark.parametrize("name", ["tokens-00001.bin", "documents.bin"])
def test_run_does_not_resume_after_damage(corpus, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 5)
        tokenize_files(corpus, TOKENIZER, tmp_path / "tokens", shard_tokens=1)
    (tmp_path / "tokens.partial" / "content" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        tokenize_files(corpus, TOKENIZER, tmp_path / "tokens", shard_tokens=1)
    assert tokenize_files(corpus, TOKENIZER, tmp_path / "tokens", shard_tokens=1).documents == 30


def test_skipped_documents_are_counted_and_listed(corpus, tmp_path):
    corpus[4].write_bytes(b"bad \xff")
    corpus[5].write_bytes(b"")
    with corpus[-1].open("a") as file:
        file.write('\n{"body": "b"}')
    index = tokenize_files(corpus, TOKENIZER, tmp_path / "tokens")
    assert (index.documents, index.skipped) == (28, 3)
    errors = skipped_documents(tmp_path / "tokens")
    assert [error.partition(" is not ")[0].partition(" is ")[0] for error in errors[:2]] == [*map(str, corpus[4:6])]
    assert errors[2].endswith("has no 'text'")
    assert_contains(open_tokens(tmp_path / "tokens"), TEXTS[:4] + TEXTS[6:])


def test_bad_input(corpus, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    out = tmp_path / "out"
    for files, error, message in [
        ([empty], ValueError, r"no document to encode: .*empty\.txt is empty"),
        ([], ValueError, "no document to encode: expected files"),
        ([tmp_path / "none"], FileNotFoundError, "none"),
        ([tmp_path], IsADirectoryError, "is a folder: expected files"),
    ]:
        with pytest.raises(error, match=message):
            tokenize_files(files, TOKENIZER, out)
    without_end = train_tokenizer(TEXTS, 300, special_tokens=[])
    with pytest.raises(ValueError, match="has no eos_token"):
        tokenize_files(corpus, without_end, out)
    with pytest.raises(ValueError, match="shard_tokens=0: expected at least 1"):
        tokenize_files(corpus, TOKENIZER, out, shard_tokens=0)
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(FileExistsError, match="not an empty folder"):
        tokenize_files(corpus, TOKENIZER, out)
    with pytest.raises(FileNotFoundError, match=r"has no index\.json"):
        open_tokens(out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert not (tmp_path / "out.partial").exists()


MEMORY = """
import sys
from hf_gpt.data import tokenize_files
from hf_gpt.tokenization import train_tokenizer
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
text, folder = sys.argv[1:]
tokenizer = train_tokenizer(["the cat sat on the mat"], 300)
before = peak()
tokenize_files([text], tokenizer, folder)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_a_document(tmp_path):
    """A document of 60 MB takes less than two thirds of that; as a single string it would take twice as much."""
    with (tmp_path / "large.txt").open("w") as file:
        for _ in range(60):
            file.write("the cat sat on the mat, " * 41_667)
    arguments = [sys.executable, "-c", MEMORY, str(tmp_path / "large.txt"), str(tmp_path / "tokens")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000
