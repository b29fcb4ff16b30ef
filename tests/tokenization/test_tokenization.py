import itertools
import json
import os
import subprocess
import sys
from base64 import b64encode
from bisect import bisect_left, bisect_right
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, GPT2Tokenizer, OpenAIGPTTokenizer, PreTrainedTokenizerFast, TextStreamer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_gpt.data.encoders import build_encoder
from hf_gpt.tokenization.bpe_files import to_bytes
from hf_gpt.tokenization.building import (
    ENCODINGS,
    SPECIAL_TOKENS,
    SPLIT_PATTERNS,
    load_tokenizer,
    tokenizer_from_tiktoken,
    tokenizer_from_vocab_and_merges,
    tokenizer_to_tiktoken,
    train_tokenizer,
)
from hf_gpt.tokenization.pieces import cut

TEXTS = [
    "The cat sat on the mat. It's 12345 o'clock, we'll SEE!\n\n\tdef f(x):\n        return x ** 2\n",
    "Zwölf Boxkämpfer jagen Viktor über den Sylter Deich. 红楼梦 第一回 🐈‍⬛\r\n",
] * 10


TOKENIZERS = {pattern: train_tokenizer(TEXTS, 400, pattern) for pattern in SPLIT_PATTERNS}
PATTERNS = list(SPLIT_PATTERNS)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


any_text = (
    st.text() | st.binary().map(lambda data: data.decode("latin-1")) | st.text(st.sampled_from("a 1'\n\x00<|红é🐈"))
)


@given(text=any_text | st.binary().map(lambda data: data.decode(errors="replace")), pattern=st.sampled_from(PATTERNS))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_decodes_to_what_it_encoded(text, pattern):
    tokenizer = TOKENIZERS[pattern]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@given(text=any_text, pattern=st.sampled_from(PATTERNS))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_offsets_point_at_the_characters_of_each_token(text, pattern):
    tokenizer = TOKENIZERS[pattern]
    encoded = tokenizer(text, return_offsets_mapping=True)
    data = text.encode()
    starts = [0, *itertools.accumulate(len(character.encode()) for character in text)]
    at = 0
    for token, (first, last) in zip(encoded.tokens(), encoded["offset_mapping"], strict=True):
        end = at + len(to_bytes(token))
        assert data[at:end] == to_bytes(token)
        assert starts[first] <= at < end <= starts[last]  # all of its bytes, perhaps parts of characters
        assert first == bisect_right(starts, at) - 1
        assert last == bisect_left(starts, end)
        at = end
    assert at == len(data)


@given(text=any_text)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_streams_no_broken_character(text):
    tokenizer = TOKENIZERS["gpt2"]
    streamed, shown = DecodeStream(skip_special_tokens=False), ""
    ids = tokenizer(text)["input_ids"]
    for token in ids:
        shown += streamed.step(tokenizer.backend_tokenizer, token) or ""
        assert text.startswith(shown)
    if "\ufffd" not in text:
        assert shown == text


def test_the_streamer_of_transformers_shows_no_broken_character(capsys):
    tokenizer = TOKENIZERS["gpt2"]
    text = "The cat: 红楼梦 第一回 🐈‍⬛ wörter.\n"
    streamer = TextStreamer(tokenizer)
    for token in tokenizer(text)["input_ids"]:
        streamer.put(torch.tensor([token]))
        assert "\ufffd" not in capsys.readouterr().out, token


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
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|padding|>"
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id] == sorted(tokenizer.all_special_ids)
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.convert_ids_to_tokens([0, 255]) == ["!", "Ń"]  # bytes come first, as in GPT-2
    padded = tokenizer(["The cat", "The"], padding=True, return_tensors="pt")
    assert padded["attention_mask"].tolist()[1][-1] == 0


def test_other_special_tokens(tmp_path):
    special_tokens = ["<a>", "<b>", *SPECIAL_TOKENS]
    tokenizer = train_tokenizer(TEXTS, 350, special_tokens=special_tokens)
    assert tokenizer.convert_ids_to_tokens(range(346, 350)) == special_tokens
    assert len(tokenizer) == tokenizer.vocab_size == 350
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert set(loaded.all_special_tokens) == set(special_tokens)
    assert loaded("x<b>y")["input_ids"][1] == 347
    assert 347 not in loaded("x<b>y", split_special_tokens=True)["input_ids"]


