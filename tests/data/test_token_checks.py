"""Damaged and hostile folders of tokens: each is one clear error, in bounded memory."""

import json
import os
import random
import tracemalloc

import numpy as np
import pytest

from hf_gpt.data import tokenizing
from hf_gpt.data.checksums import checksums_of
from hf_gpt.data.token_checks import SAMPLES, open_tokens, verify_tokens
from hf_gpt.data.token_index import ADDED, CHECKSUM, INDEX, read_index, with_checksum
from hf_gpt.data.tokenizing import tokenize_files
from hf_gpt.tokenization import train_tokenizer

TEXTS = [f"Document {number}: the cat sat on the mat, {number} times. " * 8 for number in range(30)]
TOKENIZER = train_tokenizer(TEXTS, 300)
EOS = TOKENIZER.eos_token_id
BLOCK = 200  # so that each shard has several


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Tokens of thirty documents and a skipped one, in several shards."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [*({"text": text} for text in TEXTS), {"text": ""}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        patch.setattr(tokenizing, "BATCH_CHARACTERS", 1500)
        tokenize_files([folder / "rows.jsonl"], TOKENIZER, folder / "tokens", shard_tokens=1000)
    return {path.name: path.read_bytes() for path in (folder / "tokens").iterdir()}


@pytest.fixture
def folder(tmp_path, written, monkeypatch):
    use_small_blocks(monkeypatch)
    (tmp_path / "tokens").mkdir()
    for name, content in written.items():
        (tmp_path / "tokens" / name).write_bytes(content)
    return tmp_path / "tokens"


def use_small_blocks(patch):
    for module in ("checksums", "token_files"):
        patch.setattr(f"hf_gpt.data.{module}.BLOCK_BYTES", BLOCK)


def assert_raises(check, folder, message):
    """One line that names the folder, in little memory."""
    tracemalloc.start()
    with pytest.raises((ValueError, OSError), match=message) as raised:
        check(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert peak < 20e6


def forge(folder, **changes):
    """Changes keys of the index, with the right checksum."""
    content = json.loads((folder / INDEX).read_text()) | changes
    del content[CHECKSUM]
    (folder / INDEX).write_text(json.dumps(with_checksum(content)))


def forge_file(folder, name, content):
    """Changes a file, with the right checksums."""
    (folder / name).write_bytes(content)
    forge(folder, checksums=read_index(folder).checksums | {name: checksums_of(folder / name)})


def forge_documents(folder, change):
    ends = np.fromfile(folder / "documents.bin", "<i8")
    forge_file(folder, "documents.bin", change(ends).astype("<i8").tobytes())


def forge_ids(folder, change):
    ids = np.fromfile(folder / "tokens-00001.bin", "<u2")
    forge_file(folder, "tokens-00001.bin", change(ids).astype("<u2").tobytes())


def replaced(values, number, value):
    values[number] = value
    return values


def swapped(values):
    values[[10, 11]] = values[[11, 10]]
    return values


def as_earlier_version(folder):
    content = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({name: content[name] for name in content.keys() - {*ADDED, CHECKSUM}}))


def replace_by_pipe(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)


def link(folder, name, target):
    (folder / name).unlink()
    (folder / name).symlink_to(target)


