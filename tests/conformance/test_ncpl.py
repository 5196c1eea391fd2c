"""transformers' common tests on the forecaster, its configuration and its processor."""

import unittest

import pytest
import torch

from configuration_ncpl import NCPLConfig
from modeling_ncpl import NCPLForecaster
from ncpl.training.backbone import scratch_config, train_tokenizer
from processing_ncpl import NCPLProcessor
from tests.checkpoints import CONFIGS
from tests.conformance import add_upstream_to_path

if not add_upstream_to_path():
    pytest.skip("transformers' tests are not here; make conformance fetches them", allow_module_level=True)

from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor
from transformers_tests.test_processing_common import ProcessorTesterMixin

pytestmark = pytest.mark.filterwarnings("ignore")


class NCPLModelTester:
    """A tiny forecaster and a batch, in the form that `ModelTesterMixin` asks for."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = 7, 12, 32, 2, 4
    is_training = True

    def get_config(self) -> NCPLConfig:
        return NCPLConfig(text_config=scratch_config(99, self.hidden_size, self.num_hidden_layers, 4))

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        inputs = {
            "input_ids": ids_tensor(shape, 99),
            "is_number_mask": ids_tensor(shape, 2).bool(),
            "number_values_filled": torch.rand(shape),
            "attention_mask": torch.ones(shape, dtype=torch.long),
        }
        return self.get_config(), inputs


class NCPLForecasterTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (NCPLForecaster,)
    additional_model_inputs = ("is_number_mask", "number_values_filled")

    def setUp(self):
        self.model_tester = NCPLModelTester()
        self.config_tester = ConfigTester(
            self, config_class=NCPLConfig, has_text_modality=False, number_embedding="log", loss_type="huber"
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """The labels of a regression, where the tests train; the common ones are of tasks with classes."""
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        return inputs | ({"labels": torch.full(inputs["input_ids"].shape, 0.5)} if return_labels else {})


class NCPLProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = NCPLProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return train_tokenizer(CONFIGS, vocab_size=400)

    def test_model_input_names(self):
        """The common test with our kind of input, which is configurations and not text."""
        inputs = self.get_processor()(CONFIGS, return_tensors="pt")
        assert set(inputs.keys()) == set(self.get_processor().model_input_names)

    def test_flat_kwarg_applied_when_modality_dict_lacks_it(self):
        """The common test with our kind of input."""
        inputs = self.get_processor()(CONFIGS, text_kwargs={}, return_tensors="pt")
        assert all(isinstance(value, torch.Tensor) for value in inputs.values())
