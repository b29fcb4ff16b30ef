"""`hf-gpt train-tokenizer` and `tokenize`."""

import pytest
from command_line import TEXT, TINY, assert_error
from transformers import AutoTokenizer

from hf_gpt.data import TokenBlocks, open_tokens
from hf_gpt.tokenization import load_tokenizer


def test_train_tokenizer(run, text, saved, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "The quick brown fox"}\n{}\n')
    options = ("--vocab-size", 280, "--special-token", "<a>", "--column", "body", "--against", saved)
    status, output, _ = run("train-tokenizer", text, rows, "--out", tmp_path / "out", *options)
    assert status == 0
    assert "280 tokens" in output
    assert f"skipped: {rows}, byte 32 has no 'body'" in output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == 280
    assert "<a>" in tokenizer.all_special_tokens
    row = next(line for line in output.splitlines() if " all " in line)
    sizes = [len(AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]) for folder in (tmp_path / "out", saved)]
    printed = [float(cell) for cell in row.replace("│", " ").split()[1:]]
    assert printed == pytest.approx([len(TEXT) / size for size in sizes], abs=0.02)


def test_train_tokenizer_without_gpt2_to_compare_with(run, text, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    status, output, _ = run("train-tokenizer", text, "--out", tmp_path / "out", "--vocab-size", 280)
    assert status == 0
    assert "gpt2" not in output


def test_train_tokenizer_lists_some_of_many_skipped_documents(run, text, tmp_path):
    empty = [tmp_path / f"{number}.txt" for number in range(20)]
    for file in empty:
        file.touch()
    status, output, _ = run("train-tokenizer", *empty, text, "--out", tmp_path / "out", "--vocab-size", 280)
    assert status == 0
    assert "skipped: 20 documents in total" in output


def test_train_tokenizer_with_bad_arguments(run, text, tmp_path):
    out = ("--out", tmp_path / "out")
    assert_error(run("train-tokenizer", text, *out, "--vocab-size", 9), "vocab_size=9: expected")
    assert_error(run("train-tokenizer", text, *out, "--special-token", "<|endoftext|>"), "expected each once")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    assert_error(run("train-tokenizer", tmp_path / "bad.txt", *out), "bad.txt is not UTF-8 text: byte 0 is 0xff")
    assert_error(run("train-tokenizer", tmp_path / "none.txt", *out), "none.txt")
    assert not (tmp_path / "out").exists()


def test_tokenize(run, text, saved, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    out = tmp_path / "tokens"
    options = ("--tokenizer", saved, "--out", out, "--threads", 2, "--shard-tokens", 100)
    status, output, _ = run("tokenize", text, tmp_path / "bad.txt", *options)
    assert status == 0
    ids = [*AutoTokenizer.from_pretrained(saved)(TEXT)["input_ids"], 299]
    assert f"{len(ids):,} tokens of 1 documents" in " ".join(output.split())
    assert "skipped: " in output
    blocks = TokenBlocks(out, 8)
    assert [token for row in blocks for token in row["input_ids"].tolist()] == ids[: len(ids) // 8 * 8]


def test_tokenize_verify(run, text, saved, tmp_path):
    out = tmp_path / "tokens"
    assert run("tokenize", text, "--tokenizer", saved, "--out", out)[0] == 0
    status, output, _ = run("tokenize", "--verify", out)
    assert status == 0
    assert "tokens of 1 documents are intact" in " ".join(output.split())
    shard = out / "tokens-00000.bin"
    shard.write_bytes(b"!" + shard.read_bytes()[1:])
    message = f"{shard} is damaged: block 0, from byte 0, has the CRC-32"
    assert_error(run("tokenize", "--verify", out), message)
    assert_error(run("train", "--tokens", out, "--model", "gpt2", *TINY, "--out", tmp_path / "model"), message)
    assert not list(tmp_path.glob("model*"))
    assert_error(run("tokenize", "--verify", tmp_path), "has no index.json")


def test_tokenize_with_the_shipped_tokenizer(run, text, tmp_path):
    assert run("tokenize", text, "--out", tmp_path / "tokens")[0] == 0
    assert len(open_tokens(tmp_path / "tokens")) == len(load_tokenizer()(TEXT)["input_ids"]) + 1


def test_tokenize_with_bad_arguments(run, text, saved, tmp_path):
    out = ("--out", tmp_path / "tokens")
    assert_error(run("tokenize", text, *out, "--tokenizer", tmp_path), "is neither a folder with a tokenizer")
    assert_error(run("tokenize", text, *out, "--engine", "quick"), "engine='quick': expected tiktoken or tokenizers")
    assert_error(run("tokenize", tmp_path, *out), "is a folder: expected files")
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt"}
