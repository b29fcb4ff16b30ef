"""Random configurations: each raises an error that names a field, or trains, saves, loads and generates.

`python tests/random_configurations.py` runs more of them.
"""

import pytest
from fuzzing import count_outcomes
from random_configurations import prepare

from hf_gpt import GPTConfig, GPTForCausalLM

CASES = range(120)
BLOCK = 20


@pytest.mark.parametrize("block", [CASES[first : first + BLOCK] for first in CASES[::BLOCK]], ids=str)
def test_a_configuration_works_or_the_error_names_a_field(block, monkeypatch):
    for saved_class in (GPTConfig, GPTForCausalLM):
        monkeypatch.setattr(saved_class, "_auto_class", None)  # saves no code, for speed
    outcomes = count_outcomes(prepare, block)
    assert min(outcomes["works"], outcomes["refused"]) >= BLOCK // 5
