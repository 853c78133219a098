"""Tests of providers; `tests.providers.contract` is what all of them share."""

import pytest

pytest.register_assert_rewrite("tests.providers.contract")
