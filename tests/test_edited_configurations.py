"""Edited config.json files: each is refused by a clear error, or the model trains, saves, loads and generates.

`python tests/edited_configurations.py` runs more of them.
"""

import pytest
from edited_configurations import SPOILED, Edit, check_edit, prepare, write_sources
from fuzzing import count_outcomes

from hf_gpt import GPTConfig, GPTForCausalLM

CASES = range(60)
BLOCK = 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for saved_class in (GPTConfig, GPTForCausalLM):
            patch.setattr(saved_class, "_auto_class", None)  # saves no code, for speed
        yield write_sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("block", [CASES[first : first + BLOCK] for first in CASES[::BLOCK]], ids=str)
def test_a_file_is_refused_or_works(block, sources):
    outcomes = count_outcomes(lambda number: prepare(number, sources), block)
    assert min(outcomes["works"], outcomes["refused"]) >= 2


@pytest.mark.parametrize("source", ["default", "llama"])
@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_file_is_refused(kind, source, sources, tmp_path):
    text = SPOILED[kind]((sources[source] / "config.json").read_text())
    assert check_edit(Edit(source, text, [kind], "bfloat16"), sources[source], tmp_path) in ("refused", "works")
