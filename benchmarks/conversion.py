"""Peak memory and speed of converting a sharded checkpoint of dummy weights, and of exporting it again.

python benchmarks/conversion.py [--gigabytes 4] [--family gpt_neox]

Each direction runs in a process of its own, whose peak (VmHWM) is read from the kernel.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import machine
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gpt.conversion.checkpoints import Weights, write_shards

SHAPES = {
    "gpt2": {"n_embd": 2048, "n_head": 16},
    "gpt_neox": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16},
    "llama": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16},
}
LAYERS = {"gpt2": "n_layer", "gpt_neox": "num_hidden_layers", "llama": "num_hidden_layers"}

PEAK = """
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
RUN = """
import sys
from hf_gpt.conversion import convert, export
source, out, family = sys.argv[1:]
export(source, out, family) if family else convert(source, out)
"""
IDLE = "import hf_gpt.conversion"


def dummy(folder: Path, family: str, size: float) -> int:
    """A native checkpoint of about `size` bytes in shards of 1 GB; its exact size."""

    def build(layers: int) -> PreTrainedModel:
        config = CONFIG_MAPPING[family](**SHAPES[family], **{LAYERS[family]: layers})
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    one, two = (build(layers).num_parameters() for layers in (1, 2))
    model = build(1 + round((size / 4 - one) / (two - one)))
    tensors, native = model.state_dict(), model.config
    if native.tie_word_embeddings:
        del tensors["lm_head.weight"]
    folder.mkdir()
    write_shards(folder, Weights(tensors, lambda name: torch.randn(tensors[name].shape)), "1GB", lambda names: names)
    native.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measure(*arguments: str) -> tuple[float, float]:
    """Seconds, and peak memory in MB, of a new interpreter."""
    started = time.perf_counter()
    script = (RUN if arguments else IDLE) + PEAK
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)
    return time.perf_counter() - started, int(done.stdout.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--family", choices=SHAPES, default="gpt_neox")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        native, ours, back = (Path(folder) / name for name in ("native", "ours", "back"))
        size = dummy(native, arguments.family, arguments.gigabytes * 1e9)
        rows = {
            "imports alone": measure(),
            "convert": measure(str(native), str(ours), ""),
            "export": measure(str(ours), str(back), arguments.family),
        }
    print(f"{arguments.family}, {size / 1e9:.2f} GB in shards of 1 GB, written in shards of 0.5 GB")
    for name, (seconds, peak) in rows.items():
        print(f"{name:16}{seconds:8.1f} s{peak:10.0f} MB at the most")
    print(json.dumps({"machine": machine(), "bytes": size, "rows": rows}))


if __name__ == "__main__":
    main()
