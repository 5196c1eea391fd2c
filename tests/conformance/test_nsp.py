"""transformers' common tests on NSP's model, its configuration and its feature extractor."""

import pytest

from tests.conformance import add_upstream_to_path

if not add_upstream_to_path():
    pytest.skip("transformers' tests are not here; make conformance fetches them", allow_module_level=True)


pytestmark = pytest.mark.filterwarnings("ignore")
