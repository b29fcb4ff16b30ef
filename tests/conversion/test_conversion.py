"""Every family in and out: the same logits as the native class, and the same bits back."""

import json

import pytest
import torch
from native import NATIVE, ROPE, NanoGPT, assert_close, longrope, native_model, save_native, strengthen
from safetensors.torch import load_file, save_file
from tiny import make_model, random_ids
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.conversion import FAMILIES, convert, export, verify
from hf_gpt.conversion.weights import MXFP4, pieces
from hf_gpt.model.configuration_gpt import ACTIVATIONS
from hf_gpt.surgery import set_attention_patterns

SEEDS = range(6)
families = pytest.mark.parametrize("family", NATIVE)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def weights(folder):
    """All tensors of a folder, of however many files."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def fields(folder):
    return json.loads((folder / "config.json").read_text())


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.fixture
def both(tmp_path, family, seed):
    """A native model, and what it was converted to."""
    native = save_native(tmp_path / "native", family, seed)
    return native, GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))


@families
@pytest.mark.parametrize("seed", SEEDS)
class TestEquality:
    def test_logits_and_loss(self, both):
        native, ours = both
        ids = random_ids(3, 21, high=native.config.vocab_size)
        with torch.no_grad():
            expected, actual = native(ids, labels=ids), ours(ids, labels=ids)
        assert_close(actual.logits, expected.logits)
        assert torch.allclose(actual.loss, expected.loss, rtol=1e-5)

    def test_padded_batches(self, both):
        native, ours = both
        ids, mask = random_ids(2, 12, high=native.config.vocab_size), torch.ones(2, 12, dtype=torch.long)
        mask[0, :5] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)  # ours counts them itself
        with torch.no_grad():
            expected = native(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
            actual = ours(ids, attention_mask=mask).logits[mask.bool()]
        assert_close(actual, expected)

    def test_gradients(self, both, family):
        native, ours = both
        ids = random_ids(2, 16, high=native.config.vocab_size)
        for model in both:
            model(ids, labels=ids).loss.backward()
        gradients = {name: parameter.grad for name, parameter in native.named_parameters()}
        names = [name for name, _ in ours.named_parameters()]
        layouts = [pieces(layout, ours.config, names) for layout in FAMILIES[family].layouts]
        in_memory = next(each for each in layouts if {name for piece in each for name in piece.native} <= {*gradients})
        scale = max(gradient.abs().max() for gradient in gradients.values())
        for piece in in_memory:
            expected = piece.to_ours([gradients[name] for name in piece.native], ours.config)
            for name, gradient in zip(piece.ours, expected, strict=True):
                assert (ours.get_parameter(name).grad - gradient).abs().max() <= 1e-5 * scale, name

    def test_greedy_generation(self, both, family):
        native, ours = both
        ids, mask = random_ids(2, 6, high=native.config.vocab_size), torch.ones(2, 6, dtype=torch.long)
        native.config.output_router_logits = False  # with a cache, its balancing loss takes a mask of the wrong length
        if family != "openai-gpt":  # which counts padding as positions there
            mask[0, :2] = 0
        expected = native.generate(ids, attention_mask=mask, **GREEDY)
        assert torch.equal(ours.generate(ids, attention_mask=mask, **GREEDY), expected)

    def test_there_and_back(self, both, family, tmp_path):
        export(tmp_path / "ours", tmp_path / "back", family)
        assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "native"))
        assert fields(tmp_path / "back") == fields(tmp_path / "native")
        convert(tmp_path / "back", tmp_path / "again")
        assert_same_bits(weights(tmp_path / "again"), weights(tmp_path / "ours"))
        assert fields(tmp_path / "again") == fields(tmp_path / "ours")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, tmp_path):
    native = save_native(tmp_path / "native", "gpt2", activation_function=activation)
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(2, 9, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(bias, tmp_path):
    arguments = {"n_layer": 2, "n_head": 3, "n_embd": 21, "block_size": 32, "vocab_size": 77, "bias": bias}
    native = NanoGPT(**arguments)
    strengthen(native)
    stored = {f"_orig_mod.{name}": tensor for name, tensor in native.state_dict().items()}
    (tmp_path / "native").mkdir()
    optimizer = torch.optim.AdamW(native.parameters()).state_dict()
    state = {"model": stored, "model_args": arguments | {"dropout": 0.1}, "optimizer": optimizer, "iter_num": 5}
    torch.save(state, tmp_path / "native/ckpt.pt")

    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(2, 32, high=77)
    assert_close(ours(ids).logits, native(ids))
    assert ours.config.residual_dropout == ours.config.attention_dropout == ours.config.embedding_dropout == 0.1
    assert verify(tmp_path / "ours", tmp_path / "native", "nanogpt")["random tokens"].relative < 1e-5

    export(tmp_path / "ours", tmp_path / "back", "nanogpt")
    back = torch.load(tmp_path / "back/ckpt.pt", weights_only=True)
    assert back["model_args"] == state["model_args"]
    assert_same_bits(back["model"], native.state_dict())
    convert(tmp_path / "back", tmp_path / "again")
    assert_same_bits(weights(tmp_path / "again"), weights(tmp_path / "ours"))


@pytest.mark.parametrize("sizes", [{"model_type": "gpt-nano"}, {"n_head": 3, "model_type": None}])
def test_mingpt(sizes, tmp_path):
    tanh = lambda: nn.GELU(approximate="tanh")  # noqa: E731
    native = NanoGPT(2, 3, 48, block_size=16, vocab_size=77, bias=True, tied=False, act=tanh)
    strengthen(native)
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(16, 16).tril()[None, None] for layer in range(2)}
    (tmp_path / "native").mkdir()
    torch.save(native.state_dict() | masks, tmp_path / "native/model.pt")
    settings = {"system": {"seed": 3407}, "model": {"n_layer": None, "vocab_size": None, **sizes}}
    (tmp_path / "native/config.json").write_text(json.dumps(settings))

    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(2, 16, high=77)
    assert_close(ours(ids).logits, native(ids))
    assert verify(tmp_path / "ours", tmp_path / "native", "mingpt")["random tokens"].relative < 1e-5
    export(tmp_path / "ours", tmp_path / "back", "mingpt")
    assert_same_bits(torch.load(tmp_path / "back/model.pt"), native.state_dict() | masks)
    assert fields(tmp_path / "back")["system"] == settings["system"]


def test_nanogpt_becomes_a_gpt2(tmp_path):
    """From one family to another, where both can say it."""
    arguments = {"n_layer": 1, "n_head": 2, "n_embd": 12, "block_size": 16, "vocab_size": 50, "bias": True}
    native = NanoGPT(**arguments)
    (tmp_path / "native").mkdir()
    torch.save({"model": native.state_dict(), "model_args": arguments}, tmp_path / "native/ckpt.pt")
    export(convert(tmp_path / "native", tmp_path / "ours"), tmp_path / "gpt2", "gpt2")
    ids = random_ids(1, 16, high=50)
    assert_close(GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")(ids).logits, native(ids))


@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("gpt2", lambda: GPT2LMHeadModel(GPT2Config())),
        (
            "gpt_neox",  # Pythia 160M
            lambda: GPTNeoXForCausalLM(
                GPTNeoXConfig(
                    vocab_size=50304,
                    hidden_size=768,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                    intermediate_size=3072,
                    eos_token_id=0,
                )
            ),
        ),
    ],
)
def test_real_sizes(family, model, tmp_path):
    model().to(torch.float16).save_pretrained(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "ours", max_shard_size="100MB")
    differences = verify(tmp_path / "ours", tmp_path / "native", family)
    assert differences["random tokens"].relative <= 1e-5
    export(tmp_path / "ours", tmp_path / "back", family)
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "native"))
    assert fields(tmp_path / "back") == fields(tmp_path / "native")


# --- what checkpoints look like in the world -----------------------------------------------------------------------


@pytest.fixture
def gpt2(tmp_path):
    """A native GPT-2, in the folder `native`."""
    return save_native(tmp_path / "native", "gpt2")


def rewrite(folder, change):
    """Store other tensors in a folder of one file."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


