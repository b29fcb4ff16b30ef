"""Runs a saved checkpoint in an interpreter in which hf_gpt cannot be imported."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import torch

WITHOUT_HF_GPT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_gpt":
            raise ModuleNotFoundError("No module named 'hf_gpt'")

sys.meta_path.insert(0, Absent())
import json, os, re, torch, transformers
from pathlib import Path
"""

# Hides the operations that the backends.py of the checkpoint looks for. Those of torch._C and torch.nn remain, because
# torch itself calls them.
WITHOUT_PRIVATE_OPERATIONS = """
import torchao.quantization, transformers.modeling_utils  # need some of them while they are imported

source = next(Path(sys.argv[1]).rglob("backends.py")).read_text()
hidden = {tuple(path.split(".")) for path in re.findall(r'find_operation\\(\\s*"([^"]+)"', source)}

class Namespace(type(torch.ops.aten)):
    def __getattr__(self, name):
        if any(path[:3] == ("ops", self.name, name) for path in hidden):
            raise AttributeError(name)
        return super().__getattr__(name)

for first, *others in hidden:
    if first == "ops":
        namespace = getattr(torch.ops, others[0])
        namespace.__class__ = Namespace
        vars(namespace).pop(others[1], None)
    elif first not in ("_C", "nn"):
        delattr(torch, first)
if parallel := sys.modules.get("transformers.distributed.parallel_utils"):  # not in 5.17
    del parallel.ALL_PARALLEL_STYLES
"""

FIRST_OUTPUTS = """
folder, again, inputs = sys.argv[1], sys.argv[2], torch.tensor(json.loads(sys.argv[3]))
printed = {}
for name in sys.argv[4:]:
    auto = getattr(transformers, name)
    own = f"{folder}/{name}"  # one checkpoint for each class, or one for all
    model = auto.from_pretrained(own if os.path.isdir(own) else folder, trust_remote_code=True).eval()
    assert "hf_gpt" not in sys.modules and model.__module__.startswith("transformers_modules")
    with torch.no_grad():
        rows = inputs[:, None] if "MultipleChoice" in name else inputs
        if model.can_generate():
            printed[name] = model.generate(rows, max_new_tokens=6, do_sample=False, pad_token_id=0).tolist()
        else:
            printed[name] = model(rows, attention_mask=torch.ones_like(rows))[0].tolist()
    model.save_pretrained(f"{again}/{name}")
print(json.dumps(printed))
"""

STEPS = """
results, available = {}, set()
for folder in Path(sys.argv[1]).iterdir():
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert "hf_gpt" not in sys.modules and model.__module__.startswith("transformers_modules")
    results[folder.name] = training_step(model, torch.tensor(json.loads(sys.argv[3])))
    backends = dict(vars(sys.modules[model.__module__.rpartition(".")[0] + ".backends"]))
    available |= {name for name, value in backends.items() if name.isupper() and callable(value)}
torch.save((results, available), sys.argv[2])
"""


def training_step(model, ids):
    """Returns the logits, greedy tokens, and the gradient of the training loss by the name of each parameter."""
    model.train()(ids, labels=ids).loss.backward()
    results = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    with torch.no_grad():
        results["logits"] = model.eval()(ids).logits
    return results | {"tokens": model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)}


def run(cache: Path, script: str, *arguments: str | Path) -> str:
    """Returns what a script prints where hf_gpt cannot be imported; `cache` is where transformers copies the code."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HF_GPT + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cache), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def stranger(folder: Path, again: Path, ids: torch.Tensor, *auto_classes: str) -> dict:
    """Loads `folder` through each Auto class where hf_gpt cannot be imported, and saves the model under `again`.

    Returns:
        Generated token ids, or the first output, by Auto class.
    """
    printed = run(again / "modules", FIRST_OUTPUTS, folder, again, json.dumps(ids.tolist()), *auto_classes)
    return json.loads(printed.splitlines()[-1])


def stranger_steps(folder: Path, output: Path, ids: torch.Tensor) -> tuple[dict[str, dict], set[str]]:
    """Loads each checkpoint in `folder` where hf_gpt and the private operations of torch are missing.

    Returns:
        The `training_step` of each, by the name of its folder; and the names of the operations that are available.
    """
    script = WITHOUT_PRIVATE_OPERATIONS + inspect.getsource(training_step) + STEPS
    run(output.with_name("modules"), script, folder, output, json.dumps(ids.tolist()))
    return torch.load(output)
