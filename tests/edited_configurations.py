"""Edited config.json files: each is refused by an error that names a field, a tensor or the file, or its model works.

python tests/edited_configurations.py 0 3000 --out cases.jsonl
"""

import contextlib
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fuzzing import JSON_VALUES, Draw, Fault, draw_value, run_cases
from native import save_native
from native_families import NATIVE
from tiny import VARIANTS, make_model, random_ids
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from working import EXTRAS, MAX_WEIGHTS, assert_close, assert_works, count_weights, load, logits

from hf_gpt import GPTConfig
from hf_gpt.cli import main
from hf_gpt.conversion import convert
from hf_gpt.json_files import read_json

REFUSALS = (OSError, ValueError, RuntimeError)  # that a command prints as one line
MOST_CHARACTERS = 1500  # of a message
MODEL_TYPES = ("gpt2", "llama", "bert", "t5", "hf_gpt", "HF_GPT", "", None, 5, ["hf_gpt"], *NATIVE)
UNKNOWN = ("foo", "", "self", "cls", "a.b", "__class__", "_private", "to_dict", "n_embd", "rope_theta", "rope_scaling")


UNCHECKED = "auto_map"  # AutoConfig of transformers reads it before any class of ours, and fails if it is no dict


def first_key(value: str) -> Callable[[str], str]:
    """Returns a function that inserts a first key into the text of an object."""
    return lambda text: text.replace("{", "{" + value + ",", 1)


# Files that are not the JSON of an object, or repeat a key.
SPOILED = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: f"[{text}]",
    "a number": lambda text: "5",
    "null": lambda text: "null",
    "no JSON": lambda text: "model_type: hf_gpt",
    "a comment": lambda text: "// a comment\n" + text,
    "too deep": lambda text: "[" * 100_000,
    "a field that is too deep": first_key('"foo": ' + "[" * 100_000 + "]" * 100_000),
    "many digits": first_key('"foo": ' + "9" * 5000),
    "a key twice": first_key('"model_type": "gpt2"'),
    "no UTF-8": lambda text: "\udcff\udcfe" + text,
    "a byte order mark": lambda text: "\ufeff" + text,
}


class Edit(NamedTuple):
    """A config.json beside the weights of another one."""

    source: str
    """One of those that `write_sources` returns."""
    text: str
    names: list[str]
    """What was edited."""
    extra: str

    @property
    def is_native(self) -> bool:
        return self.source in NATIVE


def write_sources(folder: Path) -> dict[str, Path]:
    """Writes a tiny model of each variant and of each native family, and returns their folders."""
    for variant in VARIANTS:
        make_model(variant).save_pretrained(folder / variant)
    for family in NATIVE:
        save_native(folder / family, family)
    return {name: folder / name for name in (*VARIANTS, *NATIVE)}


def delete(draw: Draw, stored: dict[str, Any], name: str) -> str:
    del stored[name]
    return name


def replace(draw: Draw, stored: dict[str, Any], name: str) -> str:
    stored[name] = draw_value(draw, stored[name])
    return name


def swap(draw: Draw, stored: dict[str, Any], name: str) -> str:
    other = draw.choice([name for name in stored if name != UNCHECKED])
    stored[name], stored[other] = stored[other], stored[name]
    return name


def nest(draw: Draw, stored: dict[str, Any], name: str) -> str:
    stored[name] = draw.choice([[stored[name]], {name: stored[name]}, {"text_config": stored.copy()}])
    return name


def add_unknown(draw: Draw, stored: dict[str, Any], name: str) -> str:
    name = draw.choice(UNKNOWN)
    stored[name] = draw.choice(JSON_VALUES)
    return name


def change_type(draw: Draw, stored: dict[str, Any], name: str) -> str:
    stored["model_type"] = draw.choice(MODEL_TYPES)
    return "model_type"


def edit_inside(draw: Draw, stored: dict[str, Any], name: str) -> str:
    dicts = [key for key, value in stored.items() if isinstance(value, dict) and value]
    if not dicts:
        return replace(draw, stored, name)
    name = draw.choice(dicts)
    stored[name] = dict(stored[name])
    edit_once(draw, stored[name])
    return name


EDITS = {delete: 2, replace: 6, swap: 1, nest: 1, add_unknown: 1, change_type: 0.5, edit_inside: 2}  # and how often


def edit_once(draw: Draw, stored: dict[str, Any]) -> str:
    """Edits an object, and returns the name of what was edited."""
    (edit,) = draw.choices(list(EDITS), list(EDITS.values()))
    return edit(draw, stored, draw.choice([name for name in stored if name != UNCHECKED]))


def take_from_another(draw: Draw, stored: dict[str, Any], source: str, sources: dict[str, Path]) -> str:
    """Sets a field to the value that another model has."""
    models = VARIANTS if source in VARIANTS else [source]
    other = json.loads((sources[draw.choice(list(models))] / "config.json").read_text())
    name = draw.choice(list(other))
    stored[name] = other[name] if source in VARIANTS else draw_value(draw, other[name])
    return name


