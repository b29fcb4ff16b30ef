"""The wheel: it contains every file of the packages, and declares every package that they import."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# Where the packages lie, and where they are installed.
FOLDERS = {"hf_gpt": "hf_gpt", "conversion": "hf_gpt/conversion", "model_cards": "hf_gpt/model_cards"}
EXTRAS = ("plot", "data", "fast", "quant")
NOT_IMPORTED = {"jinja2"}  # huggingface_hub imports it to render model cards
# In a new interpreter: imports every module of the wheel, and reads the data files that they read.
USE_THE_WHEEL = """
import importlib, pathlib, pkgutil, sys

import hf_gpt, hf_gpt.publishing
from hf_gpt.tokenization import load_tokenizer

folder = pathlib.Path(sys.argv[1])
for module in pkgutil.walk_packages(hf_gpt.__path__, "hf_gpt."):
    assert pathlib.Path(importlib.import_module(module.name).__file__).is_relative_to(folder), module.name
assert len(load_tokenizer()) > 50_000
assert hf_gpt.publishing.TEMPLATE.is_file()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of a copy of the source. Building in place would leave files of earlier builds in it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for folder in (*FOLDERS, "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (path,) = out.iterdir()
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def requirements(wheel) -> list[Requirement]:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return [Requirement(line) for line in message_from_bytes(wheel.read(metadata)).get_all("Requires-Dist")]


def source_files(folder: str) -> list[Path]:
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return [path for path in files if path.parent.name != "__pycache__" and not path.name.startswith(".")]


def test_contains_every_file_of_the_packages_and_nothing_else(wheel):
    expected = {
        f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in FOLDERS.items()
        for path in source_files(folder)
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
    for file in ("py.typed", "tokenization/shipped/tokenizer.json", "model_cards/language_model.md"):
        assert f"hf_gpt/{file}" in expected


def test_is_usable_alone(wheel, tmp_path):
    wheel.extractall(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, "-c", USE_THE_WHEEL, str(tmp_path)]
    process = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_installs_the_command(wheel):
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "hf-gpt = hf_gpt.cli:main" in wheel.read(entry_points).decode()


def imported(*folders: str) -> tuple[set[str], set[str]]:
    """Returns the packages that the modules in some folders import: always, and only in functions or `try` blocks."""
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"hf_gpt"}
    always, sometimes = set(), set()

    def visit(node: ast.AST, found: set[str]) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        if isinstance(node, (ast.FunctionDef, ast.Try)):
            found = sometimes
        for child in ast.iter_child_nodes(node):
            visit(child, found)

    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            visit(ast.parse(path.read_text()), always)
    distributions = importlib.metadata.packages_distributions()
    always, sometimes = (
        {canonicalize_name(distributions.get(name, [name])[0]) for name in names - own - sys.stdlib_module_names}
        for names in (always, sometimes)
    )
    return always, sometimes - always


def declared(requirements: list[Requirement], *extras: str) -> set[str]:
    """Returns the packages that an installation with some extras requires directly."""
    names = set()
    for requirement in requirements:
        if not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            names.add(canonicalize_name(requirement.name))
    return names - {"hf-gpt"}


def test_declares_what_it_imports(requirements):
    always, sometimes = imported(*FOLDERS)
    dependencies = declared(requirements)
    assert dependencies == always | NOT_IMPORTED
    assert declared(requirements, *EXTRAS) == dependencies | sometimes


def test_the_test_extra_declares_what_the_tests_import(requirements):
    everything = declared(requirements, *EXTRAS, "test")
    assert set().union(*imported("tests")) <= everything


def test_the_model_imports_only_what_transformers_requires():
    """Its code is saved with checkpoints, and runs where only torch and transformers are installed."""
    required = {canonicalize_name(Requirement(each).name) for each in importlib.metadata.requires("transformers")}
    assert imported("hf_gpt/model")[0] <= {"torch", "transformers"} | required


@pytest.mark.parametrize(
    "vulnerable",
    [
        "torch==2.5.1",  # CVE-2025-32434: pickles that are loaded with weights_only=True
        "torch==2.9.1",  # CVE-2026-24747: likewise
        "transformers==5.2.0",  # CVE-2026-4372: attention implementations in config.json
        "transformers==5.4.0",  # CVE-2026-5241: trust_remote_code in config.json
        "transformers==5.9.0",  # CVE-2026-9856: names of chat templates as paths
        "jinja2==3.1.5",  # CVE-2025-27516: the sandbox of chat templates
        "numpy==1.22.1",  # CVE-2021-41495
        "datasets==3.6.0",  # runs code of a data set
        "pyarrow==14.0.0",  # CVE-2023-47248: code in Parquet files
        "pyarrow==23.0.0",  # CVE-2026-25087
        "setuptools==78.1.0",  # CVE-2025-47273
    ],
)
def test_lower_bounds_exclude_versions_with_known_vulnerabilities(requirements, vulnerable):
    name, _, version = vulnerable.partition("==")
    allowed = [each for each in requirements if each.name == name and each.specifier.contains(version)]
    assert not allowed
