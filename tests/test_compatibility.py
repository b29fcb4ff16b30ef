"""Names that transformers has changed."""

import pytest
from tiny import make_model

from hf_gpt.compatibility import enable_activation_checkpointing


@pytest.mark.filterwarnings("error::FutureWarning")
def test_checkpointing_is_enabled_without_a_deprecation_warning():
    model = make_model()
    enable_activation_checkpointing(model)
    assert model.model.gradient_checkpointing


@pytest.mark.parametrize("name", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
def test_checkpointing_is_enabled_by_the_name_that_exists(name):
    class Model:
        calls = ()

    def enable(self, checkpoint_options, **options):
        self.calls = (*self.calls, (checkpoint_options, options))

    setattr(Model, name, enable)
    model = Model()
    enable_activation_checkpointing(model, {"use_reentrant": True}, every_n_layers=2)
    assert model.calls == (({"use_reentrant": True}, {"every_n_layers": 2}),)
