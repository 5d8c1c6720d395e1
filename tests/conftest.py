"""Tests on real data and models: fetched by CI, skipped with the command that fetches elsewhere."""

import os
from collections.abc import Callable

import pytest

REQUIRED = "FISHERTOPE_REQUIRE_DATA"
LARGE = "FISHERTOPE_LARGE"


@pytest.fixture(scope="session")
def need_data() -> Callable[..., None]:
    """``need_data("minilm", "vader")``: skip, saying how to fetch, unless these are there.

    With FISHERTOPE_REQUIRE_DATA in the environment what is missing fails the test.
    """
    from fishertope.core.errors import DataMissingError
    from fishertope.experiments.data._sources import archive

    def need(*names: str) -> None:
        for name in names:
            try:
                archive(name)
            except DataMissingError as error:
                if os.environ.get(REQUIRED):
                    raise
                pytest.skip(str(error))

    return need


@pytest.fixture
def large(need_data: Callable[..., None]) -> Callable[..., None]:
    """``large("smollm2")``: as ``need_data``, and only where FISHERTOPE_LARGE is set."""

    def need(*names: str) -> None:
        if not os.environ.get(LARGE):
            pytest.skip(f"a large model; set {LARGE}=1 to run it")
        need_data(*names)

    return need
