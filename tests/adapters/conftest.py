"""What tests of methods on several backbones share."""

import pytest

from tests.adapters.spm_models import all_trunks, some_images


@pytest.fixture(scope="session")
def trunks():
    """Small frozen backbones by name."""
    return all_trunks()


@pytest.fixture(scope="session")
def images():
    """What they are called with."""
    return some_images()
