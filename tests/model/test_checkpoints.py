"""Checkpoints: loading, saving and errors; a saved folder holds the model's code and loads without hf_gpt."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from native import save_native
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from stranger import stranger, stranger_steps, training_step
from tiny import make_model, random_ids
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_gpt import GPTConfig, GPTForCausalLM, GPTModel
from hf_gpt.conversion import convert
from hf_gpt.model.checkpoints import tied_quantized_parts
from hf_gpt.model.class_names import auto_map
from hf_gpt.model.modeling_gpt import AUTO_CLASSES
from hf_gpt.surgery.quantization import quantize


def here(auto_class: str, folder: Path, ids: torch.Tensor) -> list:
    """Returns what `stranger` returns, computed by hf_gpt."""
    model = AUTO_CLASSES[auto_class].from_pretrained(folder)
    rows = ids[:, None] if "MultipleChoice" in auto_class else ids
    with torch.no_grad():
        if model.can_generate():
            return model.generate(rows, max_new_tokens=6, do_sample=False, pad_token_id=0).tolist()
        return model(rows, attention_mask=torch.ones_like(rows))[0].tolist()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_quantized_weights_load_without_hf_gpt(tmp_path, scheme):
    saved, first, second, ids = tmp_path / "saved", tmp_path / "first", tmp_path / "second", random_ids(2, 5)
    quantize(make_model(pad_token_id=0), scheme).save_pretrained(saved)
    expected = {"AutoModelForCausalLM": here("AutoModelForCausalLM", saved, ids)}
    assert stranger(saved, first, ids, *expected) == expected
    assert stranger(first, second, ids, *expected) == expected


def test_loads_and_saves_again_without_hf_gpt(tmp_path):
    """Each head has the same outputs without hf_gpt; so has the folder that is saved there."""
    ids = random_ids(2, 5)
    saved, first, second = tmp_path / "saved", tmp_path / "first", tmp_path / "second"
    for auto_class, model_class in AUTO_CLASSES.items():
        make_model("llama", model_class=model_class, pad_token_id=0, num_labels=3).save_pretrained(saved / auto_class)
    expected = {auto_class: here(auto_class, saved / auto_class, ids) for auto_class in AUTO_CLASSES}
    for source, target in ((saved, first), (first, second)):
        printed = stranger(source, target, ids, *AUTO_CLASSES)
        for auto_class in AUTO_CLASSES:
            assert torch.allclose(torch.tensor(printed[auto_class]), torch.tensor(expected[auto_class]), atol=1e-6)


@pytest.mark.parametrize("variant", ["default", "learned", "banded", "mixtral"])
def test_every_auto_class_loads_one_checkpoint_without_hf_gpt(tmp_path, variant):
    make_model(variant, pad_token_id=0).save_pretrained(tmp_path / "saved")
    ids = random_ids(2, 5)
    printed = stranger(tmp_path / "saved", tmp_path / "again", ids, *AUTO_CLASSES)
    assert set(printed) == set(AUTO_CLASSES)
    assert printed["AutoModelForCausalLM"] == here("AutoModelForCausalLM", tmp_path / "saved", ids)


def test_a_converted_checkpoint_loads_without_hf_gpt(tmp_path):
    """Its folder is written by the conversion, not by save_pretrained."""
    native = save_native(tmp_path / "native", "gpt_oss", eos_token_id=None, pad_token_id=None)
    convert(tmp_path / "native", tmp_path / "ours")
    ids = random_ids(2, 5, high=native.config.vocab_size)
    printed = stranger(tmp_path / "ours", tmp_path / "again", ids, "AutoModelForCausalLM")
    assert printed["AutoModelForCausalLM"] == here("AutoModelForCausalLM", tmp_path / "ours", ids)
    assert (
        printed["AutoModelForCausalLM"]
        == native.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0).tolist()
    )


def test_a_checkpoint_of_the_previous_layout(tmp_path):
    """It has another set of files, loads with its own code or with hf_gpt, and gives the same results."""
    shutil.unpack_archive(Path(__file__).with_name("previous_layout.zip"), tmp_path / "saved")
    assert "backends.py" not in {path.name for path in (tmp_path / "saved").glob("*.py")}
    ids = torch.arange(1, 9)[None]
    found = GPTForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")) is GPTForCausalLM
    tokens = [1, 2, 3, 4, 5, 6, 7, *[8] * 9]
    logits = [1.3250149488449097, 0.4737676978111267, -0.8140926957130432, -1.8119537830352783]
    assert found.generate(ids, max_new_tokens=8, do_sample=False).tolist() == [tokens]
    with torch.no_grad():
        assert found(ids).logits[0, -1, :4].tolist() == pytest.approx(logits, rel=1e-5)

    printed = stranger(tmp_path / "saved", tmp_path / "again", ids, "AutoModelForCausalLM", "AutoModel")
    assert printed["AutoModelForCausalLM"] == [tokens[:14]]
    states = torch.tensor(printed["AutoModel"])
    assert (states @ found.lm_head.weight.t())[0, -1, :4].tolist() == pytest.approx(logits, rel=1e-5)


WITHOUT_OPERATIONS = {
    "dense": {},
    "sparse": {
        "attention_patterns": ["strided", "fixed", "banded"],
        "attention_stride": 12,
        "attention_summary_size": 2,
        "sliding_window": 20,
        "attention_sinks": True,
        "num_hidden_layers": 3,
    },
    "experts": {"mlp_type": "glu", "num_local_experts": 4, "router_aux_loss_coef": 0.5},
    "int8": {},
}


def test_loads_without_hf_gpt_and_private_operations(tmp_path):
    """The prompt is long enough for the pieces of sparse attention."""
    saved, ids = tmp_path / "saved", random_ids(2, 300)
    for name, fields in WITHOUT_OPERATIONS.items():
        model = make_model(**fields)
        (quantize(model, "int8") if name == "int8" else model).save_pretrained(saved / name)
    found, available = stranger_steps(saved, tmp_path / "found.pt", ids)
    assert available == {"FUNCTORCH_ACTIVE", "DISPATCH_MODES", "DISPATCH_MODE", "GLOBAL_HOOKS"}
    for name in WITHOUT_OPERATIONS:
        expected = training_step(GPTForCausalLM.from_pretrained(saved / name), ids)
        assert torch.equal(found[name].pop("tokens"), expected.pop("tokens"))
        assert found[name].keys() == expected.keys()
        for part, wanted in expected.items():
            tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1}[wanted.dtype]  # quantized models are bfloat16
            assert (found[name][part] - wanted).abs().max() < tolerance * wanted.abs().max(), (name, part)


def test_every_auto_class_loads_one_checkpoint_with_hf_gpt(tmp_path, variant):
    model = make_model(variant)
    model.save_pretrained(tmp_path)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is GPTConfig
    for name, model_class in AUTO_CLASSES.items():
        loaded = getattr(transformers, name).from_pretrained(tmp_path)
        assert type(loaded) is model_class
        assert torch.equal(loaded.base_model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_the_auto_map_refers_to_saved_files(tmp_path):
    make_model().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", *AUTO_CLASSES}
    for reference in auto_map.values():
        assert (tmp_path / f"{reference.partition('.')[0]}.py").exists()


def test_saves_and_loads_bit_for_bit(tmp_path, variant):
    model = make_model(variant)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = GPTForCausalLM.from_pretrained(tmp_path)
    for (name, expected), (_, actual) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(actual, expected), name
    ids = random_ids(1, 5)
    assert torch.equal(loaded(ids).logits, model(ids).logits)  # including buffers of the rotary embedding


def test_base_and_head_checkpoints_load_into_each_other(tmp_path):
    model = make_model(model_class=GPTModel)
    model.save_pretrained(tmp_path / "base")
    language_model = GPTForCausalLM.from_pretrained(tmp_path / "base")
    language_model.save_pretrained(tmp_path / "head")
    again = GPTModel.from_pretrained(tmp_path / "head")
    assert torch.equal(again(random_ids(1, 4))[0], model(random_ids(1, 4))[0])


def test_the_auto_map_names_code_in_the_folder_alone(tmp_path):
    model, foreign = make_model(), ["mine.Slow", None]
    for folder in (tmp_path / "with", tmp_path / "without"):
        model.config.auto_map = {"AutoTokenizer": foreign, "AutoProcessor": "someone/other--theirs.Processor"}
        folder.mkdir()
        if folder.name == "with":
            (folder / "mine.py").touch()
        model.save_pretrained(folder)
        entries = json.loads((folder / "config.json").read_text())["auto_map"]
        assert entries == auto_map() | ({"AutoTokenizer": foreign} if folder.name == "with" else {})


def test_error_names_a_missing_weight_file(tmp_path):
    make_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        GPTForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
def test_error_names_a_truncated_weight_file(tmp_path, sharded):
    make_model().save_pretrained(tmp_path, max_shard_size="40KB" if sharded else "1GB")
    path = sorted(tmp_path.glob("*.safetensors"))[-1]
    content = path.read_bytes()
    for length in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(OSError, match=rf"{path.name} is truncated"):
            GPTForCausalLM.from_pretrained(tmp_path)
        assert path.read_bytes() == content[:length]


def test_error_names_a_missing_shard(tmp_path):
    make_model().save_pretrained(tmp_path, max_shard_size="40KB")
    path = sorted(tmp_path.glob("*.safetensors"))[0]
    path.unlink()
    with pytest.raises(OSError, match=path.name):
        GPTForCausalLM.from_pretrained(tmp_path)


def test_weights_of_another_architecture_raise_with_any_configuration(tmp_path):
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type='gpt2'"):
        GPTForCausalLM.from_pretrained(tmp_path, config=GPTConfig(vocab_size=99))


def test_pipelines(tmp_path):
    from hf_gpt.tokenization import train_tokenizer

    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog " * 20], 300)
    model = make_model(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path)
    for task in ("text-generation", "text-classification", "token-classification", "feature-extraction"):
        assert transformers.pipeline(task, model=str(tmp_path))("the quick fox")


def test_saved_weights_are_plain_safetensors(tmp_path):
    make_model().save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    fixed = {"embed_tokens.weight", "norm.weight"}
    fixed |= {f"layers.1.self_attn.{letter}_proj.weight" for letter in "qkvo"}
    assert {f"model.{name}" for name in fixed} <= names


class TestQuantizationConfig:
    """`quantization_config` of from_pretrained, with quantizers that a user has registered."""

    @pytest.fixture
    def quantizers(self, monkeypatch):
        """A quantizer that converts `down_proj` layers, unless `modules_to_not_convert` names them."""

        class Quantizer(HfQuantizer):
            is_trainable = is_serializable = False

            def _process_model_after_weight_loading(self, model, **_):
                for name, module in model.named_modules():
                    if name.endswith("down_proj") and name not in self.quantization_config.modules_to_not_convert:
                        module.register_buffer("qweight", module.weight.mul(9).to(torch.int8))
                        module.weight = None
                return model

        monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "ours", Quantizer)

        def build(modules_to_not_convert=(), **fields):
            config = QuantizationConfigMixin(quant_method="ours")
            config.modules_to_not_convert = modules_to_not_convert
            for name, value in fields.items():
                setattr(config, name, value)
            return config

        return build

    DENSE = ("default", "learned", "gptj", "llama")
    DOWN = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in range(2))

    @pytest.mark.parametrize("variant", DENSE)
    def test_a_config_that_changes_no_layer_raises(self, variant, quantizers, tmp_path):
        make_model(variant).save_pretrained(tmp_path)
        message = (
            "quantization_config=QuantizationConfigMixin has quantized no layer of GPTForCausalLM, expected at least"
        )
        for options in ({}, {"output_loading_info": True}):
            with pytest.raises(ValueError, match=message):
                GPTForCausalLM.from_pretrained(tmp_path, quantization_config=quantizers(self.DOWN), **options)
            GPTForCausalLM.from_pretrained(tmp_path, quantization_config=quantizers(self.DOWN[:1]), **options)
        restored = quantizers(self.DOWN, dequantize=True)  # the loaded model is meant to be plain
        GPTForCausalLM.from_pretrained(tmp_path, quantization_config=restored)

    def test_from_a_subfolder(self, quantizers, tmp_path):
        make_model().save_pretrained(tmp_path / "inner")
        options = {"quantization_config": quantizers(), "subfolder": "inner"}
        loaded = GPTForCausalLM.from_pretrained(tmp_path, **options)
        assert loaded.model.layers[0].mlp.down_proj.qweight.dtype == torch.int8
        fields = json.loads((tmp_path / "inner" / "config.json").read_text())
        (tmp_path / "inner" / "config.json").write_text(
            json.dumps(fields | {"quantization_config": {"quant_method": "x"}})
        )
        with pytest.raises(ValueError, match="the model is quantized already"):
            GPTForCausalLM.from_pretrained(tmp_path, **options)

    def test_is_read_from_where_the_weights_are(self, quantizers, tmp_path, monkeypatch):
        make_model().save_pretrained(tmp_path)
        seen, original = [], transformers.PreTrainedConfig.get_config_dict.__func__
        location = {"revision": "v2", "token": "secret", "cache_dir": str(tmp_path), "local_files_only": True}

        def get_config_dict(cls, path, **kwargs):
            seen.append({name: kwargs.get(name) for name in location})
            return original(cls, path, **kwargs)

        monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", classmethod(get_config_dict))
        GPTForCausalLM.from_pretrained(tmp_path, quantization_config=quantizers(), **location)
        assert seen[0] == location

    def test_of_an_adapter_whose_folder_names_the_base_model(self, quantizers, tmp_path):
        make_model().save_pretrained(tmp_path / "base")
        base = GPTForCausalLM.from_pretrained(tmp_path / "base")
        get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
        loaded = GPTForCausalLM.from_pretrained(tmp_path / "adapter", quantization_config=quantizers())
        assert loaded.model.layers[0].mlp.down_proj.qweight.dtype == torch.int8

    @pytest.mark.parametrize("as_path", [False, True])
    def test_with_a_configuration(self, as_path, quantizers, tmp_path):
        make_model().save_pretrained(tmp_path)
        config = str(tmp_path) if as_path else make_model().config
        loaded = GPTForCausalLM.from_pretrained(tmp_path, config=config, quantization_config=quantizers())
        assert loaded.model.layers[0].mlp.down_proj.qweight.dtype == torch.int8

    @pytest.mark.parametrize("options", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=str)
    @pytest.mark.parametrize("variant", [*DENSE, "mixtral"])
    def test_of_bitsandbytes(self, variant, options, tmp_path):
        model, expected = make_model(variant), "Linear4bit" if "load_in_4bit" in options else "Linear8bitLt"
        model.save_pretrained(tmp_path)
        config = transformers.BitsAndBytesConfig(**options)
        loaded = GPTForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
        names = [name for name, part in model.model.named_modules() if isinstance(part, torch.nn.Linear)]
        assert {type(loaded.model.get_submodule(name)).__name__ for name in names} == {expected}
        config = transformers.BitsAndBytesConfig(**options, llm_int8_skip_modules=[*names, "lm_head"])
        with pytest.raises(ValueError, match="quantization_config=BitsAndBytesConfig has quantized no layer"):
            GPTForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")


def test_a_folder_without_the_modeling_code_is_completed_by_saving(tmp_path):
    """Tools that merge weights copy configuration and weights alone."""
    make_model(pad_token_id=0).save_pretrained(tmp_path / "source")
    transformers.AutoConfig.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / "merged")
    shutil.copy(tmp_path / "source" / "model.safetensors", tmp_path / "merged")
    assert not (tmp_path / "merged" / "modeling_gpt.py").exists()
    GPTForCausalLM.from_pretrained(tmp_path / "merged").save_pretrained(tmp_path / "merged")
    ids = random_ids(2, 5)
    printed = stranger(tmp_path / "merged", tmp_path / "again", ids, "AutoModelForCausalLM")
    assert printed["AutoModelForCausalLM"] == here("AutoModelForCausalLM", tmp_path / "source", ids)


def test_weights_without_a_folder(tmp_path, monkeypatch):
    """The working folder does not matter."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    monkeypatch.chdir(tmp_path)
    model, ids = make_model(), random_ids(2, 5)
    loaded = GPTForCausalLM.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_weights_of_another_architecture_in_a_subfolder_raise(tmp_path):
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "inner")
    with pytest.raises(ValueError, match="model_type='gpt2'"):
        GPTForCausalLM.from_pretrained(tmp_path, config=GPTConfig(vocab_size=99), subfolder="inner")


def test_trained_tokens_of_an_adapter_leave_the_base_model_saveable(tmp_path):
    """PEFT puts its layer in the place of the embedding."""
    model = make_model(tie_word_embeddings=False)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 4]))
    model.save_pretrained(tmp_path)
    assert "model.embed_tokens.token_adapter.base_layer.weight" in load_file(tmp_path / "model.safetensors")
    tied = get_peft_model(make_model(), adapted.peft_config["default"])
    assert not tied_quantized_parts(tied.get_base_model())
