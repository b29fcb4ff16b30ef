"""The layout of the source: what may import what, what a package's `__init__.py` holds, where the tests are.

CONTRIBUTING.md describes the layout.
"""

import ast
import importlib
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny import make_model

import hf_gpt
from hf_gpt.conversion.family import Family

ROOT = Path(__file__).parents[1]
# Where the packages lie, and their names. The first is the installed package, the others are installed inside it.
FOLDERS = {"hf_gpt": "hf_gpt", "conversion": "hf_gpt.conversion", "model_cards": "hf_gpt.model_cards"}

# A unit is a package of hf_gpt, or a module beside them. It may only import units of the lines below it.
LEVELS = (
    {"cli"},
    {"recipes"},
    {"publishing"},
    {"training", "surgery"},
    {"conversion"},
    {"data"},
    {"tokenization"},
    {"accounting", "presets", "trust"},
    {"model"},
    {"compatibility", "folders", "model_cards", "version"},
    {"json_files", "locks"},
)
LEVEL = {unit: number for number, units in enumerate(LEVELS) for unit in units}

MAX_LINES = 500
LONGER = {"hf_gpt.model.modeling_gpt": 600, "hf_gpt.model.configuration_gpt": 700}


class Import(NamedTuple):
    """An import of our code."""

    module: str
    """The importing module."""
    target: str
    """The imported module; the name of a package is that of its `__init__.py`."""
    line: int
    is_sibling: bool
    """True for `from .sibling import Name`."""

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}, imports {self.target}"


def find_modules() -> dict[str, Path]:
    """Returns the path of each module, by its name."""
    modules = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            modules[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return modules


MODULES = find_modules()


def find_imports(module: str) -> list[Import]:
    """Returns the imports of our code in a module, inside functions too."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names, is_sibling = [alias.name for alias in node.names], False
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            candidates = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in candidates]
            is_plain = bool(node.module) and "." not in node.module and "*" not in [alias.name for alias in node.names]
            is_sibling = node.level == 1 and is_plain and set(names) == {base}
        else:
            continue
        ours = dict.fromkeys(name for name in names if name.split(".")[0] == "hf_gpt")
        imports += [Import(module, name, node.lineno, is_sibling) for name in ours]
    return imports


IMPORTS = [found for module in MODULES for found in find_imports(module)]


def unit_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_every_import_exists():
    assert not [str(each) for each in IMPORTS if each.target not in MODULES]


def test_the_model_imports_only_its_siblings():
    """`save_pretrained` copies siblings that are imported as `from .sibling import Name`, and nothing else."""
    wrong = [
        str(each)
        for each in IMPORTS
        if unit_of(each.module) == "model" and not (each.is_sibling and unit_of(each.target) == "model")
    ]
    assert not wrong


def test_units_import_only_lower_levels():
    units = {unit_of(module) for module in MODULES} - {"hf_gpt"}
    assert units == LEVEL.keys()
    wrong = [
        str(each)
        for each in IMPORTS
        if each.module != "hf_gpt"
        and unit_of(each.module) != unit_of(each.target)
        and LEVEL.get(unit_of(each.target), -1) <= LEVEL[unit_of(each.module)]
    ]
    assert not wrong


def test_conversion_has_few_importers():
    """Those that read and write whole checkpoints."""
    importers = {unit_of(each.module) for each in IMPORTS if unit_of(each.target) == "conversion"}
    assert importers <= {"conversion", "surgery", "recipes", "cli"}


def test_no_circle_of_imports():
    targets = {module: {each.target for each in IMPORTS if each.module == module} - {module} for module in MODULES}
    while leaves := [module for module in targets if not targets[module] & targets.keys()]:
        for module in leaves:
            del targets[module]
    assert not targets


@pytest.mark.parametrize("package", sorted(module for module in MODULES if MODULES[module].name == "__init__.py"))
def test_packages_define_nothing(package):
    """Their `__init__.py` hands on names. That of hf_gpt also registers the Auto classes."""
    body = ast.parse(MODULES[package].read_text()).body
    assert ast.get_docstring(ast.Module(body, []))
    for node in body[1:]:
        is_all = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
        is_registration = package == "hf_gpt" and isinstance(node, (ast.Expr, ast.For))
        assert is_all or is_registration or isinstance(node, ast.ImportFrom | ast.Import), ast.unparse(node)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_length(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGER.get(module, MAX_LINES)


def defines_a_family(module: str) -> bool:
    """True for the tables of conversion, one for each family, which all of its tests read."""
    return any(isinstance(value, Family) for value in vars(importlib.import_module(module)).values())


def has_own_test(module: str) -> bool:
    if MODULES[module].name == "__init__.py" or module == "hf_gpt.version":
        return False
    if unit_of(module) == "conversion" and module != "hf_gpt.conversion.families":
        return not defines_a_family(module)
    return True


@pytest.mark.parametrize("module", sorted(filter(has_own_test, MODULES)))
def test_every_module_has_a_test_file(module):
    *packages, name = module.split(".")[1:]
    assert (ROOT / "tests" / Path(*packages) / f"test_{name}.py").is_file()


def test_a_checkpoint_contains_the_modules_of_the_model(tmp_path):
    make_model().save_pretrained(tmp_path)
    modules = {path.name for path in (Path(hf_gpt.__file__).parent / "model").glob("*.py")}
    assert {path.name for path in tmp_path.glob("*.py")} == modules - {"__init__.py"}
