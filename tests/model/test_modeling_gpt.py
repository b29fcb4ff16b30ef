"""The decoder and its heads: inputs, outputs, gradients, compilation and export."""

import copy
import warnings

import pytest
import torch
from peft import AdaLoraConfig, C3AConfig, GraloraConfig, get_peft_model
from snapshots import changes, state_of, with_hooks
from threads import MODELS, in_threads
from tiny import TINY, make_config, make_model, random_ids
from torch import nn
from torch.nn.utils import parametrize

from hf_gpt import (
    GPTForCausalLM,
    GPTForMultipleChoice,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
)
from hf_gpt.compatibility import enable_activation_checkpointing

HEADS = [GPTForSequenceClassification, GPTForTokenClassification, GPTForQuestionAnswering, GPTForMultipleChoice]


@pytest.mark.parametrize("inputs", [{}, {"input_ids": random_ids(1, 3), "inputs_embeds": torch.zeros(1, 3, 32)}])
def test_both_or_neither_input_raises(inputs):
    with pytest.raises(ValueError, match="expected exactly one of input_ids and inputs_embeds"):
        make_model()(**inputs)


@pytest.mark.parametrize("token", [-1, TINY["vocab_size"]])
def test_token_ids_outside_the_vocabulary_raise(token):
    with pytest.raises(ValueError, match=r"input_ids from .*: expected 0 to 98, by vocab_size=99"):
        make_model()(torch.tensor([[5, token]]))


def test_inputs_embeds_equal_input_ids(variant):
    model, ids = make_model(variant), random_ids(2, 5)
    embeds = model.get_input_embeddings()(ids)
    assert embeds.shape[-1] == model.config.embedding_size
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)


def test_logits_to_keep(variant):
    model, ids = make_model(variant), random_ids(2, 6)
    expected = model(ids).logits
    for logits_to_keep, positions in [(1, [5]), (3, [3, 4, 5]), (torch.tensor([0, 4]), [0, 4])]:
        assert torch.allclose(model(ids, logits_to_keep=logits_to_keep).logits, expected[:, positions], atol=1e-6)


def test_hidden_states_and_attentions(variant):
    model, ids = make_model(variant, attention="eager"), random_ids(2, 6)
    outputs = model(ids, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in outputs.hidden_states[:-1]] == [(2, 6, 32)] * 2
    assert outputs.hidden_states[-1].shape == (2, 6, model.config.embedding_size)
    assert [probabilities.shape for probabilities in outputs.attentions] == [(2, 4, 6, 6)] * 2
    for probabilities in outputs.attentions:
        if model.config.attention_sinks:
            assert (probabilities.sum(-1) < 1).all()
        else:
            assert torch.allclose(probabilities.sum(-1), torch.ones(2, 4, 6))
        assert not probabilities.triu(1).any()


