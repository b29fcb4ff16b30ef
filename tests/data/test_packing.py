import pickle

import numpy as np
import pytest
import torch
from threads import THREADS, in_threads
from tiny import make_model
from torch.utils.data import ConcatDataset, DataLoader
from transformers import Trainer, TrainingArguments

from hf_gpt.data import checksums, packing, token_files
from hf_gpt.data.packing import TokenBlocks
from hf_gpt.data.token_files import Tokens
from hf_gpt.data.tokenizing import encode_texts, tokenize_files
from hf_gpt.tokenization import train_tokenizer

LENGTHS = [3, 1, 9, 4, 8, 20, 2]


def number_tokens(shard_lengths=(5, 1, 30, 11)) -> Tokens:
    """Returns consecutive numbers as the tokens of documents of `LENGTHS`; shards end within documents."""
    flat = np.arange(sum(LENGTHS), dtype=np.uint16)
    assert sum(shard_lengths) == len(flat)
    shards = np.split(flat, np.cumsum(shard_lengths)[:-1])
    return Tokens(shards, np.cumsum(LENGTHS))


@pytest.mark.parametrize("block_size", [1, 4, 7, 47])
def test_rows_contain_every_token_in_order(block_size):
    blocks = TokenBlocks(number_tokens(), block_size)
    rows = list(blocks)
    assert len(rows) == len(blocks) == 47 // block_size
    assert torch.cat([row["input_ids"] for row in rows]).tolist() == list(range(47 // block_size * block_size))
    assert all(torch.equal(row["labels"], row["input_ids"]) for row in rows)
    assert rows[0]["input_ids"].dtype == torch.int64
    assert torch.equal(blocks[-1]["input_ids"], rows[-1]["input_ids"])
    with pytest.raises(IndexError):
        blocks[len(blocks)]


@pytest.mark.parametrize("block_size", [1, 4, 7, 12, 47])
def test_separate_documents(block_size):
    starts = {0, *np.cumsum(LENGTHS).tolist()}
    for row in TokenBlocks(number_tokens(), block_size, separate_documents=True):
        position = -1
        for at, token in enumerate(row["input_ids"].tolist()):
            position = 0 if at == 0 or token in starts else position + 1
            assert row["position_ids"][at] == position
            first = token in starts and at > 0  # the loss ignores the label at 0 in any case
            assert row["labels"][at] == (-100 if first else token)


def test_separate_documents_do_not_attend_to_each_other():
    """The logits of packed documents are those of each document alone."""
    model = make_model(vocab_size=64)
    row = TokenBlocks(number_tokens(), 17, separate_documents=True)[0]
    packed = model(row["input_ids"][None], position_ids=row["position_ids"][None]).logits[0]
    alone = [model(part[None]).logits[0] for part in row["input_ids"].split([*LENGTHS[:4]])]
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)


def test_split():
    training, evaluation = TokenBlocks(number_tokens(), 4).split(0.25)
    assert len(evaluation) == 2
    assert sorted([*training.indices, *evaluation.indices]) == list(range(11))


def test_unigram_entropy():
    tokens = Tokens([np.array([1, 2], np.uint16), np.array([1, 1], np.uint16)], np.array([4]))
    assert TokenBlocks(tokens, 2).unigram_entropy() == pytest.approx(0.5623351446)  # of 3/4 and 1/4
    tokens = Tokens([np.array([0, 2**32 - 1], np.uint32)], np.array([2]))
    with pytest.raises(ValueError, match=f"the tokens contain the id {2**32 - 1}: expected ids below 16777216"):
        TokenBlocks(tokens, 2).unigram_entropy()


def test_too_little_text():
    with pytest.raises(ValueError, match="has 47 tokens: expected at least one row of 64"):
        TokenBlocks(number_tokens(), 64)
    with pytest.raises(ValueError, match="expected at least two"):
        TokenBlocks(number_tokens(), 40).split(0.1)
    with pytest.raises(ValueError, match="block_size=0: expected at least 1"):
        TokenBlocks(number_tokens(), 0)
    with pytest.raises(ValueError, match=r"fraction=0\.7: expected 0 to 0\.5"):
        TokenBlocks(number_tokens(), 4).split(0.7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"The cat sat on the mat, {number} times. " * 8 for number in range(20)]
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)
    tokenizer = train_tokenizer(texts, 300)
    tokenize_files(sorted(folder.glob("*.txt")), tokenizer, folder / "tokens", shard_tokens=100)
    return folder / "tokens", tokenizer, texts


