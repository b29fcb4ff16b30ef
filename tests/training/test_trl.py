"""TRL's trainers on models of hf_gpt: they call the decoder, and compute their own losses."""

import pytest
import torch
import trl
from datasets import Dataset
from tiny import make_model

from hf_gpt import GPTForCausalLM, GPTForSequenceClassification
from hf_gpt.tokenization import train_tokenizer

TEXTS = ["the cat sat on the mat", "a dog ran far away", "why not"]
PAIRS = [{"prompt": "the cat", "chosen": " sat on the mat", "rejected": " ran"}] * 4
PROMPTS = [{"prompt": "the cat"}, {"prompt": "a dog"}] * 2
PACKING = {"packing": True, "max_length": 16}
VARIANTS = ("default", "gptj", "fixed", "mixtral", "gpt_oss", "deepseek")
EXPERTS = ("mixtral", "gpt_oss", "deepseek")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text + " " for text in TEXTS] * 20, 300)


@pytest.fixture
def build(tokenizer, tmp_path):
    """A function that makes a model for the tokenizer, from a folder: TRL loads the reference model from there."""
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    defaults = tokens | {"vocab_size": len(tokenizer), "initializer_range": 0.02}

    def load(variant, model_class=GPTForCausalLM, **fields):
        make_model(variant, model_class, **{**defaults, **fields}).save_pretrained(tmp_path / "model")
        return model_class.from_pretrained(tmp_path / "model")

    return load


@pytest.fixture
def run(tokenizer, tmp_path):
    """A function that trains for a step and returns the trainer."""

    def train(trainer, config, model, data, **options):
        fields = {name: options.pop(name) for name in list(options) if name not in ("reward_funcs", "eval_dataset")}
        defaults = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 0.01, "logging_steps": 1}
        defaults |= {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True}
        arguments = config(output_dir=str(tmp_path), **{**defaults, **fields})
        data = Dataset.from_list(data)
        found = trainer(model, args=arguments, train_dataset=data, processing_class=tokenizer, **options)
        found.train()
        return found

    return train


def texts():
    return [{"text": text} for text in TEXTS]


def logged(trainer, name="loss"):
    return trainer.state.log_history[0][name]


@pytest.mark.parametrize(
    "options", [{}, {"packing": True, "max_length": 16}, {"padding_free": True, "max_length": None}], ids=str
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sft(variant, options, build, run):
    model = build(variant)
    before = model.model.norm.weight.detach().clone()
    trainer = run(trl.SFTTrainer, trl.SFTConfig, model, texts(), **options)
    assert 5 < logged(trainer) < 7  # log(300) = 5.7
    assert not torch.equal(trainer.model.model.norm.weight, before)
    if variant in EXPERTS:
        assert logged(trainer, "aux_loss") > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_of_sft_is_that_of_the_model(variant, build, run, tokenizer):
    """Without the load-balancing loss, for which TRL pools the layers."""
    fields = {"router_aux_loss_coef": 0.0} if variant in EXPERTS else {}
    trainer = run(trl.SFTTrainer, trl.SFTConfig, build(variant, **fields), texts()[:1], per_device_train_batch_size=1)
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    assert logged(trainer) == pytest.approx(build(variant, **fields).train()(ids, labels=ids).loss.item(), rel=1e-4)


SFT_AND_DPO = {"sft": (trl.SFTTrainer, trl.SFTConfig, texts()), "dpo": (trl.DPOTrainer, trl.DPOConfig, PAIRS)}


@pytest.mark.parametrize(("trainer", "config", "data"), SFT_AND_DPO.values(), ids=SFT_AND_DPO)
@pytest.mark.parametrize("variant", EXPERTS)
def test_the_router_bias_moves(variant, trainer, config, data, build, run):
    found = run(trainer, config, build(variant, router_bias_update_rate=0.25), data).model
    for router in found.base_model.routers:
        assert 0 < router.e_score_correction_bias.abs().max() <= 0.25
        assert not router.tokens_per_expert.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_dpo(variant, build, run):
    """The policy starts as its reference."""
    trainer = run(trl.DPOTrainer, trl.DPOConfig, build(variant), PAIRS, learning_rate=0.0)
    expected = 0.6931 + (
        build(variant).config.router_aux_loss_coef * logged(trainer, "aux_loss") if variant in EXPERTS else 0
    )
    assert logged(trainer) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_grpo(variant, build, run):
    trainer = run(
        *(trl.GRPOTrainer, trl.GRPOConfig, build(variant), PROMPTS),
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        num_generations=2,
        max_completion_length=4,
    )
    assert logged(trainer, "completions/mean_length") <= 4


@pytest.mark.parametrize("variant", ["default", "mixtral"])
def test_reward_model(variant, build, run):
    model = build(variant, GPTForSequenceClassification, num_labels=1)
    trainer = run(trl.RewardTrainer, trl.RewardConfig, model, PAIRS)
    assert logged(trainer) == pytest.approx(0.69, abs=0.2)
