"""The commands, run as a user runs them, in this process; a new interpreter where it matters."""

import io
import json
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from native import save_native
from tiny import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_gpt import GPTConfig
from hf_gpt.accounting import account
from hf_gpt.cli import app as cli
from hf_gpt.cli import recipes
from hf_gpt.conversion import convert
from hf_gpt.data import TokenBlocks, open_tokens
from hf_gpt.tokenization import load_tokenizer, train_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 120
TINY = ["-s", "hidden_size=32", "-s", "num_hidden_layers=2", "-s", "num_attention_heads=2", "-s", "vocab_size=300"]
TINY += ["-s", "max_position_embeddings=32"]
FAST = ["--steps", "6", "--batch-size", "4", "--save-steps", "2"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line; its status, standard output and standard error."""

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["hf-gpt", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as stopped:
            status = stopped.code or 0
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([TEXT], 300)
    model = make_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    for part in (tokenizer, model):
        part.save_pretrained(folder)
    return folder


def refuses(result, message):
    status, _, errors = result
    assert status == 1
    last = errors.strip().splitlines()[-1]  # after progress bars, perhaps
    assert last.startswith("error: ")
    assert message in last
    return True


def test_demo(run, text, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = run("demo", "--text", text, "--out", out, "--steps", 3, "--prompt", "The quick")
    assert status == 0
    assert {"model.safetensors", "tokenizer.json", "README.md", "loss.png", "report.json", "modeling_gpt.py"} <= {
        path.name for path in out.iterdir()
    }
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "report.json").read_text())

    card = ModelCard.load(out / "README.md")
    assert {"library_name": "transformers", "pipeline_tag": "text-generation"}.items() <= card.data.to_dict().items()
    assert f"{report['parameters']:,}" in card.text
    assert f"{report['evaluation_loss']:.3f}" in card.text
    assert "text.txt" in card.text
    assert "{{" not in card.text

    assert "a new interpreter wrote" in printed
    assert "The quick" in printed
    lines = printed.strip().splitlines()[-3:]
    assert "AutoModelForCausalLM" in lines[0]
    AutoModelForCausalLM.from_pretrained(out)


def test_demo_needs_no_text(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "standard_library_documentation", lambda: [TEXT])
    status, _, _ = run("demo", "--out", tmp_path / "out", "--steps", 1)
    assert status == 0
    assert "documentation of the Python standard library" in (tmp_path / "out" / "README.md").read_text()


def test_demo_without_matplotlib(run, text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, printed, _ = run("demo", text, "--out", tmp_path / "out", "--steps", 1)
    assert status == 0
    assert "hf_gpt[plot]" in printed
    assert "loss.png" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty: expected text"), (None, "No such file"), ("too short", "expected at least one row")],
)
def test_demo_refuses_bad_text(run, tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_text(content)
    assert refuses(run("demo", "--text", path, "--out", tmp_path / "out"), message)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"text.txt"}


@pytest.mark.parametrize("command", ["demo", "train", "train-tokenizer"])
def test_an_output_folder_that_holds_something_is_left_alone(run, text, tmp_path, command):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    assert refuses(run(command, text, "--out", out), "exists and is not an empty folder")
    assert [path.name for path in out.iterdir()] == ["thesis.doc"]


def test_train_from_a_preset_and_from_its_result(run, text, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    status, printed, _ = run("train", text, "--out", first, "--model", "gpt2", *TINY, *FAST, "--prompt", "The")
    assert status == 0
    assert "held-out loss" in printed
    config = json.loads((first / "config.json").read_text())
    assert (config["position_embedding_type"], config["hidden_size"]) == ("learned", 32)
    assert len(AutoTokenizer.from_pretrained(first)) == config["vocab_size"]

    status, _, _ = run(
        "train", text, "--out", second, "--model", first, *FAST, "--gradient-accumulation-steps", 2, "--bf16",
        "--gradient-checkpointing", "--context", 16,
    )  # fmt: skip
    assert status == 0
    before, after = (json.loads((folder / "report.json").read_text()) for folder in (first, second))
    assert after["training_curve"][0][1] < before["training_curve"][0][1]
    assert "the weights in first" in (second / "README.md").read_text()


def test_train_from_a_configuration_and_a_tokenizer(run, text, saved, tmp_path):
    arguments = ("train", text, "--out", tmp_path / "out", "--model", saved / "config.json", "--tokenizer", saved)
    assert run(*arguments, *FAST)[0] == 0
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (saved / "tokenizer.json").read_text()


def test_train_resumes(run, text, tmp_path, monkeypatch):
    """A killed run ends like one that was not; so does one that failed after its training, which is not done again."""
    arguments = ("train", text, *TINY, *FAST, "--out")
    whole, cut, late = tmp_path / "whole", tmp_path / "cut", tmp_path / "late"
    assert run(*arguments, whole)[0] == 0

    def kill(self, args, state, *_, **__):
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer_callback.DefaultFlowCallback.on_step_begin", kill, raising=False)
        run(*arguments, cut)
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "draw_loss_curve", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*arguments, late)
    newest = tmp_path / "cut.partial" / "checkpoints" / "checkpoint-5"
    newest.mkdir()  # as a kill leaves a checkpoint that was being written
    (newest / "model.safetensors").write_bytes(b"half")
    for out in (cut, late):
        assert not out.exists()
        assert refuses(run(*arguments, out), "holds an unfinished run")
        assert refuses(run(*arguments, out, "--resume", "--seed", 7), "cannot resume: seed=7")
        assert run(*arguments, out, "--resume")[0] == 0
        assert not (out / "checkpoints").exists()
        for name in ("model.safetensors", "tokenizer.json"):
            assert (out / name).read_bytes() == (whole / name).read_bytes()
        reports = [json.loads((folder / "report.json").read_text()) for folder in (out, whole)]
        for report in reports:
            report.pop("seconds")
        assert reports[0] == reports[1]


def test_resuming_needs_the_same_text(run, text, tmp_path, monkeypatch):
    arguments = ("train", text, *TINY, *FAST, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "draw_loss_curve", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*arguments)
    text.write_text(TEXT.replace("fox", "cat"))
    assert refuses(run(*arguments, "--resume"), "cannot resume: sha256")
    assert (tmp_path / "out.partial").exists()
    other = ("train", text, *TINY, *FAST, "--out", tmp_path / "other", "--resume")
    assert refuses(run(*other), "no unfinished run to resume")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected one of --text, --dataset and --tokens"),
        (("--text", "TEXT", "--model", "gpt9"), "'gpt9' is no file, no folder and no preset"),
        (("--text", "TEXT", "-s", "hidden_size"), "--set hidden_size: expected FIELD=VALUE"),
        (("--text", "TEXT", "-s", "layers=2"), "--set layers=2: no such field"),
        (("--text", "TEXT", *TINY, "--prompt", ""), "the prompt is empty"),
        (("--text", "TEXT", "-s", "mlp_type=moe"), "mlp_type='moe': expected one of mlp, glu"),
        (("--text", "TEXT", "--model", "SAVED", "-s", "hidden_size=8"), "has weights already"),
        (("--text", "TEXT", *TINY, "--context", "64"), "context=64: expected at most max_position_embeddings=32"),
    ],
)
def test_train_refuses(run, text, saved, tmp_path, arguments, message):
    arguments = [{"TEXT": text, "SAVED": saved}.get(argument, argument) for argument in arguments]
    assert refuses(run("train", "--out", tmp_path / "out", *arguments), message)
    assert {entry.name for entry in tmp_path.iterdir()} == {"text.txt"}


def test_train_tokenizer(run, text, saved, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "The quick brown fox"}\n{}\n')
    options = ("--vocab-size", 280, "--special-token", "<a>", "--column", "body", "--against", saved)
    status, printed, _ = run("train-tokenizer", text, rows, "--out", tmp_path / "out", *options)
    assert status == 0
    assert "280 tokens" in printed
    assert f"skipped: {rows}, byte 32 has no 'body'" in printed
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == 280
    assert "<a>" in tokenizer.all_special_tokens
    table = [line for line in printed.splitlines() if " all " in line]
    sizes = [len(AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]) for folder in (tmp_path / "out", saved)]
    figures = [float(cell) for cell in table[0].replace("│", " ").split()[1:]]
    assert figures == pytest.approx([len(TEXT) / size for size in sizes], abs=0.02)


def test_train_tokenizer_without_gpt2_at_hand(run, text, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    status, printed, _ = run("train-tokenizer", text, "--out", tmp_path / "out", "--vocab-size", 280)
    assert status == 0
    assert "gpt2" not in printed


def test_train_tokenizer_of_many_files_that_are_empty(run, text, tmp_path):
    empty = [tmp_path / f"{number}.txt" for number in range(20)]
    for file in empty:
        file.touch()
    status, printed, _ = run("train-tokenizer", *empty, text, "--out", tmp_path / "out", "--vocab-size", 280)
    assert status == 0
    assert "skipped: 20 documents in all" in printed


def test_train_tokenizer_refuses(run, text, tmp_path):
    out = ("--out", tmp_path / "out")
    assert refuses(run("train-tokenizer", text, *out, "--vocab-size", 9), "vocab_size=9: expected")
    assert refuses(run("train-tokenizer", text, *out, "--special-token", "<|endoftext|>"), "expected each once")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    assert refuses(run("train-tokenizer", tmp_path / "bad.txt", *out), "bad.txt is not UTF-8 text: byte 0 is 0xff")
    assert refuses(run("train-tokenizer", tmp_path / "none.txt", *out), "none.txt")
    assert not (tmp_path / "out").exists()


def test_tokenize(run, text, saved, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    out = tmp_path / "tokens"
    options = ("--tokenizer", saved, "--out", out, "--threads", 2, "--shard-tokens", 100)
    status, printed, _ = run("tokenize", text, tmp_path / "bad.txt", *options)
    assert status == 0
    ids = [*AutoTokenizer.from_pretrained(saved)(TEXT)["input_ids"], 299]
    assert f"{len(ids):,} tokens of 1 documents" in " ".join(printed.split())
    assert "skipped: " in printed
    blocks = TokenBlocks(out, 8)
    assert [token for row in blocks for token in row["input_ids"].tolist()] == ids[: len(ids) // 8 * 8]


def test_train_on_tokens(run, text, saved, tmp_path):
    assert run("tokenize", text, "--tokenizer", saved, "--out", tmp_path / "tokens")[0] == 0
    options = (*TINY, "--steps", 3, "--context", 16, "--model", "gpt2")
    status, _, errors = run("train", "--tokens", tmp_path / "tokens", "--out", tmp_path / "a", *options)
    assert status == 0, errors
    assert run("train", "--text", text, "--tokenizer", saved, "--out", tmp_path / "b", *options)[0] == 0
    losses = [json.loads((tmp_path / run / "report.json").read_text())["evaluation_loss"] for run in "ab"]
    assert losses[0] == losses[1]
    assert AutoTokenizer.from_pretrained(tmp_path / "a").get_vocab() == AutoTokenizer.from_pretrained(saved).get_vocab()
    both = ("--tokens", tmp_path / "tokens", "--tokenizer", saved, "--out", tmp_path / "c")
    assert refuses(run("train", *both, *options), "--tokens have a tokenizer already")


def test_tokenize_with_the_tokenizer_that_ships(run, text, tmp_path):
    assert run("tokenize", text, "--out", tmp_path / "tokens")[0] == 0
    assert len(open_tokens(tmp_path / "tokens")) == len(load_tokenizer()(TEXT)["input_ids"]) + 1


def test_tokenize_refuses(run, text, saved, tmp_path):
    out = ("--out", tmp_path / "tokens")
    assert refuses(run("tokenize", text, *out, "--tokenizer", tmp_path), "is no folder with a tokenizer")
    assert refuses(run("tokenize", text, *out, "--engine", "quick"), "engine='quick': expected tiktoken or tokenizers")
    assert refuses(run("tokenize", tmp_path, *out), "is a folder: expected files")
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt"}


def test_generate_continues_prompts_files_and_standard_input(run, saved, text, tmp_path):
    options = ("--max_new_tokens", 5, "--do-sample", "false")
    status, one, _ = run("generate", saved, "--prompt", "The quick", *options)
    assert status == 0
    assert one.startswith("The quick")
    (tmp_path / "prompt.txt").write_text("The quick")
    assert run("generate", saved, "--file", tmp_path / "prompt.txt", *options)[1] == one
    assert run("generate", saved, *options, stdin="The quick")[1] == one
    status, several, _ = run("generate", saved, "--prompt", "The quick", "--prompt", "The lazy dog sleeps", *options)
    assert one.strip() in several
    assert "The lazy dog sleeps" in several


@pytest.mark.parametrize(
    "options",
    [
        ("--do_sample", "--temperature", "0.7", "--top_k", "5", "--top_p", "0.9", "--repetition_penalty=1.1"),
        ("--num_beams", "3", "--num_return_sequences", "2"),
        ("--do_sample", "--num_return_sequences", "3"),
        ("--cache_implementation", "static"),
    ],
)
def test_generate_takes_the_options_of_generate(run, saved, options):
    results = {
        run("generate", saved, "--prompt", "The", "--max_new_tokens", 4, "--seed", 1, *options)[:2] for _ in range(2)
    }
    assert len(results) == 1
    assert results.pop()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "The", "--temprature", "1"), "no option temprature: did you mean temperature?"),
        (("--prompt", "The", "--num_beams", "two"), "generate() refused its options"),
        (("--prompt", "The", "stray"), "unexpected argument 'stray'"),
        (("--prompt", ""), "a prompt is empty"),
        (("--file", "/nowhere"), "/nowhere"),
    ],
)
def test_generate_refuses(run, saved, arguments, message):
    assert refuses(run("generate", saved, *arguments), message)


def test_generate_needs_a_model(run):
    assert refuses(run("generate", "/nowhere", "--prompt", "The"), "/nowhere is no folder with a model")
    assert refuses(run("generate", "nothing", "--prompt", "The"), "nothing is no folder with a model")


def test_info(run, saved):
    status, printed, _ = run("info", "gpt3-175b")
    assert status == 0
    assert "174,604,259,328" in printed
    assert "banded 256" in printed
    assert (
        account(GPTConfig.from_pretrained(saved, num_hidden_layers=1)).parameters
        < account(GPTConfig.from_pretrained(saved)).parameters
    )
    assert run("info", saved, "-s", "num_hidden_layers=1")[0] == 0
    for target in (saved, saved / "config.json"):
        assert run("info", target)[0] == 0
    status, printed, _ = run("info", "gpt2", "-s", "num_hidden_layers=3", "--context", 10)
    assert "10 tokens" in printed
    assert refuses(run("info", "nothing"), "no preset")


def test_info_of_experts(run):
    status, printed, _ = run("info", "mixtral-8x7b")
    assert status == 0
    assert "46,702,792,704" in printed
    assert "12,879,925,248" in printed  # active
    assert "2/8 glu 14336" in printed


def test_convert_and_export(run, tmp_path):
    """There and back with a tokenizer, each way compared with the native class on random and real tokens."""
    native, ours, back = tmp_path / "native", tmp_path / "ours", tmp_path / "back"
    model = save_native(native, "gpt2", vocab_size=300, tie_word_embeddings=True)
    train_tokenizer([TEXT], 300).save_pretrained(native)
    for command, family in (
        (("convert", native, ours), "gpt2"),
        (("export", ours, back, "--to", "gpt2", "--max-shard-size", "10KB"), "gpt2"),
    ):
        status, printed, _ = run(*command, "--verify")
        assert status == 0
        assert family in printed
        for tokens in ("random tokens", "real tokens"):
            line = next(line for line in printed.splitlines() if line.startswith(tokens))
            assert float(line.split()[-5]) < 1e-5
    assert len(list(back.glob("*.safetensors"))) > 1
    prompt = AutoTokenizer.from_pretrained(back)("The quick", return_tensors="pt")
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for folder in (ours, back):
        written = AutoModelForCausalLM.from_pretrained(folder).generate(**prompt, **greedy)
        assert written.tolist() == model.generate(**prompt, **greedy).tolist()


def test_verification_fails_where_both_sides_differ(run, tmp_path, monkeypatch):
    save_native(tmp_path / "native", "gpt2")
    save_native(tmp_path / "other", "gpt2", initializer_range=0.5, activation_function="relu")
    monkeypatch.setattr(cli, "convert", lambda *_, **__: convert(tmp_path / "other", tmp_path / "ours"))
    assert refuses(run("convert", tmp_path / "native", tmp_path / "ours", "--verify"), "do not compute the same")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "/nowhere", "ours"], "/nowhere is no folder"),
        (["convert", "{saved}", "ours"], "is a model of hf_gpt already"),
        (["export", "{saved}", "back", "--to", "gpt5"], "no family 'gpt5'"),
        (["export", "{saved}", "back", "--to", "gpt2"], "position_embedding_type='rope' cannot be expressed by gpt2"),
        (["export", "{saved}", "{saved}", "--to", "gpt_neox"], "choose another output folder"),
    ],
)
def test_convert_and_export_refuse(run, saved, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert refuses(run(*(argument.format(saved=saved) for argument in arguments)), message)
    assert not list(tmp_path.iterdir())


def test_upcycle(run, saved, tmp_path):
    """The same function; it trains on, and info tells what it costs."""
    status, printed, _ = run("upcycle", saved, tmp_path / "out", "--num-experts", 4, "-s", "router_aux_loss_coef=0.05")
    assert status == 0
    model, dense = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "out", saved))
    assert f"{model.num_parameters():,} parameters" in printed
    assert model.config.router_aux_loss_coef == 0.05
    ids = torch.arange(10)[None]
    assert torch.allclose(model(ids).logits, dense(ids).logits, atol=1e-4)
    AutoTokenizer.from_pretrained(tmp_path / "out")
    status, printed, _ = run("info", tmp_path / "out")
    assert status == 0
    assert "2/4 mlp" in printed
    some = run("upcycle", saved, tmp_path / "some", "--layer", 0, "--layer=-1", "--granularity", 2, "--noise", 0.1)
    assert some[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "out"], "/nowhere is no folder"),
        (["{saved}", "{saved}"], "choose another output folder"),
        (
            ["{saved}", "out", "--num-experts", "2", "--num-experts-per-tok", "4"],
            "expected at most num_local_experts=2",
        ),
        (["{saved}", "out", "--granularity", "3"], "granularity=3 does not divide num_experts=8"),
        (["{saved}", "out", "-s", "hidden_size=7"], "hidden_size is no field of the routing"),
    ],
)
def test_upcycle_refuses(run, saved, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert refuses(run("upcycle", *(argument.format(saved=saved) for argument in arguments)), message)
    assert not list(tmp_path.iterdir())


def test_quantize(run, saved, tmp_path):
    """What it writes generates, and is not quantised again."""
    sizes = []
    for scheme in ("int8", "int4"):
        out = tmp_path / scheme
        status, printed, _ = run("quantize", saved, out, "--to", scheme)
        assert status == 0
        assert f"{scheme}, " in printed
        sizes.append((out / "model.safetensors").stat().st_size)
        assert run("generate", out, "--prompt", "The quick", "--max_new_tokens", 3)[0] == 0
        assert refuses(run("quantize", out, tmp_path / "again"), "quantised already")
    assert sizes == sorted(sizes, reverse=True)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "out"], "/nowhere is no folder"),
        (["{saved}", "{saved}"], "choose another output folder"),
        (["{saved}", "out", "--to", "int3"], "expected one of int8, int4"),
        (["{saved}", "out", "--to", "int4", "--group-size", "128"], "group_size=128 does not divide"),
    ],
)
def test_quantize_refuses(run, saved, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert refuses(run("quantize", *(argument.format(saved=saved) for argument in arguments)), message)
    assert not list(tmp_path.iterdir())


def test_help_names_every_command(run):
    status, printed, _ = run("--help")
    assert status == 0
    for command in ("demo", "train", "train-tokenizer", "generate", "convert", "export", "upcycle", "quantize", "info"):
        assert command in printed
        assert run(command, "--help")[0] == 0
