import pytest
from native import assert_convert_raises, save_native, update_config

from hf_gpt.conversion import FAMILIES


@pytest.mark.parametrize("content", ["no JSON", "[]", "\x00"])
def test_an_invalid_configuration(native, content):
    (native / "config.json").write_text(content)
    assert_convert_raises(native, "config.json")


@pytest.mark.parametrize(
    ("family", "quantization", "method"),
    [
        ("gpt2", {"quant_method": "gptq"}, "gptq"),
        ("gpt2", {"load_in_8bit": True}, "None"),
        ("llama", {"quant_method": "mxfp4"}, "mxfp4"),
        ("gpt_oss", {"quant_method": "fp8"}, "fp8"),
    ],
)
def test_quantized_weights_that_the_family_does_not_read(family, quantization, method, tmp_path):
    save_native(tmp_path / "native", family)
    update_config(tmp_path / "native", {"quantization_config": quantization})
    message = f"quantization_config: weights quantized by {method} cannot be converted"
    assert_convert_raises(tmp_path / "native", message)


def test_fields_that_are_never_copied(native):
    """Names of code to run, and fields that are rewritten."""
    update_config(native, {"auto_map": {"AutoConfig": "code.Config"}, "_name_or_path": "there", "note": "copied"})
    _, extras = FAMILIES["gpt2"].storage.read_fields(native)
    assert extras["note"] == "copied"
    assert not {"auto_map", "_name_or_path", "model_type", "architectures", "dtype"} & extras.keys()


@pytest.mark.parametrize(
    ("family", "replaced"),
    [
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 500}),
        ("llama", {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("gpt_neo", {"attention_layers": ["local"] * 2, "num_layers": 2}),
    ],
)
def test_earlier_fields_are_replaced(family, replaced, tmp_path):
    save_native(tmp_path, family)
    update_config(tmp_path, replaced)
    _, extras = FAMILIES[family].storage.read_fields(tmp_path)
    assert not replaced.keys() & extras.keys()