def test_same_text_same_tokenizer(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 350)
    assert train_tokenizer(iter(TEXTS), 350).get_vocab() == tokenizer.get_vocab()
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    script = (
        "import sys, json; from hf_gpt.tokenization.building import train_tokenizer; "
        "print(train_tokenizer(json.load(open(sys.argv[1])), 350).backend_tokenizer.to_str())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "texts.json")],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.stdout.strip() == tokenizer.backend_tokenizer.to_str(), done.stderr


def test_vocabulary_size_is_kept():
    assert len(train_tokenizer(TEXTS, 300)) == 300
    assert len(train_tokenizer(["ab"], 50257)) < 300  # no more pairs to merge


def test_a_large_text_is_sampled_evenly():
    texts = ["a b " * 5000, "c d " * 5000] * 20
    whole, sampled = train_tokenizer(texts, 300), train_tokenizer(texts, 300, sample_bytes=100_000)
    assert set(sampled.get_vocab()) == set(whole.get_vocab())
    assert len(train_tokenizer(texts, 300, sample_bytes=1)) < len(whole)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((TEXTS, 257), {}, "vocab_size=257: expected at least 258"),
        ((TEXTS, 258), {"special_tokens": ["<a>", *SPECIAL_TOKENS]}, "vocab_size=258: expected at least 259"),
        ((TEXTS, 400, "gpt5"), {}, "split_pattern='gpt5': expected one of gpt2, cl100k, o200k"),
        (([], 400), {}, "no text"),
        ((["", ""], 400), {}, "no text"),
        ((TEXTS, 400), {"special_tokens": ["<a>", "<b>", "<a>"]}, r"special_tokens: expected each once.*\['<a>'\]"),
        ((TEXTS, 400), {"special_tokens": [""]}, "special_tokens: expected each once, and none empty"),
        ((TEXTS, 400), {"special_tokens": ["cat"]}, r"special_tokens: \['cat'\] are words of the text"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(*arguments, **options)


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


def write_bytes_and(lines: str, file: Path, missing: int = 0) -> Path:
    """The ranks of 256 bytes, but for the last `missing`, and what more there is to be."""
    ranks = "".join(f"{b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256 - missing))
    file.write_text(ranks + lines)
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


def test_what_has_no_ranks(word_level_files, tmp_path):
    with pytest.raises(ValueError, match="expected a byte-level BPE"):
        tokenizer_to_tiktoken(tokenizer_from_vocab_and_merges(*word_level_files), tmp_path / "ranks")
    vocab, merges = write_model(TOKENIZERS["gpt2"].backend_tokenizer, tmp_path)
    lines = merges.read_text("utf-8").splitlines()
    merges.write_text("\n".join([lines[0], *lines[:0:-1]]), "utf-8")
    with pytest.raises(ValueError, match="expected merges in the order of the ids"):
        tokenizer_to_tiktoken(tokenizer_from_vocab_and_merges(vocab, merges), tmp_path / "ranks")
    assert not (tmp_path / "ranks").exists()


# --- options -----------------------------------------------------------------------------------------------------


def from_vocab_and_merges(folder, **options):
    return tokenizer_from_vocab_and_merges(*write_model(TOKENIZERS["gpt2"].backend_tokenizer, folder), **options)


def from_tiktoken(folder, **options):
    tokenizer_to_tiktoken(TOKENIZERS["cl100k"], folder / "ranks")
    return tokenizer_from_tiktoken(folder / "ranks", "cl100k_base", **options)


def trained(folder, **options):
    return train_tokenizer(TEXTS, 400, "o200k", **options)


def shipped(folder, **options):
    return load_tokenizer(**options)


@pytest.fixture(params=[from_vocab_and_merges, from_tiktoken, trained, shipped], ids=lambda make: make.__name__)
def make(request, tmp_path):
    def make_and_load_again(**options):
        request.param(tmp_path, **options).save_pretrained(tmp_path / "saved")
        return AutoTokenizer.from_pretrained(tmp_path / "saved")

    return make_and_load_again


def test_add_prefix_space(make):
    plain, prefixed = make(), make(add_prefix_space=True)
    for text in ("The cat", " The cat", "  x", "\tx", "红 x", " "):
        expected = plain(text if text.startswith(" ") else " " + text)["input_ids"]
        encoded = prefixed(text, return_offsets_mapping=True)
        assert encoded["input_ids"] == expected
        assert encoded["offset_mapping"][-1][1] == len(text)
    assert prefixed("")["input_ids"] == []


def test_a_prefix_space_is_that_of_gpt2(tmp_path):
    vocab, merges = write_model(TOKENIZERS["gpt2"].backend_tokenizer, tmp_path)
    pairs = [tuple(line.split(" ")) for line in merges.read_text("utf-8").rstrip("\n").split("\n")[1:]]
    theirs = GPT2Tokenizer(vocab=json.loads(vocab.read_text("utf-8")), merges=pairs, add_prefix_space=True)
    ours = tokenizer_from_vocab_and_merges(vocab, merges, add_prefix_space=True)
    for text in [*MIXED, "x<|endoftext|>y<|endoftext|> z"]:
        expected, encoded = (tokenizer(text, return_offsets_mapping=True) for tokenizer in (theirs, ours))
        assert encoded["input_ids"] == expected["input_ids"]
        assert encoded["offset_mapping"] == expected["offset_mapping"]


def test_add_bos_token(make):
    tokenizer = make(add_bos_token=True)
    assert tokenizer("x")["input_ids"] == [tokenizer.bos_token_id, *make()("x")["input_ids"]]
    assert tokenizer("x", add_special_tokens=False)["input_ids"] == make()("x")["input_ids"]


def test_other_roles(make):
    tokenizer = make(unk_token="!", bos_token="<s>", eos_token="</s>", pad_token="#", add_bos_token=True)
    assert tokenizer.convert_ids_to_tokens(tokenizer.unk_token_id) == "!"
    assert tokenizer.pad_token_id == make().convert_tokens_to_ids("#")
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & {*make().get_vocab().values()}
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id


def test_gpt1_has_the_same_options(word_level_files):
    plain = tokenizer_from_vocab_and_merges(*word_level_files)
    options = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = tokenizer_from_vocab_and_merges(*word_level_files, add_prefix_space=True, add_bos_token=True, **options)
    assert tokenizer("The cat")["input_ids"] == [len(plain), *plain("The cat")["input_ids"]]
    with pytest.raises(ValueError, match="add_bos_token: the vocabulary has no beginning-of-text token"):
        tokenizer_from_vocab_and_merges(*word_level_files, add_bos_token=True)


def test_a_misspelled_option():
    with pytest.raises(TypeError, match="add_eos"):
        train_tokenizer(TEXTS, 400, add_eos=True)


# --- OpenAI's files ----------------------------------------------------------------------------------------------


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
        (0, "YWJj 256", r"expected rank 256 to join two tokens before it, got 'abc'"),
        (0, "YWJj 256\nYWI= 257", r"expected rank 256 to join two tokens before it, got 'abc'"),
        (0, "YWI= 50256", r"expected ranks of r50k_base, whose special tokens have \[50256\]"),
        (0, "YWI= 256\nYmM= 258", "expected every rank up to 258, but 1 are missing: 257"),
    ],
)
def test_bad_ranks(missing, added, message, tmp_path):
    file = write_bytes_and(added, tmp_path / "ranks.tiktoken", missing)
    with pytest.raises(ValueError, match=rf"ranks\.tiktoken.*{message}"):
        tokenizer_from_tiktoken(file, "r50k_base")


def test_unknown_encoding():
    with pytest.raises(ValueError, match="encoding='gpt5': expected one of r50k_base, p50k_base"):
        tokenizer_from_tiktoken("ranks.tiktoken", "gpt5")


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
    ours, theirs = tokenizer_from_vocab_and_merges(*GPT1), openai_gpt_tokenizer(*GPT1)
    assert ids_of(ours) == ids_of(theirs)
    real = [path.read_text("utf-8")[:100_000] for path in sorted(PUBLISHED.parent.glob("text/*/*.txt"))]
    assert ids_of(ours, real) == ids_of(theirs, real)


@pytest.fixture(scope="module", params=ENCODINGS)
def encoding(request) -> tuple[str, PreTrainedTokenizerFast]:
    return request.param, tokenizer_from_tiktoken(PUBLISHED / f"{request.param}.tiktoken", request.param)


@pytest.fixture(scope="module")
def theirs(encoding) -> "tiktoken.Encoding":
    """tiktoken's own definition of the encoding, and its patterns, with the ranks at hand."""
    name, _ = encoding
    load = openai_public.load_tiktoken_bpe
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # no copy in the folder for temporary files
        patch.setattr(
            openai_public, "load_tiktoken_bpe", lambda url, **checks: load(str(PUBLISHED / Path(url).name), **checks)
        )
        return tiktoken.Encoding(**openai_public.ENCODING_CONSTRUCTORS[name]())


@published
def test_ids_of_tiktoken(encoding, theirs):
    _, ours = encoding
    assert ids_of(ours) == theirs.encode_ordinary_batch(MIXED)
    assert set(ours.all_special_tokens) == theirs.special_tokens_set
    text = "x".join(sorted(theirs.special_tokens_set))
    assert ours(text)["input_ids"] == theirs.encode(text, allowed_special="all")
    assert ours(text, split_special_tokens=True)["input_ids"] == theirs.encode_ordinary(text)


@published
def test_ids_of_tiktoken_on_fuzzed_text(encoding, theirs):
    _, ours = encoding

    @given(text=any_text | st.text(st.characters(categories=["L", "N", "M", "Z", "P"]) | st.sampled_from("'sStTlL \n")))
    @settings(max_examples=1000, deadline=None, derandomize=True)
    def same(text):
        assert ours(text, split_special_tokens=True)["input_ids"] == theirs.encode_ordinary(text)

    same()


@published
def test_ids_of_tiktoken_on_real_text(encoding, theirs):
    """All of the texts, whole to tiktoken, in pieces to ours."""
    _, ours = encoding
    encoder = build_encoder(ours, "tokenizers")
    for path in sorted(PUBLISHED.parent.glob("text/*/*.txt")):
        text = path.read_bytes().decode()
        ids = np.concatenate([encoder.encode([piece])[0] for piece in cut(text)])
        assert np.array_equal(ids, theirs.encode_to_numpy(text, disallowed_special=())), path.name


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
