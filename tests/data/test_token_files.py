import pickle
from contextlib import nullcontext, suppress

import numpy as np
import pytest

from hf_gpt.data.token_checks import open_tokens
from hf_gpt.data.token_files import EncodedBatch, Tokens, TokenWriter, skipped_documents
from hf_gpt.data.token_index import Place, TokenIndex, read_index
from hf_gpt.folders import output_folder, partial_of

EOS = 299
DOCUMENTS = [[*range(number, number + 7 * number % 40), EOS] for number in range(1, 31)]
TOKENS = [token for document in DOCUMENTS for token in document]
BATCHES = [
    EncodedBatch(
        tokens=np.concatenate(group).astype(np.uint16),
        document_ends=np.cumsum([*map(len, group)]),
        text_bytes=100,
        skipped=[f"document {number} is empty"] if number == 2 else [],
        place=Place(0, number + 1),
    )
    for number, group in enumerate(DOCUMENTS[start : start + 5] for start in range(0, 30, 5))
]


class Interrupted(BaseException):
    pass


def write(folder, shard_tokens=150, batches=BATCHES, *, finish=True) -> TokenIndex:
    """Writes or resumes a folder of tokens, which is complete if `finish` is True."""
    with (
        nullcontext() if finish else suppress(Interrupted),
        output_folder(folder, {}) as new,
        TokenWriter(new, TokenIndex("<u2", EOS), shard_tokens) as writer,
    ):
        for batch in batches[writer.index.place.position :]:
            writer.write(batch)
        if not finish:
            raise Interrupted
        writer.finish()
    return writer.index


def assert_contains_documents(tokens: Tokens) -> None:
    flat = np.concatenate(tokens.shards).tolist()
    assert flat == TOKENS
    assert tokens.document_ends.tolist() == np.cumsum([*map(len, DOCUMENTS)]).tolist()
    assert len(tokens) == len(flat)


@pytest.mark.parametrize("shard_tokens", [1, 150, 10**9])
def test_opens_what_was_written(tmp_path, shard_tokens):
    index = write(tmp_path, shard_tokens)
    assert_contains_documents(open_tokens(tmp_path))
    assert index == read_index(tmp_path)
    assert (index.documents, index.skipped, index.text_bytes, index.place) == (30, 1, 600, Place(0, 6))
    assert index.tokens == len(open_tokens(tmp_path))
    assert len(index.shards) == {1: 6, 150: 3, 10**9: 1}[shard_tokens]
    assert skipped_documents(tmp_path) == ["document 2 is empty"]


def test_shards_can_be_mapped_with_numpy(tmp_path):
    write(tmp_path, 10**9)
    shard = np.memmap(tmp_path / "tokens-00000.bin", np.uint16, mode="r")
    assert shard.tolist() == TOKENS
    (shard,) = open_tokens(tmp_path).shards
    assert isinstance(shard, np.memmap)


def test_tokens_without_documents(tmp_path):
    write(tmp_path, batches=[])
    assert len(open_tokens(tmp_path)) == 0
    assert not list(tmp_path.glob("*-*.bin"))


def test_worker_processes_map_the_files(tmp_path):
    write(tmp_path)
    tokens = open_tokens(tmp_path)
    pickled = pickle.dumps(tokens)
    assert len(pickled) < 500
    assert_contains_documents(pickle.loads(pickled))
    assert pickle.loads(pickled).index == tokens.index
    in_memory = Tokens([np.array(shard) for shard in tokens.shards], np.array(tokens.document_ends))
    assert_contains_documents(pickle.loads(pickle.dumps(in_memory)))


@pytest.mark.parametrize("written", range(7))
@pytest.mark.parametrize("shard_tokens", [1, 150, 10**9])
def test_writing_resumes_after_the_last_complete_shard(tmp_path, shard_tokens, written):
    expected = write(tmp_path / "at once", shard_tokens)
    write(tmp_path / "resumed", shard_tokens, BATCHES[:written], finish=False)
    assert write(tmp_path / "resumed", shard_tokens) == expected
    for path in (tmp_path / "at once").iterdir():
        assert (tmp_path / "resumed" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", ["tokens-00001.bin", "documents.bin", "skipped.jsonl"])
def test_writing_does_not_resume_after_damage(tmp_path, name):
    write(tmp_path / "tokens", 1, BATCHES[:4], finish=False)
    (partial_of(tmp_path / "tokens") / "content" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        write(tmp_path / "tokens", 1)


def test_the_block_of_a_token_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_gpt.data.checksums.BLOCK_BYTES", 100)
    monkeypatch.setattr("hf_gpt.data.token_files.BLOCK_BYTES", 100)
    write(tmp_path)
    tokens = open_tokens(tmp_path)
    path = tmp_path / "tokens-00001.bin"
    content = path.read_bytes()
    path.write_bytes(content[:250] + b"!!" + content[252:])
    for position in (0, 99, 150):
        tokens.check(1, position)
    for position in (100, 149):
        with pytest.raises(ValueError, match="bin is damaged: block 2, from byte 200, has the CRC-32"):
            tokens.check(1, position)
    Tokens(tokens.shards, tokens.document_ends).check(1, 100)  # in memory
