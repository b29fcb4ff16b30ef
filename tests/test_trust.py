"""What is taken from a checkpoint of unknown origin: each command, with bait in every file that can name code."""

import ast
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from bait import MARK, TEMPLATES, Pickled, edit, make_working_folder, set_adapter_bait, set_bait
from command_line import TEXT, Result, assert_error
from jinja2.exceptions import SecurityError
from native import save_native
from stock_trainer import killed_at
from tiny import make_model
from transformers import AutoTokenizer

from hf_gpt import cli
from hf_gpt.data.checksums import checksums_of
from hf_gpt.data.token_index import INDEX, read_index
from hf_gpt.model.class_names import auto_map
from hf_gpt.recipes import generate_in_new_interpreter
from hf_gpt.tokenization import train_tokenizer
from hf_gpt.training.runs import MANIFEST
from hf_gpt.trust import check_links, check_own_code, copy_settings

ROOT = Path(__file__).parents[1]
MAY_CONTAIN_BAIT = {"chat_template.jinja"}  # rendered in a sandbox


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A folder with `ours`, a model of hf_gpt, `native`, its GPT-2, and `text.txt`."""
    folder = tmp_path_factory.mktemp("clean")
    (folder / "text.txt").write_text(TEXT)
    tokenizer = train_tokenizer([TEXT], 300)
    save_native(folder / "native", "gpt2", vocab_size=300, n_positions=32)
    make_model(vocab_size=300, max_position_embeddings=32).save_pretrained(folder / "ours")
    for name in ("native", "ours"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def flag(tmp_path) -> Path:
    """The file that bait writes."""
    return tmp_path / "flag"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, flag):
    """Runs a command line in this process, in a working folder with bait, and answers yes to all questions."""
    monkeypatch.chdir(make_working_folder(tmp_path / "working", flag))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments) -> Result:
        monkeypatch.setattr(sys, "argv", ["hf-gpt", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 10))
        try:
            cli.main()
            status = 0
        except SystemExit as exit:
            status = exit.code or 0
        assert sys.stdin.read() == "y\n" * 10, "standard input was read"
        return Result(status, *capsys.readouterr())

    return run


def named_code(stored) -> list:
    """Returns the values of all entries that name code, at any depth of JSON values."""
    if isinstance(stored, list):
        return [found for value in stored for found in named_code(value)]
    if not isinstance(stored, dict):
        return []
    here = [stored[name] for name in ("auto_map", "custom_pipelines", "custom_generate") if name in stored]
    return here + [found for value in stored.values() for found in named_code(value)]


def assert_no_bait(out: Path) -> None:
    """The files of a folder contain and name no code but that of hf_gpt."""
    files = [file for file in out.rglob("*") if file.is_file()]
    assert files
    check_own_code(out)
    for file in files:
        assert file.name in MAY_CONTAIN_BAIT or MARK.encode() not in file.read_bytes().lower(), file
        if file.suffix == ".json":
            assert all(entry == auto_map() for entry in named_code(json.loads(file.read_text()))), file


TRAIN = ("train", "TEXT", "--out", "OUT", "--steps", 1, "--batch-size", 1, "--context", 16, "--model")
# Command lines, after the kind of checkpoint that they read: SOURCE, which has bait. They write OUT.
WRITING = {
    "convert": ("native", "convert", "SOURCE", "OUT", "--verify"),
    "export": ("ours", "export", "SOURCE", "OUT", "--to", "gpt_neox", "--verify"),
    "upcycle": ("ours", "upcycle", "SOURCE", "OUT", "--num-experts", 2),
    "quantize": ("ours", "quantize", "SOURCE", "OUT"),
    "train a model": ("ours", *TRAIN, "SOURCE"),
    "train a configuration": ("ours", *TRAIN, "SOURCE/config.json"),
    "train with a tokenizer": ("ours", *TRAIN, "SOURCE/config.json", "--tokenizer", "SOURCE"),
    "tokenize": ("ours", "tokenize", "TEXT", "--out", "OUT", "--tokenizer", "SOURCE"),
    "train-tokenizer": ("ours", "train-tokenizer", "TEXT", "--out", "OUT", "--vocab-size", 300, "--against", "SOURCE"),
}
RESUMED = (*TRAIN, "SOURCE", "--steps", 4, "--save-steps", 2)
READING = {
    "info": ("ours", "info", "SOURCE"),
    "generate": ("ours", "generate", "SOURCE", "--prompt", "The", "--max_new_tokens", 2),
    "generate, native": ("native", "generate", "SOURCE", "--prompt", "The", "--max_new_tokens", 2),
}


def fill(command: tuple, source: Path, clean: Path, out: Path) -> list[str]:
    """Returns a command line with its paths."""
    paths = {"SOURCE": source, "TEXT": clean / "text.txt", "OUT": out}
    filled = []
    for argument in map(str, command):
        name, slash, rest = argument.partition("/")
        filled.append(f"{paths[name]}{slash}{rest}" if name in paths else argument)
    return filled


@pytest.fixture
def source(clean, tmp_path, flag):
    """Returns a copy of a checkpoint, with bait."""

    def copy(kind: str) -> Path:
        folder = shutil.copytree(clean / kind, tmp_path / "source")
        set_bait(folder, flag)
        return folder

    return copy


@pytest.mark.parametrize("name", [*WRITING, *READING])
def test_no_command_runs_or_hands_on_code(name, run, source, clean, tmp_path, flag):
    kind, *command = (WRITING | READING)[name]
    result = run(*fill(command, source(kind), clean, tmp_path / "out"))
    assert not flag.exists()
    assert result.status == 0, result.errors
    if name in WRITING:
        assert_no_bait(tmp_path / "out")


def test_train_on_tokens(run, clean, tmp_path, flag):
    assert run(*fill(WRITING["tokenize"][1:], clean / "ours", clean, tmp_path / "source"))[0] == 0
    set_bait(tmp_path / "source", flag)
    index = read_index(tmp_path / "source")
    index.checksums |= {name: checksums_of(tmp_path / "source" / name) for name in index.checksums}
    (tmp_path / "source" / INDEX).write_text(index.to_json())
    options = ("--steps", 1, "--batch-size", 1, "--context", 16)
    result = run(
        "train", "--tokens", tmp_path / "source", "--out", tmp_path / "out", "--model", clean / "ours", *options
    )
    assert not flag.exists()
    assert result.status == 0, result.errors
    assert_no_bait(tmp_path / "out")


def test_a_sample_in_a_new_interpreter(run, source, clean, tmp_path, flag):
    """It runs the code that has just been saved, and imports nothing from the working folder."""
    command = fill(WRITING["train a model"][1:], source("ours"), clean, tmp_path / "out")
    result = run(*command, "--prompt", "The quick")
    assert not flag.exists()
    assert result.status == 0, result.errors
    assert "generated in a new interpreter" in result.output


@pytest.mark.parametrize("name", ["convert", "export", "quantize", "train a model", "generate"])
def test_no_command_runs_code_that_an_adapter_names(name, run, clean, tmp_path, flag):
    kind, *command = (WRITING | READING)[name]
    folder = shutil.copytree(clean / kind, tmp_path / "source")
    set_adapter_bait(folder, flag)
    result = run(*fill(command, folder, clean, tmp_path / "out"))
    assert not flag.exists()
    assert result.status == 0 or result.errors.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("entry", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("name", ["convert", "export", "generate", "generate, native", "train a model", "quantize"])
def test_no_configuration_chooses_a_kernel(name, entry, run, clean, tmp_path):
    kind, *command = (WRITING | READING)[name]
    folder = shutil.copytree(clean / kind, tmp_path / "source")
    edit(folder / "config.json", {entry: f"someone/{MARK}-kernel"})
    result = run(*fill(command, folder, clean, tmp_path / "out"))
    assert_error(result, f"{entry}='someone/{MARK}-kernel' in a saved configuration names code in a repository")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("name", ["AutoModel", "AutoTokenizer", "AutoModelForCausalLM", "pipeline", "Trainer"])
def test_a_tokenizer_class_that_is_none(name, file, run, clean, tmp_path, flag):
    """AutoTokenizer loads what transformers has of this name; AutoModel would ask whether to run the code."""
    folder = tmp_path / "source"
    train_tokenizer([TEXT], 300).save_pretrained(folder)
    (folder / "evil.py").write_text("")
    set_bait(folder, flag)
    fields = {"auto_map": {name: f"{MARK}.{MARK.title()}"}, "model_type": MARK, "tokenizer_class": name}
    (folder / file).write_text(json.dumps(fields))
    result = run(*fill(WRITING["tokenize"][1:], folder, clean, tmp_path / "out"))
    assert not flag.exists()
    assert_error(result, f"tokenizer_class='{name}' is not a tokenizer")


def test_a_tokenizer_that_is_code(run, source, clean, tmp_path, flag):
    """Its tokenizer.json is read; without one the error names the file and the entry."""
    folder = source("ours")
    edit(folder / "tokenizer_config.json", {"tokenizer_class": MARK.title()})
    command = fill(WRITING["tokenize"][1:], folder, clean, tmp_path / "out")
    assert run(*command).status == 0
    assert_no_bait(tmp_path / "out")
    expected = AutoTokenizer.from_pretrained(clean / "ours", trust_remote_code=False)("The fox")["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)("The fox")["input_ids"] == expected
    shutil.rmtree(tmp_path / "out")
    (folder / "tokenizer.json").unlink()
    result = run(*command)
    assert_error(result, "tokenizer_config.json names code, auto_map={'AutoConfig'")
    assert not flag.exists()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("entry", ["vocab", "merges", "gguf_file"])
def test_settings_that_are_the_path_of_a_file(entry, file, run, clean, tmp_path):
    """BertTokenizer reads each line of any file as a token, which is saved."""
    (tmp_path / "private").write_text("[UNK]\nsecret\n")
    (tmp_path / "source").mkdir()
    edit(tmp_path / "source" / "config.json", {"model_type": "bert"})
    edit(tmp_path / "source" / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "eos_token": "[UNK]"})
    edit(tmp_path / "source" / file, {entry: str(tmp_path / "private")})
    result = run(*fill(WRITING["tokenize"][1:], tmp_path / "source", clean, tmp_path / "out"))
    assert_error(result, f"{entry}='{tmp_path}/private' in {file} is a path: expected no such entry")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "a/b"])
def test_the_name_of_a_chat_template_is_no_path(name, run, clean, tmp_path):
    """transformers writes each of several templates to a file of its name."""
    folder = tmp_path / "a" / "source"
    train_tokenizer([TEXT], 300).save_pretrained(folder)
    templates = [{"name": "default", "template": "kept"}, {"name": name, "template": MARK}]
    edit(folder / "tokenizer_config.json", {"chat_template": templates})
    run(*fill(WRITING["tokenize"][1:], folder, clean, tmp_path / "a" / "out"))
    assert {file.name for file in tmp_path.iterdir()} == {"a", "working"}
    assert {file.name for file in (tmp_path / "a").iterdir()} <= {"source", "out"}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_stays_in_its_sandbox(template, clean, flag):
    tokenizer = AutoTokenizer.from_pretrained(clean / "ours", trust_remote_code=False)
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template([{"role": "user"}], chat_template=template.format(flag=flag), tokenize=False)
    assert not flag.exists()


STATE = ("rng_state.pth", "optimizer.pt", "scheduler.pt", "training_args.bin", "pytorch_model.bin")


@pytest.fixture(scope="module")
def interrupted(clean, tmp_path_factory) -> Path:
    """A folder with the interrupted run `out.partial` of `RESUMED`."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch, killed_at(3), pytest.raises(SystemExit):
        patch.setattr(sys, "argv", ["hf-gpt", *fill(RESUMED, clean / "ours", clean, folder / "out")])
        cli.main()
    return folder


