"""The examples in the docstrings of evaluation, forecasts, studies and benchmarks."""

import doctest
import importlib
import pkgutil

import pytest

ROOMS = ("evaluation", "forecasting", "study", "benchmarks")


@pytest.mark.parametrize("room", ROOMS)
def test_examples_give_what_they_say(room: str) -> None:
    package = importlib.import_module(f"dydiff_dist.{room}")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    results = [doctest.testmod(module) for module in modules]
    assert sum(result.failed for result in results) == 0 < sum(result.attempted for result in results)
