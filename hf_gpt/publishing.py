"""Writes what accompanies the weights of a trained model: the loss curve and the model card."""

import platform
from pathlib import Path

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from . import model_cards
from .training import RunReport, RunSettings
from .version import __version__

TEMPLATE = Path(model_cards.__file__).with_name("language_model.md")

# The fields of the configuration that the card lists.
ARCHITECTURE_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "position_embedding_type",
    "norm_type",
    "mlp_type",
)


def usage_code(folder: Path | str, prompt: str) -> str:
    """Returns four lines of Python that load a saved model and print its continuation of a prompt.

    The code of the model is trusted, because hf_gpt has saved it; that of the tokenizer is not, because it has none.
    """
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=False)\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        f'print(tokenizer.decode(model.generate(**tokenizer({prompt!r}, return_tensors="pt"))[0]))'
    )


def draw_loss_curve(report: RunReport, path: Path) -> bool:
    """Plots training and evaluation loss against steps to a PNG file.

    Returns:
        False if matplotlib is not installed and there is no file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    axes.plot(*zip(*report.training_curve, strict=True), label="training")
    axes.plot(*zip(*report.evaluation_curve, strict=True), "o", label="evaluation")
    axes.axhline(report.unigram_entropy, color="gray", linestyle="--", label="unigram entropy")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    return True


def build_model_card(
    model: PreTrainedModel,
    report: RunReport,
    settings: RunSettings,
    *,
    name: str,
    data: str,
    origin: str,
    usage: str,
    sample: str = "",
    loss_curve: str = "",
) -> ModelCard:
    """Returns the card of a trained model. All numbers are from its run.

    Args:
        model: the trained model.
        report, settings: of the run.
        name: title of the card.
        data: description of the training data.
        origin: description of the weights that the run began with.
        usage: Python code that loads the model.
        sample: text that the model generated; none if empty.
        loss_curve: file name of the plot beside the card; none if empty.
    """
    return ModelCard.from_template(
        card_data=ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["hf_gpt", "gpt"]),
        template_path=str(TEMPLATE),
        name=name,
        data=data,
        origin=origin,
        usage=usage,
        sample=sample,
        loss_curve=loss_curve,
        parameters=f"{report.parameters:,}",
        architecture={field: getattr(model.config, field) for field in ARCHITECTURE_FIELDS},
        training_tokens=f"{report.training_tokens:,}",
        tokens_seen=f"{report.tokens_seen:,}",
        tokens_per_step=f"{report.tokens_seen // report.steps:,}",
        steps=report.steps,
        context=report.context,
        learning_rate=settings.learning_rate,
        seconds=f"{report.seconds:.0f}",
        device=torch.accelerator.current_accelerator() if torch.accelerator.is_available() else platform.machine(),
        software=f"hf_gpt {__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
        evaluation_loss=f"{report.evaluation_loss:.3f}",
        training_loss=f"{report.training_loss:.3f}",
        perplexity=f"{report.perplexity:.1f}",
        unigram_entropy=f"{report.unigram_entropy:.3f}",
    )