SHARD, DOCUMENTS, SKIPPED = "tokens-00001.bin", "documents.bin", "skipped.jsonl"
# What is wrong with a folder, and what both the check on opening and `verify_tokens` say of it.
HOSTILE = {
    "no index": (lambda folder: (folder / INDEX).unlink(), r"has no index\.json"),
    "an index that is a list": (
        lambda folder: (folder / INDEX).write_text("[]"),
        r"index\.json: expected a JSON object",
    ),
    "no shard": (lambda folder: (folder / SHARD).unlink(), "tokens-00001.bin does not exist"),
    "an extra shard": (lambda folder: (folder / "tokens-00009.bin").touch(), "tokens-00009.bin is not in index.json"),
    "a short shard": (lambda folder: os.truncate(folder / SHARD, 100), "tokens-00001.bin is damaged: expected"),
    "a shard that is a folder": (lambda folder: [(folder / SHARD).unlink(), (folder / SHARD).mkdir()], "is not a file"),
    "a shard that is a pipe": (lambda folder: replace_by_pipe(folder, SHARD), "tokens-00001.bin .* is not a file"),
    "a shard that is a device": (lambda folder: link(folder, SHARD, "/dev/zero"), "tokens-00001.bin .* is not a file"),
    "a link to another file": (lambda folder: link(folder, SHARD, folder / INDEX), "tokens-00001.bin is damaged: exp"),
    "a link to another shard": (
        lambda folder: [
            link(folder, SHARD, "tokens-00002.bin"),
            forge(folder, shards=[read_index(folder).shards[n] for n in (0, 2, 2)]),
        ],
        "tokens-00001.bin is damaged",
    ),
    "a pipe of skipped documents": (lambda folder: replace_by_pipe(folder, SKIPPED), "skipped.jsonl .* is not a file"),
    "no documents": (lambda folder: (folder / DOCUMENTS).unlink(), "documents.bin does not exist"),
    "too many documents": (lambda folder: forge(folder, documents=31), "documents.bin is damaged: expected 248 bytes"),
    "a huge shard": (lambda folder: forge(folder, shards=[10**18] * 3), "tokens-00000.bin is damaged: expected 2000"),
    "a foreign type": (lambda folder: forge(folder, dtype="<f8"), "dtype is '<f8', expected one of"),
    "another type": (lambda folder: forge(folder, dtype="<u4"), "tokens-00000.bin is damaged: expected"),
    "half the tokens of twice the size": (
        lambda folder: forge(folder, dtype="<u4", shards=[n // 2 for n in read_index(folder).shards]),
        "damaged|ids below",
    ),
    "more checksums": (
        lambda folder: forge(folder, checksums=read_index(folder).checksums | {DOCUMENTS: "00112233" * 9}),
        "documents.bin is damaged: it has 2 blocks, but 9 checksums",
    ),
    "a path outside": (
        lambda folder: forge(folder, checksums=read_index(folder).checksums | {"../rows.jsonl": "00112233"}),
        r"a key of checksums is '\.\./rows\.jsonl'",
    ),
    "ids outside the vocabulary": (
        lambda folder: forge_ids(folder, lambda ids: replaced(ids, 40, 300)),
        "tokens-00001.bin contains the id 300, expected ids below 300",
    ),
    "another end-of-text token": (
        lambda folder: forge(folder, eos_token_id=7),
        "ends with the id 299, expected 7|but 0 end-of-text tokens",
    ),
    "negative ends": (lambda folder: forge_documents(folder, lambda ends: -ends), "document 0 ends at token -"),
    "huge ends": (
        lambda folder: forge_documents(folder, lambda ends: replaced(ends, 20, 10**18)),
        "document 20 ends at token 1000000000000000000, expected",
    ),
    "unsorted ends": (
        lambda folder: forge_documents(folder, swapped),
        "documents.bin is damaged: document 1[01] ends at",
    ),
    "shifted ends": (
        lambda folder: forge_documents(folder, lambda ends: replaced(ends, 5, ends[5] - 1)),
        "document 5 ",
    ),
    "a last document without an end": (
        lambda folder: forge_documents(folder, lambda ends: replaced(ends, -1, ends[-1] - 1)),
        "the last document ends at token|document 29 ends at token",
    ),
    "no document": (
        lambda folder: [forge(folder, documents=0), forge_file(folder, DOCUMENTS, b"")],
        "the last document ends at token 0, expected|it ends at document 0, but",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json does not exist"),
    "another tokenizer": (
        lambda folder: TOKENIZER.__class__.save_pretrained(OTHER, folder),
        "tokenizer.*json is damaged",
    ),
}
OTHER = train_tokenizer(TEXTS, 290)
# What only `verify_tokens` finds.
FOUND_BY_VERIFY = {
    "a tokenizer of another size": (
        lambda folder: forge_file(folder, "tokenizer.json", OTHER.backend_tokenizer.to_str().encode()),
        "tokenizer.json has ids below 290, expected 300",
    ),
    "something else than a tokenizer": (
        lambda folder: forge_file(folder, "tokenizer.json", b'{"version": "1.0"}'),
        "tokenizer.json is not a tokenizer",
    ),
    "a skipped document of another form": (
        lambda folder: [forge_file(folder, SKIPPED, b"{}\n"), forge(folder, skipped_bytes=3)],
        "skipped.jsonl is damaged: line 1 is not a string",
    ),
    "skipped documents of another size": (
        lambda folder: forge_file(folder, SKIPPED, b'"a"\n'),
        "skipped.jsonl is damaged: expected .* bytes, got 4",
    ),
    "another number of skipped documents": (
        lambda folder: forge(folder, skipped=2),
        "skipped.jsonl is damaged: expected 2 lines, got 1",
    ),
    "an end-of-text token within a document": (
        lambda folder: forge_ids(folder, lambda ids: replaced(ids, 3, EOS)),
        r"documents.bin is damaged: document \d+ ends at token",
    ),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_folder(folder, fault):
    change, message = HOSTILE[fault]
    change(folder)
    for check in (open_tokens, verify_tokens):
        assert_raises(check, folder, message)


@pytest.mark.parametrize("fault", FOUND_BY_VERIFY)
def test_a_hostile_folder_that_opens(folder, fault):
    change, message = FOUND_BY_VERIFY[fault]
    change(folder)
    open_tokens(folder)
    assert_raises(verify_tokens, folder, message)


def test_what_was_written_is_intact(folder):
    index = verify_tokens(folder)
    assert index == read_index(folder)
    assert len(index.shards) == 3
    assert index.checksums.keys() == {path.name for path in folder.iterdir()} - {INDEX}
    assert open_tokens(folder).document_ends[-1] == index.tokens
    (folder / "README.md").write_text("of the user")
    verify_tokens(folder)


def test_a_flipped_bit_in_each_file(folder, written):
    """A small folder is checked as a whole when it is opened."""
    draw = random.Random(0)
    for name, content in written.items():
        for position in [0, len(content) - 2, *draw.sample(range(len(content)), 3)]:
            changed = bytearray(content)
            changed[position] ^= 1 << draw.randrange(8)
            (folder / name).write_bytes(changed)
            block = "" if name == INDEX else f"block {position // BLOCK}, "
            for check in (open_tokens, verify_tokens):
                assert_raises(check, folder, f"{name} is .*{block}")
        (folder / name).write_bytes(content)
    verify_tokens(folder)


def test_a_sample_of_a_large_folder_is_read(folder, monkeypatch):
    """Blocks that are spread over all files, from the first to the last; of the tokenizer all."""
    monkeypatch.setattr("hf_gpt.data.token_checks.SAMPLES", 9)
    for name, number in [("tokens-00000.bin", 0), (SKIPPED, 0), ("tokenizer.json", 5)]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: number * BLOCK] + b"!" + content[number * BLOCK + 1 :])
        assert_raises(open_tokens, folder, f"{name} is damaged: block {number}")
        (folder / name).write_bytes(content)
    read = []
    monkeypatch.setattr("hf_gpt.data.token_checks._check_block", lambda _, name, number: read.append((name, number)))
    open_tokens(folder)
    data = [each for each in read if each[0].startswith("tokens-") or each[0] in (DOCUMENTS, SKIPPED)]
    assert len(data) == len({*data}) == 9
    assert {name for name, _ in data} >= {"tokens-00000.bin", SHARD, "tokens-00002.bin"}
    assert SAMPLES == 64


def test_a_folder_of_an_earlier_version(folder):
    """It has no checksums. Everything else is checked."""
    as_earlier_version(folder)
    assert verify_tokens(folder).checksums == {}
    assert len(open_tokens(folder)) == read_index(folder).tokens
    for name, message in [(DOCUMENTS, "documents.bin is damaged: document"), (SHARD, "ids below 300")]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:60] + b"\xff\x0f" + content[62:])
        assert_raises(verify_tokens, folder, message)
        (folder / name).write_bytes(content)
    (folder / "tokenizer.json").unlink()
    assert_raises(verify_tokens, folder, "tokenizer.json does not exist")


def test_links_to_the_same_content_open(folder):
    """Downloads of the Hub are links into a cache."""
    (folder.parent / "blobs").mkdir()
    for path in [*folder.iterdir()]:
        path.rename(folder.parent / "blobs" / path.name)
        path.symlink_to(folder.parent / "blobs" / path.name)
    verify_tokens(folder)
    open_tokens(folder)
