"""Small tokenizers, and texts in many scripts, for tests of tokenizers."""

from pathlib import Path

from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from hf_gpt.tokenization import train_tokenizer
from hf_gpt.tokenization.split_patterns import SPLIT_PATTERNS

TEXTS = [
    "The cat sat on the mat. It's 12345 o'clock, we'll SEE!\n\n\tdef f(x):\n        return x ** 2\n",
    "Zwölf Boxkämpfer jagen Viktor über den Sylter Deich. 红楼梦 第一回 🐈‍⬛\r\n",
] * 10

TOKENIZERS = {pattern: train_tokenizer(TEXTS, 400, pattern) for pattern in SPLIT_PATTERNS}

MIXED_TEXTS = [
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

ANY_TEXT = (
    st.text() | st.binary().map(lambda data: data.decode("latin-1")) | st.text(st.sampled_from("a 1'\n\x00<|红é🐈"))
)


def ids_of(tokenizer, texts: list[str] = MIXED_TEXTS) -> list[list[int]]:
    return tokenizer(texts)["input_ids"]


def write_vocab_and_merges(backend: Tokenizer, folder: Path) -> tuple[Path, Path]:
    """Writes vocab.json and merges.txt, whose first line is `#version`."""
    vocab, merges = map(Path, backend.model.save(str(folder)))
    return vocab, merges


def write_saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)


def write_hugging_face(tokenizer, folder):
    write_vocab_and_merges(tokenizer.backend_tokenizer, folder)


def write_openai(tokenizer, folder):
    vocab, merges = write_vocab_and_merges(tokenizer.backend_tokenizer, folder)
    vocab.rename(folder / "encoder.json")
    merges.rename(folder / "vocab.bpe")


def read_pairs(merges: Path) -> list[tuple[str, str]]:
    """Reads the merges below the `#version` line, for transformers' own tokenizer classes."""
    return [tuple(line.split(" ")) for line in merges.read_text("utf-8").rstrip("\n").split("\n")[1:]]


def write_word_level_model(folder: Path) -> tuple[Path, Path]:
    """Writes vocab.json and merges.txt of a BPE like GPT-1's: lowercased words, whose last token ends in `</w>`."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return write_vocab_and_merges(tokenizer, folder)
