"""transformers' common tests on NSP's model, its configuration and its feature extractor."""

import unittest
from typing import Any, ClassVar

import pytest
import torch

from configuration_nsp import NSPConfig
from feature_extraction_nsp import NSPFeatureExtractor
from modeling_nsp import NSPModel
from tests.conformance import add_upstream_to_path

if not add_upstream_to_path():
    pytest.skip("transformers' tests are not here; make conformance fetches them", allow_module_level=True)

from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_feature_extraction_common import FeatureExtractionSavingTestMixin
from transformers_tests.test_modeling_common import ModelTesterMixin

pytestmark = pytest.mark.filterwarnings("ignore")


class NSPModelTester:
    """A tiny predictor and a batch, in the form that `ModelTesterMixin` asks for."""

    # A token for each of the four features, and one that gathers them.
    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = 7, 5, 16, 1, 2
    is_training = True

    def get_config(self) -> NSPConfig:
        return NSPConfig(tasks=["mmlu", "gsm8k", "hellaswag"], dropout=0.0)

    def prepare_config_and_inputs_for_common(self):
        features = torch.rand(self.batch_size, 4)
        inputs = {
            "features": features,
            "feature_mask": torch.ones_like(features),
            "family_ids": torch.full((self.batch_size,), -1),
        }
        return self.get_config(), inputs


class NSPModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (NSPModel,)
    additional_model_inputs = ("feature_mask", "family_ids")
    test_resize_embeddings = False
    has_attentions = False

    def setUp(self):
        self.model_tester = NSPModelTester()
        self.config_tester = ConfigTester(
            self, config_class=NSPConfig, has_text_modality=False, common_properties=["hidden_size"], num_capabilities=3
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Scores to learn, where the tests train; the common labels are of tasks with classes."""
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        return inputs | ({"labels": torch.full((self.model_tester.batch_size, 3), 0.5)} if return_labels else {})

    @unittest.skip("reads a few numbers about a model, not tokens: it has no input embeddings")
    def test_model_get_set_embeddings(self):
        pass


class NSPFeatureExtractorTest(FeatureExtractionSavingTestMixin, unittest.TestCase):
    feature_extraction_class = NSPFeatureExtractor
    feat_extract_dict: ClassVar[dict[str, Any]] = {"tasks": ["mmlu", "gsm8k"], "families": ["llama"]}
