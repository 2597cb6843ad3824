"""Keys that were retired: dropped where that changes nothing, refused by name where it would."""

import json

import pytest
from pydantic import ValidationError

from dydiff_dist.strict_config import StrictConfig, describe_error


class Inner(StrictConfig):
    retired = {"betas": [0.9, 0.95], "mode": None}

    sizes: tuple[int, int] = (1, 1)


class Derived(Inner):
    width: int = 3


class Outer(StrictConfig):
    inner: Inner = Inner()
    derived: Derived | None = None
    by_name: dict[str, Derived] = {}
    in_order: tuple[Derived, ...] = ()


def read(tree: dict) -> Outer:
    return Outer.model_validate_json(json.dumps(tree))


def problem(tree: dict) -> str:
    with pytest.raises(ValidationError) as caught:
        read(tree)
    return describe_error(caught.value, Outer)


def test_a_retired_key_is_dropped_at_the_value_that_changes_nothing():
    tree = {"inner": {"sizes": [2, 3], "betas": [0.9, 0.95]}, "derived": {"width": 4, "mode": None}}
    config = read(tree)
    assert config == Outer(inner=Inner(sizes=(2, 3)), derived=Derived(width=4))
    assert "betas" not in config.model_dump()["inner"]


def test_a_retired_key_with_another_value_is_refused_by_name():
    message = problem({"inner": {"betas": [0.9, 0.99]}})
    assert message.startswith("inner.betas is [0.9, 0.99]: this key is gone after version 0.1.0")
    assert "without it all is as it was at [0.9, 0.95]" in message and "\n" not in message
    assert problem({"derived": {"mode": "fast"}}).startswith("derived.mode is 'fast': this key is gone")


def test_other_keys_are_as_strict_as_before():
    assert problem({"inner": {"size": 3}}) == "unknown key 'inner.size'; did you mean 'inner.sizes'?"
    assert problem({"derived": {"widht": 3}}) == "unknown key 'derived.widht'; did you mean 'derived.width'?"
    with pytest.raises(ValidationError, match="Invalid JSON"):
        Outer.model_validate_json('{"inner": ')


def test_keys_of_sections_in_mappings_and_lists_are_named():
    assert problem({"by_name": {"width": {"widht": 3}}}).startswith("unknown key 'by_name.width.widht'; did you mean")
    assert problem({"in_order": [{}, {"widht": 3}]}).endswith("did you mean 'in_order.1.width'?")
