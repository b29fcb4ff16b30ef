"""What transformers decides by the name of a model class: the loss, the task, and which outputs are recorded.

The Trainer shifts the labels for `label_smoothing_factor`, pipelines and `transformers serve` accept a model, and model
cards state a task only for the class names in transformers' tables. The names of all heads are added to these tables
when this code is imported, from hf_gpt or from a checkpoint; so are the names of their subclasses, among them those
that FSDP 2 makes. A key that is no model type of transformers is not read by the Auto classes.
"""

from transformers.models.auto import modeling_auto

from .backends import RECORDED_OUTPUTS
from .configuration_gpt import GPTConfig

# By Auto class: names of classes by model type.
CLASS_NAMES = {
    "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "AutoModelForMultipleChoice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
}


def auto_map() -> dict[str, str]:
    """Returns the class of each Auto class, with its file. Every checkpoint names all, so that any Auto class loads any
    checkpoint."""
    names = {auto_class: names[GPTConfig.model_type] for auto_class, names in CLASS_NAMES.items()}
    return {"AutoConfig": "configuration_gpt.GPTConfig"} | {
        each: f"modeling_gpt.{name}" for each, name in names.items()
    }


class NamedModel:
    """The part of a model class that transformers knows by its name.

    Args:
        auto_class: name of the Auto class that builds this class: `class GPTModel(..., auto_class="AutoModel")`. A
            subclass inherits it.
    """

    auto_class: str | None = None

    def __init_subclass__(cls, auto_class: str | None = None, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if auto_class is not None:
            cls.auto_class = auto_class
        if cls.auto_class is not None:
            key = GPTConfig.model_type if auto_class is not None else f"{GPTConfig.model_type}.{cls.__name__}"
            CLASS_NAMES[cls.auto_class][key] = cls.__name__
        # Otherwise a class has an entry only when it builds a model, and a class of FSDP 2 builds none.
        dict.__setitem__(RECORDED_OUTPUTS, str(cls), cls._can_record_outputs)

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        if self.auto_class is not None:
            self.loss_type = self.auto_class.removeprefix("AutoModel") or None  # transformers reads the class name
