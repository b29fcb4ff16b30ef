"""The GPT lineage as one Hugging Face model. Importing this package registers it with the Auto classes."""

import transformers

from .model.configuration_gpt import GPTConfig
from .model.modeling_gpt import (
    AUTO_CLASSES,
    GPTForCausalLM,
    GPTForMultipleChoice,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
    GPTModel,
)
from .presets import preset_config, preset_names
from .version import __version__

__all__ = [
    "GPTConfig",
    "GPTForCausalLM",
    "GPTForMultipleChoice",
    "GPTForQuestionAnswering",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
    "GPTModel",
    "__version__",
    "preset_config",
    "preset_names",
]

# register: the Auto classes of this process. register_for_auto_class: save_pretrained copies the code of the model.
transformers.AutoConfig.register(GPTConfig.model_type, GPTConfig, exist_ok=True)
GPTConfig.register_for_auto_class()
for auto_class, model_class in AUTO_CLASSES.items():
    getattr(transformers, auto_class).register(GPTConfig, model_class, exist_ok=True)
    model_class.register_for_auto_class(auto_class)