def test_embeddings_can_be_resized(variant, tmp_path):
    model, ids = make_model(variant), random_ids(1, 4)
    before = model(ids).logits
    model.resize_token_embeddings(120)
    assert model.config.vocab_size == 120
    assert torch.allclose(model(ids).logits[..., :99], before, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert torch.allclose(GPTForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits, atol=1e-6)


def test_tied_weights_are_one_tensor():
    tied, untied = make_model(), make_model(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@pytest.mark.parametrize("field", ["embedding_dropout", "residual_dropout", "attention_dropout"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dropout_applies_only_in_training(field, attention):
    model, ids = make_model(attention=attention, **{field: 0.5}), random_ids(1, 8)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(model(ids).logits, make_model(attention=attention)(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("model_class", HEADS)
def test_classifier_dropout_applies_only_in_training(model_class):
    model = make_model(model_class=model_class, classifier_dropout=0.5, pad_token_id=0)
    ids = random_ids(1, 2, 8) if model_class is GPTForMultipleChoice else random_ids(1, 8)
    assert torch.equal(model(ids)[0], model(ids)[0])
    model.train()
    assert not all(torch.equal(model(ids)[0], model(ids)[0]) for _ in range(5))


def test_dropout_of_0_adds_no_module():
    assert not [module for module in make_model().modules() if isinstance(module, nn.Dropout)]


def test_layerdrop_skips_whole_blocks_in_training():
    model, ids = make_model(layerdrop=0.5, num_hidden_layers=4), random_ids(1, 8)
    reference = make_model(num_hidden_layers=4)
    assert torch.equal(model(ids).logits, reference(ids).logits)
    model.train()
    runs = [len(list(model.model.blocks_to_run())) for _ in range(200)]
    assert 1.6 < sum(runs) / len(runs) < 2.4
    model(ids, labels=ids).loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(variant, reentrant):
    ids = random_ids(2, 8)
    gradients = []
    for checkpointing in (False, True):
        # the hooks that record router logits see no graph under reentrant checkpointing
        model = make_model(variant, **({"router_aux_loss_coef": 0} if reentrant else {})).train()
        if checkpointing:
            enable_activation_checkpointing(model, {"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for expected, actual in zip(*gradients, strict=True):
        assert torch.allclose(actual, expected, atol=1e-6)


def test_compiles_as_one_graph(variant):
    model, ids = make_model(variant), random_ids(2, 8)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for arguments in ({}, {"attention_mask": mask}):
        actual = compiled(ids, labels=ids, use_cache=False, **arguments)
        expected = model(ids, labels=ids, use_cache=False, **arguments)
        seen = arguments.get("attention_mask", torch.ones_like(ids)).bool()
        assert torch.allclose(actual.logits[seen], expected.logits[seen], atol=1e-5)
        actual.loss.backward()


@pytest.mark.parametrize("variant", ["banded", "strided", "fixed"])
def test_a_compiled_model_accepts_other_lengths(variant):
    model = make_model(variant)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for length in (9, 13):
        ids = random_ids(2, length)
        assert torch.allclose(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits, atol=1e-5)


def test_exports(variant):
    model, ids = make_model(variant), random_ids(2, 8)
    mask = torch.ones_like(ids)
    arguments = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    length = torch.export.Dim("length", min=2, max=TINY["max_position_embeddings"])
    shapes = {"input_ids": {1: length}, "attention_mask": {1: length}, "use_cache": None}
    exported = torch.export.export(model, (), arguments, dynamic_shapes=shapes).module()
    for size in (8, 13):
        longer = {"input_ids": random_ids(2, size), "attention_mask": torch.ones(2, size, dtype=torch.long)}
        actual = exported(**longer, use_cache=False).logits
        assert torch.allclose(actual, model(**longer).logits, atol=1e-5)


def test_half_precision_is_close(variant):
    config, ids = make_config(variant), random_ids(2, 8)
    everyone = {} if config.num_local_experts is None else {"num_experts_per_tok": config.num_local_experts}
    model = make_model(variant, **everyone)  # all experts are chosen, because rounding may change a choice
    expected = model(ids).logits
    actual = model.to(torch.bfloat16)(ids).logits.float()
    assert (actual - expected).norm() < 0.05 * expected.norm()


def test_every_parameter_learns(variant):
    model, ids = make_model(variant).train(), random_ids(4, 16)
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("model_class", HEADS)
def test_heads_learn(model_class, variant):
    model = make_model(variant, model_class=model_class, num_labels=3, pad_token_id=0).train()
    ids = random_ids(4, 2, 6) if model_class is GPTForMultipleChoice else random_ids(4, 6)
    targets = torch.tensor([0, 1, 0, 1])
    labels = {"labels": targets}
    if model_class is GPTForTokenClassification:
        labels = {"labels": targets[:, None].repeat(1, 6)}
    if model_class is GPTForQuestionAnswering:
        labels = {"start_positions": targets, "end_positions": targets + 2}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(ids, **labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("model_class", [GPTForSequenceClassification, GPTForMultipleChoice])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_finds_the_last_token(model_class, side):
    """By the attention mask or the padding token: a padded row has the scores of the row alone."""
    model = make_model(model_class=model_class, pad_token_id=0)
    ids = random_ids(2, 7)
    cut = slice(0, 3) if side == "left" else slice(-3, None)
    mask = torch.ones_like(ids)
    ids[0, cut] = mask[0, cut] = 0
    alone = ids[0, mask[0].bool()][None]
    if model_class is GPTForMultipleChoice:
        ids, mask, alone = ids[None], mask[None], alone[None]
    expected = model(alone).logits.flatten()
    size = expected.numel()
    assert torch.allclose(model(ids, attention_mask=mask).logits.flatten()[:size], expected, atol=1e-5)
    if side == "right":  # left padding is visible without a mask
        assert torch.allclose(model(ids).logits.flatten()[:size], expected, atol=1e-5)


def test_pooling_several_rows_without_mask_raises():
    model = make_model(model_class=GPTForSequenceClassification)
    model(random_ids(1, 4))
    with pytest.raises(ValueError, match="attention_mask=None and pad_token_id=None"):
        model(random_ids(2, 4))


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("regression", torch.tensor([0.5, -1.0])),
        ("single_label_classification", torch.tensor([1, 0])),
        ("multi_label_classification", torch.tensor([[1.0, 0.0], [1.0, 1.0]])),
    ],
)
def test_problem_types(problem, labels):
    num_labels = 1 if problem == "regression" else 2
    model = make_model(model_class=GPTForSequenceClassification, pad_token_id=0, num_labels=num_labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(random_ids(2, 4), labels=labels).loss.backward()
    assert model.config.problem_type == problem


def test_empty_input_raises():
    with pytest.raises(ValueError, match=r"input_ids of shape \(2, 0\): expected \(B, T\), and at least one token"):
        make_model("mixtral")(torch.zeros(2, 0, dtype=torch.long))


def as_plain_attributes(module, name):
    """As in replicas of nn.DataParallel and under FSDP 1 without original parameters."""
    value = module._parameters.pop(name)
    setattr(module, name, value * 1.0)


def as_parametrization(module, name):
    parametrize.register_parametrization(module, name, nn.Identity())


@pytest.mark.parametrize("hold", [as_plain_attributes, as_parametrization])
def test_every_parameter_is_found_where_a_wrapper_holds_it(variant, hold):
    model, ids = make_model(variant, tie_word_embeddings=False).train(), random_ids(2, 11)
    expected = model(ids, labels=ids, use_cache=False)
    expected.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    held = make_model(variant, tie_word_embeddings=False).train()
    parameters = list(held.parameters())
    for module in list(held.modules()):
        for name in [name for name, value in module._parameters.items() if value is not None]:
            hold(module, name)
    found = held(ids, labels=ids, use_cache=False)
    found.loss.backward()
    assert torch.allclose(found.loss, expected.loss, rtol=1e-6)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def edit_in_place(module, inputs, output):
    if isinstance(output, torch.Tensor) and output.is_floating_point():
        return output.mul_(0.9)


def edit_copy(module, inputs, output):
    if isinstance(output, torch.Tensor) and output.is_floating_point():
        return output * 0.9


@pytest.mark.parametrize("classes", [nn.Linear, nn.Module, "global"], ids=["linear layers", "all modules", "global"])
def test_hooks_may_edit_outputs_in_place(variant, classes):
    """As steering hooks, nnsight and LoRA variants do."""
    ids, found = random_ids(2, 11), []
    for edit in (edit_in_place, edit_copy):
        model = make_model(variant, tie_word_embeddings=False).train()
        if classes == "global":
            handles = [nn.modules.module.register_module_forward_hook(edit)]
        else:
            handles = [each.register_forward_hook(edit) for each in model.modules() if isinstance(each, classes)]
        outputs = model(ids, labels=ids, use_cache=False)
        outputs.loss.backward()
        found.append([outputs.loss, *(parameter.grad for parameter in model.parameters())])
        for handle in handles:
            handle.remove()
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_logits_may_be_edited_in_place(variant):
    model, ids = make_model(variant).train(), random_ids(2, 11)
    logits = model(ids, use_cache=False).logits
    logits /= 0.7
    logits[..., 5] = -1e9
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", [AdaLoraConfig, C3AConfig, GraloraConfig])
@pytest.mark.parametrize("variant", ["default", "llama", "gpt_oss"])
def test_adapters_that_edit_outputs_in_place(variant, method):
    options = {
        AdaLoraConfig: {"total_step": 10, "tinit": 1, "tfinal": 1},
        C3AConfig: {"block_size": 8},
        GraloraConfig: {"r": 8, "gralora_k": 2},
    }[method]
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(make_model(variant), method(task_type="CAUSAL_LM", target_modules=targets, **options))
    ids = random_ids(2, 11)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)
    model.eval()
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        torch.testing.assert_close(model.merge_and_unload()(ids).logits, adapted, rtol=1e-3, atol=1e-3)


def test_linear_layers_are_of_the_class_that_tools_ask_for(variant):
    """bitsandbytes, fp8 and quantize_dynamic leave a subclass as it is, silently."""
    linear = [module for module in make_model(variant).modules() if isinstance(module, nn.Linear)]
    assert linear
    assert {type(module) for module in linear} == {nn.Linear}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamic_quantization_replaces_every_linear_layer(variant):
    model, ids = make_model(variant, tie_word_embeddings=False), random_ids(2, 11)
    names = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantized = torch.ao.quantization.quantize_dynamic(model)
    replaced = {name for name, module in quantized.named_modules() if "quantized" in type(module).__module__}
    assert names <= replaced
    with torch.no_grad():
        expected, found = model(ids).logits, quantized(ids).logits
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_training_with_a_special_token_outside_the_vocabulary_raises(name):
    """The Trainer copies those of the tokenizer before the first step; saving would fail after the training."""
    model, ids = make_model(), random_ids(2, 5)
    setattr(model.config, name, 99)
    with pytest.raises(ValueError, match=rf"^{name}=99: expected less than vocab_size=99"):
        model.train()(ids, labels=ids)
    model.resize_token_embeddings(100)
    assert model(ids, labels=ids).loss.isfinite()
    model.resize_token_embeddings(98)
    with pytest.raises(ValueError, match=rf"^{name}=99: expected less than vocab_size=98"):
        model(ids.clamp(max=97), labels=ids.clamp(max=97))


@pytest.mark.parametrize("variant", ["default", "mixtral"])
def test_a_loss_function_of_the_user_may_have_labels_of_any_shape(variant):
    model, ids = make_model(variant).train(), random_ids(2, 5)
    targets = torch.rand(2, 5, 99).softmax(dim=-1)  # as in distillation
    model.loss_function = lambda logits, labels, **_: nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(0, 1)
    )
    outputs = model(ids, labels=targets)
    expected = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten(0, 1))
    assert torch.allclose(getattr(outputs, "lm_loss", None) or outputs.loss, expected)


@pytest.mark.parametrize("patterns", [["dense", "banded"], ["banded", "banded"]])
def test_more_layers_than_attention_patterns(patterns):
    """PEFT's layer_replication and models that are merged from layers add blocks; like ones may be added."""
    model = make_model(attention_patterns=patterns, sliding_window=4)
    model.model.layers.extend(copy.deepcopy(model.model.layers))
    model.config.num_hidden_layers = 4
    if patterns == ["banded", "banded"]:
        assert model(random_ids(1, 9)).logits.isfinite().all()
        return
    with pytest.raises(ValueError, match=r"num_hidden_layers=4: .*attention_patterns \(has 2\).*layer_types"):
        model(random_ids(1, 9))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_early_exit_runs_the_first_blocks(layers):
    model, ids = make_model(num_hidden_layers=3), random_ids(2, 7)
    short = make_model(num_hidden_layers=layers)
    short.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model(ids, early_exit=layers).logits, short(ids).logits)
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize("layers", [0, -1, 4])
def test_an_early_exit_without_such_a_block_raises(layers):
    with pytest.raises(ValueError, match=rf"early_exit={layers}: expected 1 to 3, by num_hidden_layers=3"):
        make_model(num_hidden_layers=3)(random_ids(1, 4), early_exit=layers)


@pytest.mark.parametrize("model_name", MODELS)
def test_a_forward_pass_changes_nothing(model_name):
    """In training only the loads of routers with a bias, and gradients."""
    model, ids = with_hooks(MODELS[model_name]()), random_ids(2, 20)
    before = state_of(model)
    with torch.no_grad():
        first = model(ids[:, :9]).logits
        model(ids)
        model(ids, labels=ids)
        assert torch.equal(model(ids[:, :9]).logits, first)
    assert changes(before, state_of(model)) == []
    if model_name not in ("float16", "int8", "int4"):
        model.train()
        before = state_of(model)
        model(ids)
        model(ids, labels=ids)
        assert [name for name in changes(before, state_of(model)) if not name.endswith(".router: loads")] == []


@pytest.mark.parametrize("variant", ["deepseek", "gpt_oss", "sparse_transformer"])
def test_models_that_are_trained_in_threads(variant):
    """With gradient checkpointing, whose recomputation runs in the threads of autograd."""

    def gradients(thread):
        ids = random_ids(2, 9, seed=thread)
        models[thread](ids, labels=ids).loss.backward()
        return [parameter.grad for parameter in models[thread].parameters()]

    results = []
    for run in (in_threads, lambda work: [work(thread) for thread in range(8)]):
        models = [make_model(variant).train() for _ in range(8)]
        for model in models:
            enable_activation_checkpointing(model)
        results.append(run(gradients))
    for found, expected in zip(*results, strict=True):
        assert all(map(torch.equal, found, expected))
