"""A plain model."""

from __future__ import annotations

import pytest

from tests.support.configs import normed_model


@pytest.fixture
def plain():
    return normed_model()
