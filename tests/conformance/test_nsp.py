"""transformers' common tests on NSP's model, its configuration and its feature extractor."""

import unittest

import pytest
import torch

from configuration_nsp import NSPConfig
from feature_extraction_nsp import NSPFeatureExtractor
from modeling_nsp import NSPModel
from tests.conformance import add_upstream_to_path

if not add_upstream_to_path():
    pytest.skip("transformers' tests are not here; make conformance fetches them", allow_module_level=True)

from transformers_tests.test_configuration_common import ConfigTester  # type: ignore[import-not-found]
from transformers_tests.test_feature_extraction_common import (  # type: ignore[import-not-found]
    FeatureExtractionSavingTestMixin,
)
from transformers_tests.test_modeling_common import ModelTesterMixin  # type: ignore[import-not-found]

pytestmark = pytest.mark.filterwarnings("ignore")
