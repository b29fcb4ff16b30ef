"""Entries of a checkpoint that name code. tests/test_trust.py tests the commands."""

import importlib
import json
import sys

import pytest
import transformers
from tiny import make_config, make_model

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.model.class_names import auto_map
from hf_gpt.model.remote_code import keep_local_code, without_code

FOREIGN = {
    "auto_map": {"AutoModel": "theirs.Model", "AutoTokenizer": [None, "someone/other--theirs.Fast"]},
    "custom_pipelines": {"text-generation": {"impl": "theirs.Pipeline", "pt": ["AutoModel"]}},
    "custom_generate": "someone/other",
}


def test_entries_are_removed_at_any_depth():
    stored = {"kept": [1, {"auto_map": {}, "inner": {"custom_pipelines": 2, "kept": None}}], "custom_generate": "a"}
    assert without_code(stored) == {"kept": [1, {"inner": {"kept": None}}]}


@pytest.mark.parametrize("save", ["model", "config"])
def test_foreign_entries_are_not_saved(save, tmp_path):
    """Of a configuration that was loaded, and of the configuration of the generation."""
    make_model().save_pretrained(tmp_path / "source")
    for name in ("config.json", "generation_config.json"):
        file = tmp_path / "source" / name
        file.write_text(
            json.dumps(json.loads(file.read_text()) | FOREIGN | {"note": [FOREIGN], "native_fields": FOREIGN})
        )
    loaded = GPTForCausalLM.from_pretrained(tmp_path / "source")
    (loaded if save == "model" else loaded.config).save_pretrained(tmp_path / "out")
    for file in (tmp_path / "out").glob("*.json"):
        assert "theirs" not in file.read_text()
        assert "someone" not in file.read_text()
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["auto_map"] == (auto_map() if save == "model" else {"AutoConfig": "configuration_gpt.GPTConfig"})
    assert "custom_pipelines" not in saved
    assert saved["note"] == [{}]


@pytest.mark.parametrize(
    "entry",
    ["mine.Model", ["mine.Slow", "mine.Fast"], ["mine.Slow", None], {"impl": "mine.Pipeline"}, "modeling_gpt.GPTModel"],
    ids=str,
)
def test_entries_of_code_in_the_folder_are_kept(entry, tmp_path):
    (tmp_path / "mine.py").touch()
    config = make_config(custom_pipelines={"text-generation": entry})
    config.auto_map = {"AutoModel": entry}
    keep_local_code(config, tmp_path)
    assert config.auto_map == {"AutoModel": entry}
    assert config.custom_pipelines == {"text-generation": entry}


@pytest.mark.parametrize(
    "entry",
    ["theirs.Model", "someone/other--mine.Model", "../mine.Model", "mine", "", None, 7, [], [None], {}, {"impl": None},
     ["mine.Slow", "theirs.Fast"], "sub.mine.Model"],
    ids=str,
)  # fmt: skip
def test_other_entries_are_removed(entry, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "mine.py").touch()
    config = make_config(custom_pipelines=entry)
    config.auto_map = {"AutoModel": entry}  # the constructor refuses some
    keep_local_code(config, folder)
    assert not {"auto_map", "custom_pipelines"} & vars(config).keys()


def test_a_subclass_of_a_user_is_saved_with_its_code(tmp_path, monkeypatch):
    """Its entries are those of `register_for_auto_class`."""
    (tmp_path / "my_gpt.py").write_text(
        "from hf_gpt import GPTConfig, GPTForCausalLM\n"
        "class MyConfig(GPTConfig): pass\n"
        "class MyGPT(GPTForCausalLM): config_class = MyConfig\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("my_gpt")
    mine.MyConfig.register_for_auto_class()
    mine.MyGPT.register_for_auto_class("AutoModelForCausalLM")
    model = mine.MyGPT(mine.MyConfig(**make_config().to_diff_dict()))
    model.save_pretrained(tmp_path / "first")
    mine.MyGPT.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for folder in ("first", "second"):
        assert (tmp_path / folder / "my_gpt.py").is_file()
        entries = json.loads((tmp_path / folder / "config.json").read_text())["auto_map"]
        assert entries["AutoConfig"] == "my_gpt.MyConfig"
        assert entries["AutoModelForCausalLM"] == "my_gpt.MyGPT"
    monkeypatch.delitem(sys.modules, "my_gpt")


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize(
    "value", ["someone/kernel", "kernels-community/flash-attn2@main:f", {"": "someone/kernel"}], ids=str
)
def test_a_saved_configuration_does_not_choose_a_kernel_of_a_repository(name, value, tmp_path):
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    for load in (
        GPTConfig.from_pretrained,
        GPTForCausalLM.from_pretrained,
        transformers.AutoConfig.from_pretrained,
        transformers.AutoModelForCausalLM.from_pretrained,
    ):
        with pytest.raises(ValueError, match=rf"{name}=.* in a saved configuration names code in a repository"):
            load(tmp_path)


def test_a_saved_configuration_may_choose_another_implementation(tmp_path):
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attn_implementation": "eager"}))
    assert GPTForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "eager"
