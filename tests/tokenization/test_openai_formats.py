from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public
from tiny_tokenizers import (
    ANY_TEXT,
    MIXED_TEXTS,
    TOKENIZERS,
    ids_of,
    read_pairs,
    write_vocab_and_merges,
    write_word_level_model,
)
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, OpenAIGPTTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_gpt.data.encoders import build_encoder
from hf_gpt.tokenization.chunking import split_into_chunks
from hf_gpt.tokenization.openai_formats import (
    ENCODINGS,
    tokenizer_from_tiktoken,
    tokenizer_from_vocab_and_merges,
    tokenizer_to_tiktoken,
)
from hf_gpt.tokenization.vocabulary_files import read_vocab

BYTE_IDS = {character: index for index, character in enumerate(sorted(bytes_to_unicode().values()))}


def load_with_transformers(vocab: Path, merges: Path) -> OpenAIGPTTokenizer:
    return OpenAIGPTTokenizer(vocab=read_vocab(vocab), merges=read_pairs(merges))


# --- round trips -------------------------------------------------------------------------------------------------


@pytest.fixture
def word_level_files(tmp_path) -> tuple[Path, Path]:
    return write_word_level_model(tmp_path)


@pytest.mark.parametrize("has_version_line", [True, False])
def test_vocab_and_merges_of_a_byte_level_tokenizer(has_version_line, tmp_path):
    trained = TOKENIZERS["gpt2"]
    vocab, merges = write_vocab_and_merges(trained.backend_tokenizer, tmp_path)
    if not has_version_line:
        merges.write_text(merges.read_text("utf-8").split("\n", 1)[1], "utf-8")
    loaded = tokenizer_from_vocab_and_merges(vocab, merges)
    assert loaded.get_vocab() == trained.get_vocab()
    assert loaded.special_tokens_map == trained.special_tokens_map
    assert ids_of(loaded) == ids_of(trained)


def test_vocab_and_merges_of_a_word_level_tokenizer(word_level_files):
    loaded = tokenizer_from_vocab_and_merges(*word_level_files)
    assert type(loaded) is PreTrainedTokenizerFast
    assert ids_of(loaded) == ids_of(load_with_transformers(*word_level_files))
    assert loaded.decode(loaded("THE cat\tsat, sat")["input_ids"]) == "the cat sat , sat"
    assert loaded("€")["input_ids"] == [loaded.unk_token_id] == loaded("<unk>")["input_ids"]