def draw_edit(number: int, sources: dict[str, Path]) -> Edit:
    draw = Draw(f"edit {number}")
    source, extra = draw.choice(list(draw.choice([VARIANTS, NATIVE]))), draw.choice(list(EXTRAS))
    text = (sources[source] / "config.json").read_text()
    if draw.random() < 0.06:
        name = draw.choice(list(SPOILED))
        return Edit(source, SPOILED[name](text), [name], extra)
    stored = json.loads(text)
    if draw.random() < 0.3:
        names = [take_from_another(draw, stored, source, sources)]
    else:
        names = [edit_once(draw, stored) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
    return Edit(source, json.dumps(stored, indent=2), names, extra)


def check_edit(edit: Edit, original: Path, folder: Path) -> str:
    """Returns what became of a file: `refused`, `works`, or `described` for a model that is too large to build.

    Args:
        original: the folder with the weights.
        folder: an empty folder.

    Raises:
        Fault: anything else.
    """
    src = folder / "src"
    src.mkdir()
    for file in original.glob("*.safetensors"):
        shutil.copyfile(file, src / file.name)
    (src / "config.json").write_bytes(edit.text.encode("utf-8", "surrogateescape"))
    described = attempt(lambda: describe(src), edit, src)
    if edit.is_native:
        return check_native(edit, src, folder)
    if (config := attempt(lambda: GPTConfig.from_pretrained(src), edit, src)) is None:
        return "refused"
    if AutoConfig.from_pretrained(src, trust_remote_code=False).to_json_string() != config.to_json_string():
        raise Fault("AutoConfig reads another configuration")
    if described is None and attempt(lambda: read_json(src / "config.json"), edit, src):
        raise Fault("hf-gpt info refuses what from_pretrained reads")
    if count_weights(config) > MAX_WEIGHTS:
        return "described"
    model = attempt(lambda: load(src, trust_remote_code=False), edit, src)
    return "refused" if model is None else works(model, edit, folder)


def check_native(edit: Edit, src: Path, folder: Path) -> str:
    if attempt(lambda: convert(src, folder / "ours"), edit, src) is None:
        if len(list(folder.iterdir())) > 1:
            raise Fault("a conversion that raised has left an output")
        return "refused"
    model = load(folder / "ours")
    compare_with_native(model, src)
    return works(model, edit, folder)


def works(model: PreTrainedModel, edit: Edit, folder: Path) -> str:
    assert_works(model, folder / "saved", edit.extra)
    return "works"


@torch.no_grad()
def compare_with_native(model: PreTrainedModel, src: Path) -> None:
    """The logits are those of the native class, unless it raises: it is more particular about some types."""
    ids = random_ids(1, 6, low=0, high=min(50, model.config.vocab_size))
    try:
        native = AutoModelForCausalLM.from_pretrained(src, dtype=torch.float32, trust_remote_code=False)
        native.set_experts_implementation("eager")
        expected = logits(native.eval(), ids)
    except Exception:
        return
    assert_close(logits(model.eval(), ids), expected)


def describe(src: Path) -> str:
    """Returns what `hf-gpt info` prints.

    Raises:
        ValueError: the exit status is 1. The message is the one line that is printed.
    """
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["hf-gpt", "info", str(src)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        if end.code:
            assert end.code == 1
            raise ValueError(err.getvalue()) from None
    finally:
        sys.argv = argv
    return out.getvalue()


def attempt(act: Callable[[], Any], edit: Edit, src: Path) -> Any:
    """Returns the result of a function, or None if it raises a clear error."""
    try:
        return act()
    except REFUSALS as error:
        check_message(" ".join(str(error).split()), edit, src)
        return None


def check_message(message: str, edit: Edit, src: Path) -> None:
    """A field, a tensor or the file is named. transformers names the tensors of other shapes in a report."""
    named = re.search(r"\b\w+=|\w+\.(\w+\.\w+|weight|bias)|above report", message) or str(src) in message
    names = {*edit.names, *GPTConfig.__dataclass_fields__, *re.findall(r'"(\w+)":', edit.text)} - {""}
    if not (named or any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in names)):
        raise Fault(f"nothing is named: {message[:MOST_CHARACTERS]}")
    if len(message) > MOST_CHARACTERS:
        raise Fault(f"a message of {len(message)} characters: {message[:MOST_CHARACTERS]}")


def prepare(number: int, sources: dict[str, Path]) -> tuple[str, Callable[[], str]]:
    edit = draw_edit(number, sources)

    def run() -> str:
        with tempfile.TemporaryDirectory() as folder:
            return check_edit(edit, sources[edit.source], Path(folder))

    return f"{edit.source}: {edit.names}", run


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as base:
        written = write_sources(Path(base))
        run_cases(lambda number: prepare(number, written))