@pytest.mark.parametrize("name", STATE)
def test_the_state_of_an_interrupted_run_is_no_code(name, run, interrupted, clean, tmp_path, flag):
    shutil.copytree(interrupted / "out.partial", tmp_path / "out.partial")
    (checkpoint,) = tmp_path.glob("out.partial/**/checkpoint-2")
    torch.save(Pickled(flag), checkpoint / name)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    (checkpoint / MANIFEST).unlink()  # as if whoever made the run had recorded these files
    manifest = {file.name: checksums_of(file) for file in checkpoint.iterdir()}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    result = run(*fill(RESUMED, clean / "ours", clean, tmp_path / "out"), "--resume")
    assert not flag.exists()
    assert result.status == (0 if name == "training_args.bin" else 1), result.errors  # it is not read
    errors = [line for line in result.errors.splitlines() if "error: " in line]  # some after a progress bar
    assert all("checkpoint-2 is not resumed: a pickle in it contains more than" in line for line in errors)
    assert len(errors) == result.status


@pytest.mark.parametrize("file", ["evil.py", "modeling_gpt.py", "custom_generate/generate.py"])
def test_foreign_code_in_a_saved_model_is_not_run(file, clean, tmp_path, flag):
    """As in an interrupted run that somebody else has made."""
    folder = shutil.copytree(clean / "ours", tmp_path / "saved")
    check_own_code(folder)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(f"open({str(flag)!r}, 'w')")
    with pytest.raises(ValueError, match=rf"{file} is not a file of this version of hf_gpt: its code is not run"):
        generate_in_new_interpreter(folder, "The")
    assert not flag.exists()