@families
def test_the_bare_decoder_of_a_tied_model(family, tmp_path):
    """As GPT-2 itself lies on the Hub: without the prefix of the model with a head, and with computed masks."""
    native = save_native(tmp_path / "native", family, tie_word_embeddings=True)
    prefix = FAMILIES[family].bare_prefix
    masks = {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(tmp_path / "native", lambda old: {n.removeprefix(prefix): tensor for n, tensor in old.items()} | masks)
    if family == "gptj":  # its head has a bias of its own
        with pytest.raises(ValueError, match=r"lm_head\.bias .* is missing"):
            rewrite(tmp_path / "native", lambda old: {n: old[n] for n in old if n != "lm_head.bias"})
            convert(tmp_path / "native", tmp_path / "ours")
        return
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(1, 9, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)


def test_mixtral_as_transformers_holds_it(tmp_path):
    native = native_model("mixtral")
    native.save_pretrained(tmp_path / "native", save_original_format=False)
    assert any("gate_up_proj" in name for name in weights(tmp_path / "native"))
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(1, 9, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)


def test_gpt_neox_with_its_head_by_the_name_of_the_module(tmp_path):
    native = save_native(tmp_path / "native", "gpt_neox", tie_word_embeddings=False)
    rewrite(tmp_path / "native", lambda old: {name.replace("embed_out", "lm_head"): old[name] for name in old})
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    assert torch.equal(ours.lm_head.weight, native.lm_head.weight)


def test_gpt_oss_as_it_was_published(tmp_path):
    """Experts of four bits become the bfloat16 values that they stand for, exactly."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    native = save_native(tmp_path / "native", "gpt_oss", **sizes)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    generator = torch.Generator().manual_seed(0)

    def pack(old):
        new = {}
        for name, tensor in old.items():
            if not name.endswith(("gate_up_proj", "down_proj")):
                new[name] = tensor
                continue
            experts, rows, columns = tensor.shape
            codes = torch.randint(16, (experts, columns, rows // 32, 32), generator=generator)
            scales = torch.randint(120, 128, (experts, columns, rows // 32), generator=generator)
            new[f"{name}_blocks"] = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
            new[f"{name}_scales"] = scales.to(torch.uint8)
            meant = values[codes] * 2.0 ** (scales[..., None] - 127)
            native.get_parameter(name).data = meant.flatten(2).transpose(1, 2).contiguous()
        return new

    rewrite(tmp_path / "native", pack)
    settings = fields(tmp_path / "native") | {"quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "native/config.json").write_text(json.dumps(settings))
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"), dtype=torch.float32)
    ids = random_ids(2, 9, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)
    export(tmp_path / "ours", tmp_path / "back", "gpt_oss")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    assert_same_bits(dict(again.state_dict()), dict(native.state_dict()))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(gpt2, tmp_path, sharded, zipped):
    tensors = weights(tmp_path / "native")
    (tmp_path / "native/model.safetensors").unlink()
    if sharded:
        names = sorted(tensors)
        files = {"a.bin": names[:5], "b.bin": names[5:]}
        index = {"weight_map": {name: file for file, names in files.items() for name in names}}
        (tmp_path / "native/pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        files = {"pytorch_model.bin": list(tensors)}
    for file, names in files.items():
        part = {name: tensors[name] for name in names}
        torch.save(part, tmp_path / "native" / file, _use_new_zipfile_serialization=zipped)
    export(convert(tmp_path / "native", tmp_path / "ours"), tmp_path / "back", "gpt2")
    assert_same_bits(weights(tmp_path / "back"), tensors)


def test_safetensors_come_before_pickles(gpt2, tmp_path):
    (tmp_path / "native/pytorch_model.bin").write_bytes(b"never opened")
    convert(tmp_path / "native", tmp_path / "ours")


@families
def test_shards_in_and_out(family, tmp_path):
    native = native_model(family)
    native.save_pretrained(tmp_path / "native", max_shard_size="4KB")
    convert(tmp_path / "native", tmp_path / "ours", max_shard_size="3KB")
    export(tmp_path / "ours", tmp_path / "back", family, max_shard_size="5KB")
    for folder in ("native", "ours", "back"):
        assert len(list((tmp_path / folder).glob("*.safetensors"))) > 1
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "native"))
    ids = random_ids(1, 9, high=native.config.vocab_size)
    assert_close(GPTForCausalLM.from_pretrained(tmp_path / "ours")(ids).logits, native(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_stay(dtype, tmp_path):
    native_model("llama").to(dtype).save_pretrained(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "ours")
    assert GPTConfig.from_pretrained(tmp_path / "ours").dtype == dtype
    export(tmp_path / "ours", tmp_path / "back", "llama")
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "native"))
    assert fields(tmp_path / "back") == fields(tmp_path / "native")


def test_the_folder_is_whole(gpt2, tmp_path):
    """A stranger can load it: code, and the classes that the Auto classes need."""
    (tmp_path / "native/generation_config.json").write_text('{"temperature": 0.3}')
    convert(tmp_path / "native", tmp_path / "ours")
    assert {"modeling_gpt.py", "configuration_gpt.py", "moe.py"} <= {
        file.name for file in (tmp_path / "ours").iterdir()
    }
    assert fields(tmp_path / "ours")["auto_map"]["AutoModelForCausalLM"] == "modeling_gpt.GPTForCausalLM"
    assert GPTForCausalLM.from_pretrained(tmp_path / "ours").generation_config.temperature == 0.3
    assert not list(tmp_path.glob("*.partial"))


def test_a_changed_model_goes_back_where_the_change_allows(gpt2, tmp_path):
    """What was kept aside from the native configuration does not overrule a change."""
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ours.resize_token_embeddings(ours.config.vocab_size + 3)
    ours.config.residual_dropout = 0.4
    ours.save_pretrained(tmp_path / "changed")
    export(tmp_path / "changed", tmp_path / "back", "gpt2")
    back = GPT2LMHeadModel.from_pretrained(tmp_path / "back")
    ids = random_ids(1, 9, high=gpt2.config.vocab_size)
    assert_close(back(ids).logits, ours(ids).logits)
    assert back.config.resid_pdrop == 0.4


@pytest.mark.parametrize(
    ("family", "beside", "fields"),
    [
        ("llama", {"partial_rotary_factor": 0.5}, {"head_dim": 8, "rope_parameters": ROPE[0]}),
        ("llama", {"original_max_position_embeddings": 12}, {"head_dim": 8, "rope_parameters": ROPE[4]}),
        ("mixtral", {}, {"head_dim": 8, "rope_parameters": ROPE[0] | {"partial_rotary_factor": 0.5}}),
        ("gpt_oss", {}, {"head_dim": 8, "rope_parameters": ROPE[0] | {"partial_rotary_factor": 0.5}}),
        ("gpt_neo", {"attention_layers": ["global"] * 2}, {"attention_types": [[["local"], 2]], "num_layers": 2}),
        ("llama", {"pad_token_id": -1}, {}),
    ],
)
def test_what_config_json_says_twice_or_to_no_effect(family, beside, fields, tmp_path):
    """The native class decides what counts."""
    save_native(tmp_path / "native", family, **fields)
    stored = json.loads((tmp_path / "native/config.json").read_text()) | beside
    (tmp_path / "native/config.json").write_text(json.dumps(stored))
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "native", experts_implementation="eager")
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(2, 30, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)
    export(tmp_path / "ours", tmp_path / "back", family)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back", experts_implementation="eager")
    assert torch.equal(back(ids).logits, native(ids).logits)


def test_a_scale_beyond_all_numbers_in_mxfp4():
    blocks, scales = torch.full((1, 2, 1, 16), 0x77, dtype=torch.uint8), torch.full((1, 2, 1), 255, dtype=torch.uint8)
    with pytest.raises(ValueError, match="MXFP4 hold NaN or infinity"):
        MXFP4.to_ours([blocks, scales], None)


# --- what cannot be expressed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True"),
        ("gpt2", {"activation_function": "xielu"}, "activation_function='xielu': expected one of"),
        ("gpt_neox", {"hidden_act": "prelu"}, "hidden_act='prelu': expected one of"),
        ("gpt_neo", {"window_size": 1}, "window_size=1: expected an integer of at least 2"),
        ("gptj", {"rotary_dim": 64}, "rotary_dim=64: expected 2 to"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "base": 7}}, "base is unknown"),
        ("openai-gpt", {"afn": "mish"}, "afn='mish': expected one of gelu, relu"),
    ],
)
def test_native_features_that_we_lack_are_refused_by_name(family, fields, message, tmp_path):
    save_native(tmp_path / "native", family)
    settings = json.loads((tmp_path / "native/config.json").read_text()) | fields
    (tmp_path / "native/config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "native", tmp_path / "ours")
    assert not list(tmp_path.glob("ours*"))


def test_other_quantised_weights_are_refused(gpt2, tmp_path):
    settings = fields(tmp_path / "native") | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "native/config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="quantization_config: weights quantised by gptq"):
        convert(tmp_path / "native", tmp_path / "ours")


@pytest.mark.parametrize(
    ("variant", "family", "message"),
    [
        ("learned", "gpt_neox", "position_embedding_type='learned'"),
        ("default", "gpt2", "position_embedding_type='rope'"),
        ("post_norm", "llama", "norm_type='layer_norm'|norm_position='post'"),
        ("grouped", "gpt_neox", "num_key_value_heads=2 cannot be expressed by gpt_neox, which has 4"),
        ("llama", "llama", "qk_norm=True"),
        ("banded", "gpt_neox", "attention_patterns="),
        ("mixtral", "llama", "mlp_layer_types="),
        ("mixtral", "mixtral", "mlp_layer_types=|moe_intermediate_size"),
        ("gpt_oss", "mixtral", "attention_bias=True"),
        ("partial_rotary", "llama", "rope_parameters=.*partial_rotary_factor"),
        ("bare", "opt", "attention_bias=False|attention_output_bias=True"),
    ],
)
def test_features_that_a_family_lacks_are_refused_by_name(variant, family, message, tmp_path):
    make_model(variant).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "ours", tmp_path / "native", family)
    assert not list(tmp_path.glob("native*"))


@pytest.mark.parametrize("family", NATIVE)
def test_no_family_has_strided_layers(family, tmp_path):
    save_native(tmp_path / "native", family)
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    set_attention_patterns(ours, "strided", attention_stride=4).save_pretrained(tmp_path / "strided")
    with pytest.raises(ValueError, match=r"attention_patterns=\['strided'.* cannot be expressed"):
        export(tmp_path / "strided", tmp_path / "back", family)


def test_new_patterns_go_back_into_a_family_that_has_them(tmp_path):
    save_native(tmp_path / "native", "gpt_neo", attention_types=[[["global"], 2]], num_layers=2)
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    local = set_attention_patterns(ours, {1: "banded"}, sliding_window=4)
    local.save_pretrained(tmp_path / "local")
    native = AutoModelForCausalLM.from_pretrained(export(tmp_path / "local", tmp_path / "back", "gpt_neo"))
    assert native.config.attention_layers == ["global", "local"]
    ids = random_ids(2, 20, high=native.config.vocab_size)
    assert_close(local(ids).logits, native(ids).logits)


@pytest.mark.parametrize("rope", [*ROPE, longrope(8)], ids=lambda rope: rope["rope_type"])
def test_every_rope_type_beyond_its_original_length(rope, tmp_path):
    native = save_native(tmp_path / "native", "llama", head_dim=8, rope_parameters=rope)
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(2, 40, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)