def test_byte_level_vocabulary_with_an_end_of_word(tmp_path):
    vocab, merges = write_vocab_and_merges(Tokenizer(models.BPE({**BYTE_IDS, "</w>": 256, "<unk>": 257}, [])), tmp_path)
    assert tokenizer_from_vocab_and_merges(vocab, merges)("Ab")["input_ids"] == [BYTE_IDS["A"], BYTE_IDS["b"]]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_ranks_of_a_byte_level_tokenizer(encoding, tmp_path):
    pattern, special_tokens = ENCODINGS[encoding]
    trained, ranks = TOKENIZERS[pattern], tmp_path / "ranks.tiktoken"
    tokenizer_to_tiktoken(trained, ranks)
    loaded = tokenizer_from_tiktoken(ranks, encoding)
    assert ids_of(loaded) == ids_of(trained)
    assert loaded.convert_tokens_to_ids(list(special_tokens)) == list(special_tokens.values())
    assert set(loaded.all_special_tokens) == set(special_tokens)
    assert loaded.bos_token == loaded.eos_token == loaded.unk_token == "<|endoftext|>"
    assert loaded.pad_token is None
    tokenizer_to_tiktoken(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == ranks.read_bytes()


def test_tokenizers_without_ranks(word_level_files, tmp_path):
    with pytest.raises(ValueError, match="expected a byte-level BPE"):
        tokenizer_to_tiktoken(tokenizer_from_vocab_and_merges(*word_level_files), tmp_path / "ranks")
    vocab, merges = write_vocab_and_merges(TOKENIZERS["gpt2"].backend_tokenizer, tmp_path)
    lines = merges.read_text("utf-8").splitlines()
    merges.write_text("\n".join([lines[0], *lines[:0:-1]]), "utf-8")
    with pytest.raises(ValueError, match="expected one merge for each token, in the order of the ids"):
        tokenizer_to_tiktoken(tokenizer_from_vocab_and_merges(vocab, merges), tmp_path / "ranks")
    assert not (tmp_path / "ranks").exists()


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", ['{"a": 0}', '{"a</w>": 0}'])
def test_vocabulary_of_neither_kind(vocab, tmp_path):
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    for file, text in zip(files, (vocab, "#version: 0.2"), strict=True):
        file.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json: expected all 256 bytes .*, or <unk> and words with </w>"):
        tokenizer_from_vocab_and_merges(*files)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("YWJj 256", r"expected rank 256 to join two tokens of lower rank, got 'abc'"),
        ("YWJj 256\nYWI= 257", r"expected rank 256 to join two tokens of lower rank, got 'abc'"),
        ("YWI= 50256", r"expected ranks of r50k_base, whose special tokens have the ids \[50256\]"),
        ("YWI= 256\nYmM= 258", "expected every rank up to 258, but 257 is missing"),
        ("YWI= 999999999", "expected every rank up to 999999999, but 256 is missing"),
    ],
)
def test_ranks_of_no_tokenizer(added, message, tmp_path):
    file = tmp_path / "ranks.tiktoken"
    file.write_text("".join(f"{b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)) + added)
    with pytest.raises(ValueError, match=rf"ranks\.tiktoken: {message}"):
        tokenizer_from_tiktoken(file, "r50k_base")


def test_unknown_encoding():
    with pytest.raises(ValueError, match="encoding='gpt5': expected one of r50k_base, p50k_base"):
        tokenizer_from_tiktoken("ranks.tiktoken", "gpt5")


# --- published vocabularies --------------------------------------------------------------------------------------


PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "bpe"
GPT1 = PUBLISHED / "gpt1_encoder_bpe_40000.json", PUBLISHED / "gpt1_vocab_40000.bpe"
GPT2 = PUBLISHED / "encoder.json", PUBLISHED / "vocab.bpe"
published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="OpenAI's vocabularies are not in ../shared/data/bpe, beside this repository"
)


@published
def test_ids_of_gpt2():
    loaded = tokenizer_from_vocab_and_merges(*GPT2)
    assert ids_of(loaded)[:3] == [[15496, 995], [18435, 995], [3673, 477, 10281, 5806, 1451, 274]]
    assert loaded("<|endoftext|>")["input_ids"] == [loaded.eos_token_id] == [50256]
    from_ranks = tokenizer_from_tiktoken(PUBLISHED / "r50k_base.tiktoken", "r50k_base")
    assert from_ranks.get_vocab() == loaded.get_vocab()
    assert ids_of(from_ranks) == ids_of(loaded)


@published
def test_ids_of_gpt1():
    ours, theirs = tokenizer_from_vocab_and_merges(*GPT1), load_with_transformers(*GPT1)
    assert ids_of(ours) == ids_of(theirs)
    real = [path.read_text("utf-8")[:100_000] for path in sorted(PUBLISHED.parent.glob("text/*/*.txt"))]
    assert ids_of(ours, real) == ids_of(theirs, real)


@pytest.fixture(scope="module", params=ENCODINGS)
def encoding(request) -> tuple[str, PreTrainedTokenizerFast]:
    return request.param, tokenizer_from_tiktoken(PUBLISHED / f"{request.param}.tiktoken", request.param)


@pytest.fixture(scope="module")
def theirs(encoding) -> "tiktoken.Encoding":
    """Builds tiktoken's own encoding, with the ranks read from a local file."""
    name, _ = encoding
    load = openai_public.load_tiktoken_bpe
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # write no copy to the temporary folder
        patch.setattr(
            openai_public, "load_tiktoken_bpe", lambda url, **checks: load(str(PUBLISHED / Path(url).name), **checks)
        )
        return tiktoken.Encoding(**openai_public.ENCODING_CONSTRUCTORS[name]())


@published
def test_ids_of_tiktoken(encoding, theirs):
    _, ours = encoding
    assert ids_of(ours) == theirs.encode_ordinary_batch(MIXED_TEXTS)
    assert set(ours.all_special_tokens) == theirs.special_tokens_set
    text = "x".join(sorted(theirs.special_tokens_set))
    assert ours(text)["input_ids"] == theirs.encode(text, allowed_special="all")
    assert ours(text, split_special_tokens=True)["input_ids"] == theirs.encode_ordinary(text)


@published
def test_ids_of_tiktoken_on_fuzzed_text(encoding, theirs):
    _, ours = encoding

    @given(text=ANY_TEXT | st.text(st.characters(categories=["L", "N", "M", "Z", "P"]) | st.sampled_from("'sStTlL \n")))
    @settings(max_examples=1000, deadline=None, derandomize=True)
    def same(text):
        assert ours(text, split_special_tokens=True)["input_ids"] == theirs.encode_ordinary(text)

    same()


@published
def test_ids_of_tiktoken_on_real_text(encoding, theirs):
    """tiktoken encodes whole texts, our encoder their chunks."""
    _, ours = encoding
    encoder = build_encoder(ours, "tokenizers")
    for path in sorted(PUBLISHED.parent.glob("text/*/*.txt")):
        text = path.read_bytes().decode()
        ids = np.concatenate([encoder.encode([chunk])[0] for chunk in split_into_chunks(text)])
        assert np.array_equal(ids, theirs.encode_to_numpy(text, disallowed_special=())), path.name


@published
def test_published_ranks_decode_and_load_again(encoding, tmp_path):
    _, tokenizer = encoding
    assert tokenizer.batch_decode(ids_of(tokenizer)) == MIXED_TEXTS
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is PreTrainedTokenizerFast
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert ids_of(loaded) == ids_of(tokenizer)


@published
@pytest.mark.parametrize("files", [GPT1, GPT2], ids=["gpt1", "gpt2"])
def test_published_merges_load_again(files, tmp_path):
    tokenizer = tokenizer_from_vocab_and_merges(*files)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert ids_of(loaded) == ids_of(tokenizer)
    assert files == GPT1 or loaded.batch_decode(ids_of(loaded)) == MIXED_TEXTS
