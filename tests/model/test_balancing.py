"""Load balancing of experts: the measured load, the balancing losses, and the router bias."""

import copy
import gc
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_config, make_model, random_ids
from torch.nn.utils import parametrizations
from torch.optim.optimizer import _global_optimizer_post_hooks, register_optimizer_step_post_hook
from transformers import set_seed
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils import logging
from wrapped import WRAPPERS, process_group, replica

from hf_gpt import (
    GPTForCausalLM,
    GPTForMultipleChoice,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
)
from hf_gpt.compatibility import enable_activation_checkpointing
from hf_gpt.model.balancing import ROUTERS, measure_balance

EXPERTS, CHOSEN = 5, 2


def routed(batch=2, length=7, layers=3, seed=0, **fields):
    """Returns the router logits and the chosen experts of each layer, and a configuration."""
    generator = torch.Generator().manual_seed(seed)
    logits = tuple(2 * torch.randn(batch * length, EXPERTS, generator=generator) for _ in range(layers))
    config = make_config(num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, **fields)
    return logits, tuple(each.topk(CHOSEN).indices for each in logits), config


def definition(logits, indices, is_token, config):
    """Returns load, aux loss and z-loss, layer by layer and token by token, in float64."""
    loads, layers, squares = [], [], []
    for layer_logits, layer_indices in zip(logits, indices, strict=True):
        load, share = torch.zeros(EXPERTS), torch.zeros(EXPERTS, dtype=torch.float64)
        for token in is_token.nonzero().flatten():
            row = layer_logits[token].double()
            scores = (
                row.softmax(0) if config.router_score_function == "softmax" else row.sigmoid() / row.sigmoid().sum()
            )
            load[layer_indices[token]] += 1
            share += scores / scores.sum() / is_token.sum()
            squares.append(row.exp().sum().log() ** 2)
        loads.append(load)
        layers.append(EXPERTS * (load / is_token.sum() * share).sum())
    return torch.stack(loads), torch.stack(layers).mean(), torch.stack(squares).mean()


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_equals_the_definition(padding, function):
    logits, indices, config = routed(router_score_function=function)
    mask = None
    if padding is not None:
        mask = torch.ones(2, 7, dtype=torch.long)
        mask[1, slice(0, 3) if padding == "left" else slice(4, 7)] = 0
    is_token = torch.ones(14) if mask is None else mask.flatten()
    balance = measure_balance(logits, indices, mask, config)
    load, aux_loss, z_loss = definition(logits, indices, is_token, config)
    assert torch.equal(balance.tokens_per_expert, load)
    assert torch.allclose(balance.aux_loss.double(), aux_loss, rtol=1e-6)
    assert torch.allclose(balance.z_loss.double(), z_loss, rtol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_pooled_aux_loss_equals_that_of_transformers(padded):
    logits, indices, config = routed(router_aux_loss_type="pooled")
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    mask = mask if padded else None
    inputs = [each.clone().requires_grad_() for each in logits]
    theirs = load_balancing_loss_func(tuple(inputs), EXPERTS, CHOSEN, mask)
    expected = torch.autograd.grad(theirs, inputs)
    ours = measure_balance(tuple(inputs), indices, mask, config).aux_loss
    assert torch.allclose(ours, theirs, rtol=1e-6)
    for gradient, theirs in zip(torch.autograd.grad(ours, inputs), expected, strict=True):
        assert torch.allclose(gradient, theirs, atol=1e-7)


def test_layerwise_aux_loss_detects_imbalance_that_pooling_hides():
    """Two layers use opposite halves of the experts."""
    logits = torch.tensor([[9.0, 9.0, -9.0, -9.0]]).repeat(6, 1)
    config = {"num_local_experts": 4, "num_experts_per_tok": 2}
    both = (logits, -logits)
    indices = tuple(each.topk(2).indices for each in both)
    layerwise = measure_balance(both, indices, None, make_config(**config)).aux_loss
    pooled = measure_balance(both, indices, None, make_config(**config, router_aux_loss_type="pooled")).aux_loss
    assert torch.allclose(pooled, torch.tensor(2.0))  # k, the value of an even load
    assert torch.allclose(layerwise, torch.tensor(4.0))


def test_rows_of_padding_only():
    logits, indices, config = routed()
    balance = measure_balance(logits, indices, torch.zeros(2, 7, dtype=torch.bool), config)
    assert (balance.aux_loss, balance.z_loss) == (0, 0)
    assert not balance.tokens_per_expert.any()
    model, ids = make_model("deepseek", router_z_loss_coef=0.1).train(), random_ids(2, 5)
    labels = ids.clone()
    labels[:, :-1] = -100
    model(ids, attention_mask=torch.zeros_like(ids), labels=labels).loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_balancing_losses_are_added_in_training():
    coefficients = {"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.1}
    model, ids = make_model("mixtral", **coefficients), random_ids(2, 9)
    evaluated = model(ids, labels=ids)
    assert (evaluated.aux_loss, evaluated.z_loss, evaluated.lm_loss, evaluated.router_logits) == (None,) * 4
    requested = model(ids, labels=ids, output_router_logits=True)
    assert torch.allclose(requested.loss, evaluated.loss + 0.5 * requested.aux_loss + 0.1 * requested.z_loss)
    assert [logits.shape for logits in requested.router_logits] == [(18, 4)]
    trained = model.train()(ids, labels=ids)
    assert torch.allclose(trained.loss, requested.loss, rtol=1e-6)  # the loss in chunks, and that of the logits
    assert torch.allclose(trained.lm_loss, evaluated.loss, rtol=1e-6)
    assert trained.router_logits is None
    trained.loss.backward()
    model.config.router_aux_loss_coef = model.config.router_z_loss_coef = 0.0
    before = model.model.layers[0].mlp.router.weight.grad.clone()
    model.zero_grad()
    unbalanced = model(ids, labels=ids)
    assert torch.equal(unbalanced.loss, unbalanced.lm_loss)
    unbalanced.loss.backward()
    assert not torch.allclose(model.model.layers[0].mlp.router.weight.grad, before)


@pytest.mark.parametrize(
    ("head", "inputs"),
    [
        (GPTForSequenceClassification, {"labels": torch.tensor([0, 1])}),
        (GPTForTokenClassification, {"labels": torch.ones(2, 6, dtype=torch.long)}),
        (GPTForQuestionAnswering, {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([2, 3])}),
        (GPTForMultipleChoice, {"labels": torch.tensor([0, 0])}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_head_adds_the_balancing_losses(head, inputs):
    ids = random_ids(2, 6)
    mask = torch.ones_like(ids)
    if head is GPTForMultipleChoice:
        ids, mask = ids[:, None], mask[:, None]
    losses = []
    for coefficient in (0.0, 1.0):
        model = make_model("mixtral", head, router_aux_loss_coef=coefficient).train()
        losses.append(model(input_ids=ids, attention_mask=mask, **inputs).loss)
    causal = make_model("mixtral").train()
    causal.model.load_state_dict(model.model.state_dict())
    expected = causal(ids.flatten(0, -2)).aux_loss
    assert torch.allclose(losses[1] - losses[0], expected, atol=1e-5)


def test_balancing_losses_under_gradient_accumulation():
    """Micro-batches add up to one batch."""
    model, ids = make_model("mixtral", router_z_loss_coef=0.1).train(), random_ids(2, 8)
    full_batch = model(ids, labels=ids)
    parts = [
        model(row[None], labels=row[None], num_items_in_batch=14) for row in ids
    ]  # the first of 8 tokens is not predicted
    losses = [part.loss - 0.01 * part.aux_loss / 2 for part in parts]  # the aux loss is no sum over tokens
    assert torch.allclose(sum(losses), full_batch.loss - 0.01 * full_batch.aux_loss, rtol=1e-5)


def routers(model):
    return model.model.routers


def step(model, ids, **kwargs):
    model(ids, labels=ids, **kwargs).loss.backward()


def fused_head(model, **inputs):
    """The loss of trainers that call the decoder, and the output layer chunk by chunk (TRL)."""
    return model.get_output_embeddings()(model.base_model(**inputs, use_cache=False).last_hidden_state).sum()


FOREIGN_LOSSES = {
    "logits": lambda model, **inputs: model(**inputs).logits.sum(),
    "decoder": lambda model, **inputs: model.model(**inputs).last_hidden_state.sum(),
    "router logits": lambda model, **inputs: model.model(**inputs, output_router_logits=True).router_logits[0].sum(),
    "fused head": fused_head,
}


class TestBias:
    """`router_bias_update_rate`: load balancing without a loss."""

    @pytest.fixture
    def model(self):
        return make_model("deepseek", router_bias_update_rate=0.25).train()

    def test_moves_against_the_load_after_each_step(self, model):
        """Any training loop works: the load counts all micro-batches of the step."""
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        counted = torch.zeros(6)
        for seed in (1, 2, 3):
            ids = random_ids(2, 7, seed=seed)
            counted += model(ids).tokens_per_expert[0]
        (router,) = routers(model)
        assert not router.e_score_correction_bias.any()
        assert torch.equal(router.tokens_per_expert, counted)
        step(model, ids)
        counted += router.tokens_per_expert - counted
        optimizer.step()
        assert torch.equal(router.e_score_correction_bias, 0.25 * (counted.mean() - counted).sign())
        assert not router.tokens_per_expert.any()

    def test_padding_does_not_count(self, model):
        ids, mask = random_ids(2, 7), torch.ones(2, 7)
        mask[0, :4] = 0
        model(ids, attention_mask=mask)
        assert routers(model)[0].tokens_per_expert.sum() == 2 * 10

    def test_makes_the_load_even(self, model):
        """The router starts with ties and a learning rate of 0."""
        with torch.no_grad():
            routers(model)[0].weight.zero_()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        ids, loads = random_ids(8, 16), []
        for _ in range(40):
            loads.append(model(ids, labels=ids).tokens_per_expert[0])
            optimizer.step()
        assert loads[0].max() == 128  # ties choose the same experts for each token
        assert torch.stack(loads).sum(0).max() < 1.1 * torch.stack(loads).sum(0).mean()

    def test_does_not_move_in_evaluation_or_with_other_optimizers(self, model):
        ids = random_ids(2, 7)
        model.eval()(ids, labels=ids, output_router_logits=True)
        model.train().generate(ids, max_new_tokens=2, pad_token_id=0)
        assert not routers(model)[0].tokens_per_expert.any()
        step(model.train(), ids)
        other = torch.nn.Linear(2, 2)
        torch.optim.SGD(other.parameters(), lr=0.1).step()
        assert not routers(model)[0].e_score_correction_bias.any()

    def test_two_optimizers_of_one_router(self, model):
        """One step of both moves the bias once."""
        ids, (router,) = random_ids(2, 7), routers(model)
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
        step(model, ids)
        for optimizer in optimizers:
            optimizer.step()
        assert router.e_score_correction_bias.abs().max() == 0.25

    @pytest.mark.parametrize("change", ["freeze", "stop"])
    def test_does_not_move_with_frozen_weights_or_rate_0(self, change):
        rate = 0.0 if change == "stop" else 0.25
        model, ids = make_model("deepseek", router_bias_update_rate=rate).train(), random_ids(2, 7)
        (router,) = routers(model)
        router.e_score_correction_bias.copy_(torch.arange(6) / 10)
        if change == "freeze":
            router.weight.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step(model, ids)
        optimizer.step()
        assert torch.equal(router.e_score_correction_bias, torch.arange(6) / 10)

    def test_a_copied_model_has_its_own_bias(self, model):
        twin, ids = copy.deepcopy(model), random_ids(2, 7)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        step(twin, ids)
        optimizer.step()
        assert routers(twin)[0].e_score_correction_bias.any()
        assert not routers(model)[0].e_score_correction_bias.any()

    def test_every_copy_moves_once_and_leaves_nothing(self, model):
        """torch's hook is global, and one for all routers, which are known until they are garbage-collected."""
        gc.collect()
        before, ids, hooks = len(ROUTERS), random_ids(2, 7), list(_global_optimizer_post_hooks)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(copy.deepcopy(model))]
        assert len(ROUTERS) == before + len(copies)
        assert list(_global_optimizer_post_hooks) == hooks
        for twin in copies:
            (router,), optimizer = routers(twin), torch.optim.SGD(twin.parameters(), lr=0.1)
            for _ in range(2):
                step(twin, ids)
                load = router.tokens_per_expert.clone()
                expected = router.e_score_correction_bias + 0.25 * (load.mean() - load).sign()
                optimizer.step()
                assert torch.equal(router.e_score_correction_bias, expected)
                optimizer.zero_grad()
        assert not routers(model)[0].e_score_correction_bias.any()
        del copies, twin, router, optimizer
        gc.collect()
        assert len(ROUTERS) == before

    def test_models_that_come_and_go_while_an_optimizer_steps(self):
        """As in other threads, or by garbage collection: here inside the step."""
        others, steps = [make_model("deepseek") for _ in range(2)], []

        def come_and_go(optimizer, *_):
            others[:] = [make_model("deepseek")]
            gc.collect()
            steps.append(optimizer)

        handle = register_optimizer_step_post_hook(come_and_go)
        model = make_model("deepseek", router_bias_update_rate=0.25).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            step(model, random_ids(2, 7))
            optimizer.step()
        finally:
            handle.remove()
        assert steps == [optimizer]
        assert routers(model)[0].e_score_correction_bias.any()

    @pytest.mark.parametrize("foreign", FOREIGN_LOSSES)
    @pytest.mark.parametrize("variant", ["deepseek", "mixtral", "gpt_oss"])
    def test_moves_under_a_loss_that_is_computed_elsewhere(self, variant, foreign):
        """The loads are those of a head with labels, with padding."""
        ids, mask = random_ids(2, 7), torch.ones(2, 7, dtype=torch.long)
        mask[0, :4] = 0
        found = []
        for run in (lambda model, **inputs: model(**inputs, labels=ids).loss, FOREIGN_LOSSES[foreign]):
            model = make_model(variant, router_bias_update_rate=0.25).train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            run(model, input_ids=ids, attention_mask=mask).backward()
            loads = [router.tokens_per_expert for router in routers(model)]
            assert all(load.sum() == 10 * model.config.num_experts_per_tok for load in loads)
            optimizer.step()
            found.append((loads, [router.e_score_correction_bias for router in routers(model)]))
        for ours, expected in zip(*found, strict=True):
            assert all(map(torch.equal, ours, expected))
        assert all(bias.any() for bias in found[0][1])

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_recomputation_does_not_count(self, reentrant):
        """Also if layerdrop skips a layer whose choices backward has just made again."""
        fields = {"mlp_layer_types": ["sparse"] * 2, "num_hidden_layers": 2}
        model, ids = make_model("deepseek", **fields).train(), random_ids(2, 7)
        enable_activation_checkpointing(model, {"use_reentrant": reentrant})
        model.enable_input_require_grads()
        for _ in range(2):
            step(model, ids, use_cache=False)
        assert [router.tokens_per_expert.sum() for router in routers(model)] == [2 * 14 * 2] * 2
        model.config.layerdrop = 1.0
        model(ids, labels=ids, use_cache=False)
        assert [router.tokens_per_expert.sum() for router in routers(model)] == [2 * 14 * 2] * 2

    @pytest.mark.parametrize("wrapper", WRAPPERS)
    def test_moves_in_a_wrapped_model(self, wrapper):
        """A small step is not lost where FSDP casts buffers to bfloat16."""
        ids, biases = random_ids(2, 7), []
        with process_group():
            for wrap in (lambda model: model, WRAPPERS[wrapper]):
                model = make_model("deepseek", router_bias_update_rate=0.001).train()
                (router,) = routers(model)
                router.e_score_correction_bias.copy_(torch.arange(6) / 8)
                wrapped = wrap(model)
                optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
                for _ in range(2):
                    step(wrapped, ids)
                    optimizer.step()
                    optimizer.zero_grad()
                biases.append(router.e_score_correction_bias)
        assert torch.equal(*biases)
        assert not torch.equal(biases[0], torch.arange(6) / 8)

    @pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.orthogonal])
    def test_moves_with_a_parametrized_weight(self, change, model):
        (router,) = routers(model)
        change(router, "weight")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step(model, random_ids(2, 7))
        optimizer.step()
        assert router.e_score_correction_bias.abs().max() == 0.25

    def test_moves_in_a_router_that_an_adapter_saves(self, model):
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["router"])).train()
        optimizer = torch.optim.SGD(adapted.parameters(), lr=0.1)
        step(adapted, random_ids(2, 7))
        optimizer.step()
        frozen, trained = routers(model)
        assert not frozen.e_score_correction_bias.any()
        assert trained.e_score_correction_bias.abs().max() == 0.25

    def test_replicas_count_together(self, model):
        """nn.DataParallel trains copies; the optimizer holds the original."""
        rows, (router,), expected = random_ids(4, 7), routers(model), copy.deepcopy(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for part in rows.chunk(2):
            step(replica(model), part)
        step(expected, rows)
        assert torch.equal(router.tokens_per_expert, routers(expected)[0].tokens_per_expert)
        optimizer.step()
        assert router.e_score_correction_bias.any()

    def test_counts_all_processes(self, model, monkeypatch):
        """The sum is made once for a step, after the micro-batches."""
        elsewhere, calls = torch.tensor([0.0, 0, 0, 0, 0, 1e6]), []
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts: calls.append(counts.add_(elsewhere)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model.model(random_ids(2, 7)).last_hidden_state.sum().backward()
        assert not calls
        optimizer.step()
        assert len(calls) == 1
        assert torch.equal(routers(model)[0].e_score_correction_bias, torch.tensor([0.25] * 5 + [-0.25]))

    def test_no_wrapper_overwrites_the_loads(self, model):
        """DDP broadcasts all buffers before a forward pass."""
        step(model, random_ids(2, 7))
        assert [name.rpartition(".")[2] for name, _ in model.named_buffers() if "router" in name] == [
            "e_score_correction_bias"
        ]

    def test_counts_inside_a_compiled_graph(self, model):
        ids, (router,) = random_ids(2, 7), routers(model)
        compiled = torch.compile(model.model, backend="eager", fullgraph=True)
        for _ in range(3):
            compiled(ids)
        expected = copy.deepcopy(model)
        expected.model(ids)
        assert torch.equal(4 * router.tokens_per_expert, 3 * routers(expected)[0].tokens_per_expert)

    def test_functional_transforms_do_not_count(self, model):
        ids, (router,) = random_ids(2, 7), routers(model)
        model.set_experts_implementation("batched_mm")
        parameters = dict(model.named_parameters())

        def loss(parameters):
            return torch.func.functional_call(model, parameters, (ids,)).logits.sum()

        gradient = torch.func.grad(loss)(parameters)["model.norm.weight"]
        assert torch.allclose(gradient, torch.autograd.grad(loss(parameters), model.model.norm.weight)[0], atol=1e-4)
        assert router.tokens_per_expert.sum() == 14 * 2

    def test_changes_the_choice_but_not_the_shares(self, model):
        model.eval()
        (router,) = routers(model)
        tokens = torch.randn(9, 32)
        logits, shares, _ = router(tokens)
        router.e_score_correction_bias[:2] = 10
        _, forced, indices = router(tokens)
        assert torch.equal(indices.sort().values, torch.tensor([[0, 1]]).expand(9, 2))
        scores = logits.gather(1, indices).sigmoid()
        assert torch.allclose(forced, 1.5 * scores / scores.sum(1, keepdim=True))
        assert not torch.allclose(forced, shares)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_is_saved_and_remains_float32(self, model, dtype, tmp_path):
        routers(model)[0].e_score_correction_bias.copy_(torch.arange(6) * 0.123)
        model.save_pretrained(tmp_path)
        again = GPTForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        (router,) = routers(again)
        assert router.weight.dtype == dtype
        assert torch.equal(router.e_score_correction_bias, torch.arange(6) * 0.123)
        assert router.e_score_correction_bias.dtype == torch.float32
        assert not router.tokens_per_expert.any()
        cast = routers(model.to(dtype))[0]
        assert (cast.tokens_per_expert.dtype, cast.e_score_correction_bias.dtype) == (torch.float32,) * 2

    def test_starts_at_zero_from_a_checkpoint_without_bias(self, tmp_path):
        """Any mixture of experts can be trained on with a router bias."""
        model = make_model("mixtral")
        model.save_pretrained(tmp_path)
        set_seed(1)
        again = GPTForCausalLM.from_pretrained(tmp_path, router_bias_update_rate=0.1)
        assert not routers(again)[0].e_score_correction_bias.any()
        ids = random_ids(2, 7)
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-6)


@pytest.fixture
def warnings(caplog):
    """The warnings so far; each test may log every one once more."""
    logging.get_logger().warning_once.cache_clear()
    with caplog.at_level("WARNING"):
        yield lambda: [record.getMessage() for record in caplog.records]


SETTINGS = {"label_smoothing": 0.1, "lm_z_loss_coef": 0.02, "router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.004}
OUTSIDE = "not part of a loss that is computed outside of the model; pass labels to its head"


@pytest.mark.parametrize("foreign", FOREIGN_LOSSES)
def test_a_loss_computed_elsewhere_lacks_these_fields(foreign, warnings):
    """A caller that requests router logits computes the load-balancing loss itself."""
    model, ids = make_model("mixtral", **SETTINGS).train(), random_ids(2, 7)
    for _ in range(2):
        FOREIGN_LOSSES[foreign](model, input_ids=ids)
    included = "router_aux_loss_coef" if foreign == "router logits" else None
    shown = [f"{name}={value}" for name, value in SETTINGS.items() if name != included]
    assert warnings() == [f"{', '.join(shown)}: {OUTSIDE}"]


@pytest.mark.parametrize("part", ["head", "decoder"])
def test_a_loss_computed_elsewhere_of_a_dense_model(part, warnings):
    model, ids = make_model(**SETTINGS).train(), random_ids(2, 7)
    (model if part == "head" else model.model)(ids)
    assert warnings() == [f"label_smoothing=0.1, lm_z_loss_coef=0.02: {OUTSIDE}"]


def test_a_loss_function_of_the_user_lacks_the_terms_of_the_language_model(warnings):
    model, ids = make_model("mixtral", **SETTINGS).train(), random_ids(2, 7)
    model.loss_function = lambda logits, labels, **_: logits.mean()
    model(ids, labels=ids)
    assert warnings() == [f"label_smoothing=0.1, lm_z_loss_coef=0.02: {OUTSIDE}"]


def test_no_warning_with_labels_in_inference_or_without_settings(variant, warnings):
    ids = random_ids(2, 7)
    model = make_model(variant, **SETTINGS).train()
    model(ids, labels=ids)
    with torch.no_grad():
        model(ids)
    model.generate(ids, max_new_tokens=2, pad_token_id=0)
    model.eval()(ids)
    model.model(ids)
    plain = make_model(variant).train()
    plain(ids)
    plain.model(ids)
    assert not [message for message in warnings() if OUTSIDE in message]


def test_reentrant_checkpointing_warns(caplog):
    """Its first pass records no graph, so the router losses have no gradient."""
    model, ids = make_model("mixtral").train(), random_ids(2, 7)
    enable_activation_checkpointing(model, {"use_reentrant": True})
    model.enable_input_require_grads()
    with caplog.at_level("WARNING"):
        step(model, ids)
    assert "reentrant gradient checkpointing: the balancing losses have no gradient" in caplog.text


def test_early_exit_drafting_with_dense_layers():
    """It works with output_router_logits=True although the first layers have no router."""
    model = make_model("deepseek", output_router_logits=True)
    drafted = model.generate(random_ids(1, 5), max_new_tokens=5, do_sample=False, assistant_early_exit=1)
    model.config.output_router_logits = False
    assert torch.equal(drafted, model.generate(random_ids(1, 5), max_new_tokens=5, do_sample=False))
