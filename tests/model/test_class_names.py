"""transformers, accelerate and PEFT know the heads and their subclasses by name: the loss, the task, the blocks."""

import pytest
import torch
import transformers
from accelerate import FullyShardedDataParallelPlugin, infer_auto_device_map
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from peft import LoraConfig, get_peft_model
from stock_trainer import arguments
from tiny import make_model, random_ids
from torch.distributed.fsdp import fully_shard
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modelcard import TASK_MAPPING
from transformers.models.auto import modeling_auto
from wrapped import process_group

from hf_gpt import GPTForCausalLM
from hf_gpt.model.class_names import CLASS_NAMES
from hf_gpt.model.modeling_gpt import AUTO_CLASSES
from hf_gpt.tokenization import load_tokenizer

HEADS = {name: head for name, head in AUTO_CLASSES.items() if name != "AutoModel"}
IDS = random_ids(2, 6)
LABELS = {
    "AutoModelForCausalLM": {"labels": IDS},
    "AutoModelForSequenceClassification": {"labels": torch.tensor([0, 1])},
    "AutoModelForTokenClassification": {"labels": IDS % 2},
    "AutoModelForQuestionAnswering": {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([2, 3])},
    "AutoModelForMultipleChoice": {"labels": torch.tensor([0, 0])},
}


def subclass(base):
    """Returns a subclass whose name says nothing."""
    return type("Mine", (base,), {})


def sharded_class(base):
    """Returns a class with the name that FSDP 2 gives to the class of a model that it splits."""
    return type(f"FSDP{base.__name__}", (base,), {})


def rows_of(name, ids=IDS):
    return {"input_ids": ids[:, None] if "MultipleChoice" in name else ids}


@pytest.mark.parametrize("name", HEADS)
def test_a_subclass_has_the_loss_of_its_head(name):
    inputs = rows_of(name) | LABELS[name]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    expected, model = make_model(model_class=HEADS[name]), make_model(model_class=subclass(HEADS[name]))
    assert torch.equal(model(**inputs).loss, expected(**inputs).loss)
    assert torch.equal(model.train()(**inputs).loss, expected.train()(**inputs).loss)


def test_a_loss_function_of_the_user_precedes():
    model = make_model(model_class=subclass(GPTForCausalLM))
    model.loss_function = lambda logits, labels, **_: logits.new_tensor(7.0)
    assert model(IDS, labels=IDS).loss == 7


def smoothed_loss(logits, labels, smoothing):
    """Label smoothing of shifted labels, -100 ignored, in float64."""
    logits, targets = logits[:, :-1].double().flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)


WRAPPED = {
    "plain": lambda model: model,
    "peft": lambda model: get_peft_model(model, LoraConfig(target_modules=["q_proj"])),
    "subclass": lambda model: convert(model, subclass),
    "subclass under peft": lambda model: WRAPPED["peft"](WRAPPED["subclass"](model)),
    "sharded": lambda model: convert(model, sharded_class),
}


def convert(model, change):
    model.__class__ = change(type(model))
    return model


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("variant", ["learned", "llama", "mixtral"])
def test_label_smoothing_of_the_trainer_shifts_the_labels(tmp_path, variant, wrapped):
    labels = IDS.clone()
    labels[0, :3] = -100
    model = WRAPPED[wrapped](make_model(variant))
    trainer = transformers.Trainer(model, arguments(tmp_path, label_smoothing_factor=0.1))
    loss = trainer.compute_loss(model, {"input_ids": IDS, "labels": labels})
    with torch.no_grad():
        expected = smoothed_loss(make_model(variant)(IDS).logits, labels, 0.1)
    assert torch.allclose(loss.double(), expected, rtol=1e-5)


def test_the_code_of_a_checkpoint_adds_its_names(tmp_path, monkeypatch):
    """Also twice, from two folders."""
    folders = (tmp_path / "one", tmp_path / "two")
    for folder in folders:
        make_model().save_pretrained(folder)
    for names in CLASS_NAMES.values():
        for key in [key for key in names if key.startswith("hf_gpt")]:
            monkeypatch.delitem(names, key)
    for folder in folders:
        remote = get_class_from_dynamic_module("modeling_gpt.GPTForCausalLM", folder)
        assert remote is not GPTForCausalLM
        for name, names in CLASS_NAMES.items():
            assert names["hf_gpt"] == AUTO_CLASSES[name].__name__


@pytest.mark.parametrize("name", HEADS)
def test_the_auto_classes_read_their_tables_as_before(name):
    mapping = getattr(transformers, name)._model_mapping
    assert mapping._model_mapping is CLASS_NAMES[name]
    assert len(mapping) == len(mapping.keys()) == len(mapping.values()) == len(mapping.items())
    assert list(mapping.values()).count(HEADS[name]) == 1


def test_a_user_class_named_like_a_model_type_replaces_none():
    before = dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    type("gpt2", (GPTForCausalLM,), {})
    after = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert {name: after[name] for name in before} == before


SUPPORTED = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}


@pytest.mark.parametrize("task", SUPPORTED)
def test_pipelines_know_a_subclass(task, caplog):
    model = make_model(model_class=subclass(HEADS[SUPPORTED[task]]))
    with caplog.at_level("ERROR"):
        transformers.pipeline(task, model=model, tokenizer=load_tokenizer())
    assert "is not supported" not in caplog.text


@pytest.mark.parametrize("task", SUPPORTED)
def test_model_cards_state_the_task(task):
    assert HEADS[SUPPORTED[task]].__name__ in TASK_MAPPING[task].values()


def test_a_model_names_the_class_of_its_blocks(variant):
    """FSDP and device maps look for every class that is named, and raise if one is missing."""
    for model_class in AUTO_CLASSES.values():
        model = make_model(variant, model_class)
        block = type(model.base_model.layers[0])
        assert model._no_split_modules == {block.__name__}
        plugin = FullyShardedDataParallelPlugin(fsdp_version=1, auto_wrap_policy="transformer_based_wrap")
        plugin.set_auto_wrap_policy(model)
        assert plugin.auto_wrap_policy.keywords == {"transformer_layer_cls": {block}}
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        is_wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
        assert [module for module in model.modules() if is_wrapped(module)] == list(model.base_model.layers)


@pytest.mark.parametrize("variant", ["llama", "mixtral", "gpt_oss"])
def test_a_sharded_decoder_records_its_outputs(variant):
    """FSDP 2 changes the class of each module that it splits."""
    fields = {"tie_word_embeddings": False, "router_aux_loss_coef": 0.5}
    model, expected = (make_model(variant, attention="eager", **fields).train() for _ in range(2))
    with process_group():
        for part in (model.model, model):
            fully_shard(part)
        found = model(IDS, labels=IDS, output_hidden_states=True, output_attentions=True)
    wanted = expected(IDS, labels=IDS, output_hidden_states=True, output_attentions=True)
    assert torch.allclose(found.loss, wanted.loss)
    assert len(found.hidden_states) == len(wanted.hidden_states) == 3
    assert len(found.attentions) == 2
    if variant != "llama":
        assert torch.allclose(found.aux_loss, wanted.aux_loss)


def test_a_device_map_splits_no_block(variant):
    model = make_model(variant)
    size = sum(tensor.nbytes for tensor in model.model.layers[0].state_dict().values())
    devices = infer_auto_device_map(
        model, {0: 3 * size // 2, "cpu": 10**9}, no_split_module_classes=model._no_split_modules
    )
    assert not [name for name in devices if "layers." in name and name.count(".") > 2]