LINKED = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja"),
    *("config.json", "generation_config.json", "model.safetensors.index.json", "modeling_gpt.py"),
)


@pytest.mark.parametrize("name", ["convert", "export", "upcycle", "quantize", "train a model", "tokenize", "generate"])
@pytest.mark.parametrize("file", LINKED)
def test_a_link_to_a_file_outside(file, name, run, clean, tmp_path):
    kind, *command = (WRITING | READING)[name]
    private = tmp_path / "private"
    private.write_text("secret")
    folder = shutil.copytree(clean / kind, tmp_path / "source")
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(private)
    result = run(*fill(command, folder, clean, tmp_path / "out"))
    assert_error(result, f"{file} is a link to {private}: expected a file of its folder")
    assert not list(tmp_path.glob("out*"))


def test_links_within_a_folder_and_to_blobs_of_the_hub_cache(clean, tmp_path):
    snapshot = shutil.copytree(clean / "ours", tmp_path / "models--me--gpt" / "snapshots" / "abc")
    for number, (file, blobs) in enumerate({"config.json": "../../blobs", "tokenizer.json": "../../../blobs"}.items()):
        blob = snapshot / blobs / str(number)
        blob.parent.mkdir()
        (snapshot / file).rename(blob)
        (snapshot / file).symlink_to(f"{blobs}/{number}")
    (snapshot / "again.json").symlink_to("config.json")
    check_links(snapshot)
    (tmp_path / "outside.json").write_text("{}")
    (snapshot / "outside.json").symlink_to("../../../outside.json")
    with pytest.raises(ValueError, match=r"outside\.json is a link"):
        check_links(snapshot)


