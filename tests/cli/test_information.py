"""`hf-gpt info`."""

from command_line import assert_error

from hf_gpt import GPTConfig
from hf_gpt.accounting import account


def test_info(run, saved):
    status, output, _ = run("info", "gpt3-175b")
    assert status == 0
    assert "174,604,259,328" in output
    assert "banded 256" in output
    assert (
        account(GPTConfig.from_pretrained(saved, num_hidden_layers=1)).parameters
        < account(GPTConfig.from_pretrained(saved)).parameters
    )
    assert run("info", saved, "-s", "num_hidden_layers=1")[0] == 0
    for target in (saved, saved / "config.json"):
        assert run("info", target)[0] == 0
    status, output, _ = run("info", "gpt2", "-s", "num_hidden_layers=3", "--context", 10)
    assert "10 tokens" in output
    assert_error(run("info", "nothing"), "not a file, a folder or a preset")


def test_info_with_other_names_of_fields(run, saved):
    for target, name in ((saved, "n_layer=3"), ("gpt2", "n_layer=3"), ("llama-3-8b", "rope_theta=1e6")):
        assert run("info", target, "-s", name)[0] == 0
    assert run("info", "gpt2", "-s", "n_layer=3")[1] == run("info", "gpt2", "-s", "num_hidden_layers=3")[1]
    assert_error(
        run("info", "gpt2", "-s", "dropout=0.1"), "dropout=0.1 is not a field of GPTConfig: set residual_dropout"
    )
    assert_error(run("info", saved, "-s", "n_layer=2", "-s", "num_layers=3"), "num_layers=3 contradicts n_layer=2")


def test_info_of_experts(run):
    status, output, _ = run("info", "mixtral-8x7b")
    assert status == 0
    assert "46,702,792,704" in output
    assert "12,879,925,248" in output  # active
    assert "2/8 glu 14336" in output
