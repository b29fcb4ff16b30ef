"""Loads a checkpoint in an interpreter in which hf_gpt cannot be imported."""

import json
import subprocess
import sys
from pathlib import Path

import torch

STRANGER = """
import importlib.abc, json, os, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_gpt":
            raise ModuleNotFoundError("No module named 'hf_gpt'")

sys.meta_path.insert(0, Absent())
import torch, transformers

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


def stranger(folder: Path, again: Path, ids: torch.Tensor, *auto_classes: str) -> dict:
    """Loads `folder` through each Auto class where hf_gpt cannot be imported, and saves the model under `again`.

    Returns:
        Generated token ids, or the first output, by Auto class.
    """
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder), str(again), json.dumps(ids.tolist()), *auto_classes],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(again / "modules"), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
