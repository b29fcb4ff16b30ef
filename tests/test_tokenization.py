import json
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, OpenAIGPTTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_gpt.tokenization import (
    ENCODINGS,
    SPECIAL_TOKENS,
    SPLIT_PATTERNS,
    tokenizer_from_tiktoken,
    tokenizer_from_vocab_and_merges,
    train_tokenizer,
)

TEXTS = [
    "The cat sat on the mat. It's 12345 o'clock, we'll SEE!\n\n\tdef f(x):\n        return x ** 2\n",
    "Zwölf Boxkämpfer jagen Viktor über den Sylter Deich. 红楼梦 第一回 🐈‍⬛\r\n",
] * 10


TOKENIZERS = {pattern: train_tokenizer(TEXTS, 400, pattern) for pattern in SPLIT_PATTERNS}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


@given(text=st.text(), pattern=st.sampled_from(list(TOKENIZERS)))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_decodes_to_what_it_encoded(text, pattern):
    tokenizer = TOKENIZERS[pattern]
    if not any(token in text for token in tokenizer.all_special_tokens):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


SPLITS = {
    "gpt2": [("It's  12345 OK'S\n\nx", ["It", "'s", " ", " 12345", " OK", "'", "S", "\n", "\n", "x"])],
    "cl100k": [
        ("It's  12345 OK'S\n\nx", ["It", "'s", " ", " ", "123", "45", " OK", "'S", "\n\n", "x"]),
        ("x\n\n  ", ["x", "\n\n  "]),
    ],
    "o200k": [("It's  12345 OK'S\n\nxY", ["It's", " ", " ", "123", "45", " OK'S", "\n\n", "x", "Y"])],
}


@pytest.mark.parametrize("pattern", SPLITS)
def test_split_patterns(pattern):
    splitter = pre_tokenizers.Split(Regex(SPLIT_PATTERNS[pattern]), behavior="isolated")
    for text, expected in SPLITS[pattern]:
        assert [piece for piece, _ in splitter.pre_tokenize_str(text)] == expected


