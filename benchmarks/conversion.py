"""Measures time and peak memory of the conversion of a sharded checkpoint of random weights, and of its export.

python benchmarks/conversion.py [--gigabytes 4] [--family gpt_neox]

Each direction runs in its own process; the peak is the VmHWM of that process. A process that only imports hf_gpt is the
baseline: transformers has no converter to compare with.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import print_json
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gpt.conversion.checkpoints import Weights, write_shards
from hf_gpt.folders import output_folder

SHAPES = {
    "gpt2": {"n_embd": 2048, "n_head": 16},
    "gpt_neox": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16},
    "llama": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16},
}
LAYERS = {"gpt2": "n_layer", "gpt_neox": "num_hidden_layers", "llama": "num_hidden_layers"}

IMPORTS = """
import sys
from hf_gpt.conversion import convert, export
"""
CONVERT = "convert(*sys.argv[1:])"
EXPORT = "export(*sys.argv[1:])"
PRINT_PEAK = """
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def write_native(folder: Path, family: str, size: float) -> int:
    """Writes a native checkpoint of about `size` bytes in shards of 1 GB and returns its exact size."""

    def build(layers: int) -> PreTrainedModel:
        config = CONFIG_MAPPING[family](**SHAPES[family], **{LAYERS[family]: layers})
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)

    one, two = (build(layers).num_parameters() for layers in (1, 2))
    model = build(max(1, 1 + round((size / 4 - one) / (two - one))))  # 4 bytes per parameter
    tensors, native = model.state_dict(), model.config
    if native.tie_word_embeddings:
        del tensors["lm_head.weight"]
    weights = Weights(tensors, lambda name: torch.randn(tensors[name].shape))
    with output_folder(folder) as new:
        write_shards(new, weights, "1GB", lambda names: names)
        with new.writing() as unfinished:
            native.save_pretrained(unfinished)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def run(statement: str, *arguments: object) -> dict[str, float]:
    """Returns the seconds and the peak memory of a new process that imports hf_gpt and runs the statement."""
    command = [sys.executable, "-c", IMPORTS + statement + PRINT_PEAK, *map(str, arguments)]
    started = time.perf_counter()
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_megabytes": int(finished.stdout.split()[-1]) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint (default: %(default)s)")
    parser.add_argument("--family", choices=SHAPES, default="gpt_neox", help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        native, ours, exported = (Path(folder) / name for name in ("native", "ours", "exported"))
        size = write_native(native, arguments.family, arguments.gigabytes * 1e9)
        rows = {
            "imports only": run(""),
            "convert": run(CONVERT, native, ours),
            "export": run(EXPORT, ours, exported, arguments.family),
        }
    print(f"{arguments.family}, {size / 1e9:.2f} GB in shards of 1 GB, written in shards of 0.5 GB")
    print(f"{'':16}{'seconds':>8}{'peak MB':>10}")
    for name, row in rows.items():
        print(f"{name:16}{row['seconds']:>8.1f}{row['peak_megabytes']:>10.0f}")
    print_json(bytes=size, rows=rows)


if __name__ == "__main__":
    main()