def test_rows_of_a_folder_are_those_of_its_texts(folder):
    path, tokenizer, texts = folder
    mapped, in_memory = TokenBlocks(path, 16), TokenBlocks(encode_texts(tokenizer, texts), 16)
    assert len(mapped) == len(in_memory)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(mapped, in_memory, strict=True))
    assert len(pickle.dumps(mapped)) < 2000  # sent to each worker process


@pytest.mark.parametrize("separate_documents", [False, True])
def test_trains_with_the_trainer(folder, tmp_path, separate_documents):
    path, tokenizer, _ = folder
    data = TokenBlocks(path, 16, separate_documents=separate_documents)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=12, learning_rate=1e-2, report_to="none", use_cpu=True, dataloader_num_workers=1
    )
    trainer = Trainer(make_model(vocab_size=300).train(), arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.5
    assert tokenizer.eos_token_id in torch.cat([batch["input_ids"] for batch in DataLoader(data)])


def test_blocks_of_the_files_are_checked_while_rows_are_read(tmp_path, monkeypatch):
    """Those of one of every five rows."""
    monkeypatch.setattr(packing, "ROWS_PER_CHECK", 5)
    for module in (checksums, token_files):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    (tmp_path / "text.txt").write_text("the cat sat on the mat " * 400)
    tokenize_files([tmp_path / "text.txt"], train_tokenizer(["the cat sat on the mat"], 270), tmp_path / "tokens")
    blocks = TokenBlocks(tmp_path / "tokens", 25)  # two rows in a block
    path = tmp_path / "tokens" / "tokens-00000.bin"
    path.write_bytes(bytes(path.stat().st_size))
    for chosen in {TokenBlocks(blocks.tokens, 25)._checked_row for _ in range(100)}:
        blocks._checked_row = chosen
        copied = pickle.loads(pickle.dumps(blocks))  # in a worker process
        for row in range(15):
            if row % 5 == chosen:
                with pytest.raises(ValueError, match=rf"tokens-00000\.bin is damaged: block {row // 2}, from byte"):
                    copied[row]
            else:
                copied[row]


@pytest.fixture
def blocks(tmp_path):
    """The same rows of several shards, memory-mapped and in memory."""
    (tmp_path / "book.txt").write_text("The cat sat on the mat. " * 200)
    tokenizer = train_tokenizer([(tmp_path / "book.txt").read_text()], 300)
    tokenize_files([tmp_path / "book.txt"], tokenizer, tmp_path / "tokens", shard_tokens=100, threads=1)
    mapped = TokenBlocks(tmp_path / "tokens", 8, separate_documents=True)
    in_memory = Tokens([*mapped.tokens.shards], mapped.tokens.document_ends)
    return mapped, TokenBlocks(in_memory, 8, separate_documents=True)


def ids_of(rows):
    return torch.stack([row["input_ids"] for row in rows])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_processes_read_the_same_rows(blocks, method):
    loader = DataLoader(ConcatDataset(blocks), batch_size=None, num_workers=1, multiprocessing_context=method)
    assert torch.equal(ids_of(loader), ids_of(blocks[0]).repeat(2, 1))


def test_threads_read_the_same_rows(blocks):
    expected = ids_of(blocks[0])
    for rows in blocks:
        found = in_threads(lambda _, rows=rows: ids_of(rows))
        assert [torch.equal(each, expected) for each in found] == [True] * THREADS