def test_is_a_stock_tokenizer_that_loads_without_hf_gpt(tokenizer, tmp_path):
    assert type(tokenizer) is PreTrainedTokenizerFast
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    script = (
        "import sys; from transformers import AutoTokenizer; "
        "print(AutoTokenizer.from_pretrained(sys.argv[1])('The cat')['input_ids']); assert 'hf_gpt' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout.strip() == str(tokenizer("The cat")["input_ids"]), done.stderr


def test_special_tokens(tokenizer):
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|padding|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    padded = tokenizer(["The cat", "The"], padding=True, return_tensors="pt")
    assert padded["attention_mask"].tolist()[1][-1] == 0


def test_same_text_same_tokenizer():
    assert train_tokenizer(TEXTS, 350).get_vocab() == train_tokenizer(iter(TEXTS), 350).get_vocab()


def test_vocabulary_size_is_kept():
    assert len(train_tokenizer(TEXTS, 300)) == 300
    assert len(train_tokenizer(["ab"], 50257)) < 300  # no more pairs to merge


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TEXTS, 257), "vocab_size=257: expected at least 258"),
        ((TEXTS, 400, "gpt5"), "split_pattern='gpt5': expected one of gpt2, cl100k, o200k"),
        (([], 400), "no text"),
        ((["", ""], 400), "no text"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(*arguments)


MIXED = [
    "Hello world",
    " Hello world",
    "Not all heroes wear capes",
    "It's 12345 o'clock, WE'LL SEE!   What'S that?\tNaïve café, ſoft ﬁne.",
    "def f(x: int) -> str:\n    if x:\n\n        return f'{x!r}'  # {}[]();\r\n\r\n",
    "红楼梦 第一回。こんにちは 안녕하세요 Привет мир नमस्ते สวัสดี שלום",
    "🐈‍⬛👩🏽‍🚀🇩🇪 e\u0301 \u200b\ufeff\u00ad\u2028\u3000ǅ ᾳ 𝔘𝔫𝔦 \x00\x1c\x85",
    " \n \n\n  \t\t x" + " " * 90 + "y\n\n  ",
    "",
]


def ids_of(tokenizer, texts=MIXED) -> list[list[int]]:
    return tokenizer(texts)["input_ids"]


def write_model(tokenizer: Tokenizer, folder: Path, version: bool = True) -> tuple[Path, Path]:
    vocab, merges = map(Path, tokenizer.model.save(str(folder)))
    if not version:
        merges.write_text(merges.read_text("utf-8").split("\n", 1)[1], "utf-8")
    return vocab, merges


def write_ranks(tokens: list[bytes], file: Path) -> Path:
    file.write_text("".join(f"{b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return file


def openai_gpt_tokenizer(vocab: Path, merges: Path) -> OpenAIGPTTokenizer:
    pairs = [tuple(line.split(" ")) for line in merges.read_text("utf-8").rstrip("\n").split("\n")[1:]]
    return OpenAIGPTTokenizer(vocab=json.loads(vocab.read_text("utf-8")), merges=pairs)


@pytest.mark.parametrize("version", [True, False])
def test_vocab_and_merges_give_back_a_byte_level_tokenizer(version, tmp_path):
    trained = TOKENIZERS["gpt2"]
    loaded = tokenizer_from_vocab_and_merges(*write_model(trained.backend_tokenizer, tmp_path, version))
    assert loaded.get_vocab() == trained.get_vocab()
    assert loaded.special_tokens_map == trained.special_tokens_map
    assert ids_of(loaded) == ids_of(trained)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_ranks_give_back_a_byte_level_tokenizer(encoding, tmp_path):
    pattern, special_tokens = ENCODINGS[encoding]
    trained = TOKENIZERS[pattern]
    to_bytes = {character: byte for byte, character in bytes_to_unicode().items()}
    tokens = trained.convert_ids_to_tokens(range(len(SPECIAL_TOKENS), len(trained)))
    ranks = write_ranks([bytes(map(to_bytes.get, token)) for token in tokens], tmp_path / "ranks.tiktoken")
    loaded = tokenizer_from_tiktoken(ranks, encoding)
    assert ids_of(loaded) == [[index - len(SPECIAL_TOKENS) for index in ids] for ids in ids_of(trained)]
    assert loaded.convert_tokens_to_ids(list(special_tokens)) == list(special_tokens.values())
    assert set(loaded.all_special_tokens) == set(special_tokens)
    assert loaded.bos_token == loaded.eos_token == loaded.unk_token == "<|endoftext|>"
    assert loaded.pad_token is None


@pytest.fixture
def word_level_files(tmp_path) -> tuple[Path, Path]:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return write_model(tokenizer, tmp_path)


def test_vocab_and_merges_give_back_a_word_level_tokenizer(word_level_files):
    loaded = tokenizer_from_vocab_and_merges(*word_level_files)
    assert type(loaded) is PreTrainedTokenizerFast
    assert ids_of(loaded) == ids_of(openai_gpt_tokenizer(*word_level_files))
    assert loaded.decode(loaded("THE cat\tsat, sat")["input_ids"]) == "the cat sat , sat"
    assert loaded("€")["input_ids"] == [loaded.unk_token_id] == loaded("<unk>")["input_ids"]


BYTES = {character: index for index, character in enumerate(sorted(bytes_to_unicode().values()))}


def test_end_of_word_as_text_is_no_word_level_vocabulary(tmp_path):
    vocab, merges = write_model(Tokenizer(models.BPE({**BYTES, "</w>": 256, "<unk>": 257}, [])), tmp_path)
    assert tokenizer_from_vocab_and_merges(vocab, merges)("Ab")["input_ids"] == [BYTES["A"], BYTES["b"]]


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ("{", "", "vocab.json: expected a JSON object from token to id"),
        ('["a"]', "", "vocab.json: expected a JSON object from token to id"),
        ('{"a": "0"}', "", "vocab.json: expected a JSON object from token to id"),
        ('{"a": true}', "", "vocab.json: expected a JSON object from token to id"),
        ('{"a": 0}', "#version: 0.2", "vocab.json: expected all 256 bytes .*, or <unk> and words with </w>"),
        ('{"a</w>": 0}', "#version: 0.2", "vocab.json: expected all 256 bytes .*, or <unk> and words with </w>"),
        (json.dumps(BYTES), "", "merges.txt, line 1: expected two tokens with a blank between, got ''"),
        (json.dumps(BYTES), "#version: 0.2\na b c\n", "merges.txt, line 2: expected two tokens .*, got 'a b c'"),
        (json.dumps(BYTES), "a €", r"merges.txt, line 1: expected tokens of the vocabulary, got \['€', 'a€'\]"),
        (json.dumps(BYTES), "a b\n", r"merges.txt, line 1: expected tokens of the vocabulary, got \['ab'\]"),
    ],
)
def test_bad_vocab_and_merges(vocab, merges, message, tmp_path):
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    for file, text in zip(files, (vocab, merges), strict=True):
        file.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        tokenizer_from_vocab_and_merges(*files)


@pytest.mark.parametrize(
    ("missing", "added", "message"),
    [
        (0, "YWI=", "line 257: expected base64 and a rank, got b'YWI='"),
        (0, "YWI 256", "line 257: expected base64 and a rank"),
        (0, "YWI= high", "line 257: expected base64 and a rank"),
        (0, "YWI= 255", "expected every token and every rank once"),
        (0, "YQ== 256", "expected every token and every rank once"),
        (2, "", "expected each of the 256 bytes, but 2 are missing"),
        (0, "YWJj 256", r"expected rank 256 to join two tokens before it, got \['a', 'b', 'c'\]"),
        (0, "YWJj 256\nYWI= 257", r"expected rank 256 to join two tokens before it, got \['a', 'b', 'c'\]"),
        (0, "YWI= 50256", r"expected ranks of r50k_base, whose special tokens have \[50256\]"),
    ],
)
def test_bad_ranks(missing, added, message, tmp_path):
    file = write_ranks([bytes([byte]) for byte in range(256 - missing)], tmp_path / "ranks.tiktoken")
    file.write_text(file.read_text() + added)
    with pytest.raises(ValueError, match=rf"ranks\.tiktoken.*{message}"):
        tokenizer_from_tiktoken(file, "r50k_base")


def test_unknown_encoding():
    with pytest.raises(ValueError, match="encoding='gpt5': expected one of r50k_base, p50k_base"):
        tokenizer_from_tiktoken("ranks.tiktoken", "gpt5")


PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "bpe"
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
    assert ids_of(tokenizer_from_vocab_and_merges(*GPT1)) == ids_of(openai_gpt_tokenizer(*GPT1))


@pytest.fixture(scope="module", params=ENCODINGS)
def encoding(request) -> tuple[str, PreTrainedTokenizerFast]:
    return request.param, tokenizer_from_tiktoken(PUBLISHED / f"{request.param}.tiktoken", request.param)


@published
def test_ids_of_tiktoken(encoding, monkeypatch):
    reason = "tiktoken, to compare with, is not installed"
    tiktoken = pytest.importorskip("tiktoken", reason=reason)
    openai_public = pytest.importorskip("tiktoken_ext.openai_public", reason=reason)
    name, ours = encoding
    load = openai_public.load_tiktoken_bpe
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # no copy in the folder for temporary files
    monkeypatch.setattr(
        openai_public, "load_tiktoken_bpe", lambda url, **checks: load(str(PUBLISHED / Path(url).name), **checks)
    )
    theirs = tiktoken.Encoding(**openai_public.ENCODING_CONSTRUCTORS[name]())
    assert ids_of(ours) == theirs.encode_ordinary_batch(MIXED)
    assert set(ours.all_special_tokens) == theirs.special_tokens_set
    text = "x".join(sorted(theirs.special_tokens_set))
    assert ours(text)["input_ids"] == theirs.encode(text, allowed_special="all")


@published
def test_published_ranks_decode_and_load_again(encoding, tmp_path):
    _, tokenizer = encoding
    assert tokenizer.batch_decode(ids_of(tokenizer)) == MIXED
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
    assert files == GPT1 or loaded.batch_decode(ids_of(loaded)) == MIXED