def test_weights_may_be_links(clean, tmp_path):
    folder = shutil.copytree(clean / "ours", tmp_path / "source")
    (folder / "model.safetensors").rename(tmp_path / "weights")
    (folder / "model.safetensors").symlink_to(tmp_path / "weights")
    check_links(folder)


def test_settings_are_copied_unchanged_or_without_code(tmp_path):
    text = '{"temperature":   0.5, "name": "é"}'
    (tmp_path / "a.json").write_text(text, "utf-8")
    copy_settings(tmp_path / "a.json", tmp_path / "b.json")
    assert (tmp_path / "b.json").read_text("utf-8") == text
    edit(tmp_path / "a.json", {"auto_map": {}, "inner": [{"custom_generate": 1, "kept": 2}]})
    copy_settings(tmp_path / "a.json", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text("utf-8")) == json.loads(text) | {"inner": [{"kept": 2}]}


def test_every_auto_class_is_told_not_to_run_code():
    """Without the argument, transformers asks on standard input."""
    folders = ("hf_gpt", "conversion", "model_cards", "examples", "docs", "benchmarks")
    calls = 0
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called.startswith(("AutoModel", "AutoTokenizer", "AutoConfig")) and called.endswith(
                (".from_pretrained", ".from_config")
            ):
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert arguments.get("trust_remote_code") == "False", f"{path}, line {node.lineno}"
                calls += 1
    assert calls
