"""The entries of a checkpoint that name Python code: which are saved again, and which are refused.

transformers runs code that is named in the JSON files of a checkpoint, from its folder or from any repository, for
whoever passes `trust_remote_code=True`. What is saved here only names code that is saved with it.
"""

from pathlib import Path
from typing import Any

# In config.json, tokenizer_config.json and generation_config.json.
CODE_ENTRIES = ("auto_map", "custom_pipelines", "custom_generate")

# Entries of config.json that transformers applies as if they were arguments. As an argument, the name of a repository
# is a kernel on the Hub.
IMPLEMENTATION_ENTRIES = ("attn_implementation", "_attn_implementation")

# The modules that the entries of this package name. A configuration can be saved before they are.
OWN_MODULES = ("configuration_gpt", "modeling_gpt")


def without_code(stored: Any) -> Any:
    """Returns JSON values without the entries that name code, at any depth."""
    if isinstance(stored, dict):
        return {name: without_code(value) for name, value in stored.items() if name not in CODE_ENTRIES}
    if isinstance(stored, list):
        return [without_code(value) for value in stored]
    return stored


def refuse_kernels(stored: dict[str, Any]) -> None:
    """Raises a ValueError if a saved configuration chooses an attention implementation from a repository."""
    for name in IMPLEMENTATION_ENTRIES:
        if "/" in str(stored.get(name)):
            raise ValueError(
                f"{name}={stored[name]!r} in a saved configuration names code in a repository: remove it, and pass "
                "attn_implementation to from_pretrained if you trust the repository"
            )


def keep_local_code(config: Any, folder: Path | str) -> None:
    """Removes from a configuration, of a model or of its generation, the entries that name code outside of the folder
    where it is saved."""
    entries = {name: vars(config).pop(name, None) for name in CODE_ENTRIES}
    for name, value in vars(config).items():
        if isinstance(value, (dict, list)):
            vars(config)[name] = without_code(value)
    for name, value in entries.items():
        if isinstance(value, dict) and (local := {key: each for key, each in value.items() if _is_local(each, folder)}):
            setattr(config, name, local)


def _is_local(entry: Any, folder: Path | str) -> bool:
    """True if the code that an entry names is a file of a folder, or of this package.

    Args:
        entry: `"module.Class"`; several of them or None in a list; or a dict in which `impl` is one.
    """
    if isinstance(entry, dict):
        entry = entry.get("impl")
    names = [name for name in (entry if isinstance(entry, (list, tuple)) else [entry]) if name is not None]
    modules = [str(name).rpartition(".")[0] for name in names]
    return bool(modules) and all(
        module in OWN_MODULES or (module.isidentifier() and Path(folder, f"{module}.py").is_file())
        for module in modules
    )
