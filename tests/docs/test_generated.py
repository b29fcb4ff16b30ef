"""What scripts write into docs/ is what they write today."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_configuration_reference_is_up_to_date():
    reference = runpy.run_path(str(DOCS / "configuration_reference.py"))
    assert (DOCS / "configuration.md").read_text("utf-8") == reference["render"]()


def test_configuration_reference_has_every_field():
    reference = runpy.run_path(str(DOCS / "configuration_reference.py"))
    declared = [field.name for field in reference["fields"](reference["GPTConfig"]) if "rule" in field.metadata]
    assert [field.name for field in reference["documented_fields"]()] == declared


@pytest.mark.parametrize("name", ["architecture.svg", "attention_patterns.svg"])
def test_pictures_are_up_to_date(name):
    draw = runpy.run_path(str(DOCS / "pictures.py"))["PICTURES"][name]
    assert (DOCS / name).read_text("utf-8") == draw()
    ElementTree.fromstring(draw())


def test_the_grid_shows_the_patterns_as_defined():
    """By the definitions of Child et al. 2019, section 4.3, and of the band, counted by hand."""
    cells = runpy.run_path(str(DOCS / "pictures.py"))["cells"]
    seen = {
        name: {(q, k) for q, k, _, opacity in cells(name) if opacity == 1} for name in ("banded", "strided", "fixed")
    }
    assert {k for q, k in seen["banded"] if q == 9} == {5, 6, 7, 8, 9}
    assert {k for q, k in seen["strided"] if q == 9} == {1, 5, 6, 7, 8, 9}
    assert {k for q, k in seen["fixed"] if q == 9} == {3, 7, 8, 9}


def test_the_reading_order_lists_every_module_of_the_model():
    model = DOCS.parent / "hf_gpt" / "model"
    listed = re.findall(r"^\| `(\w+\.py)` \|", (model / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in model.glob("*.py") if path.name != "__init__.py")
