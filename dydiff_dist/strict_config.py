"""Base of all configuration: frozen, typed, and strict about names."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class StrictConfig(BaseModel):
    """A configuration section. Unknown keys and wrong types are errors; fields are documented by their docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def describe_error(error: ValidationError, root: type[StrictConfig]) -> str:
    """One line for the first problem pydantic found: key, value, rule, and the nearest valid key if it is unknown."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        valid = list(_section_at(root, path[:-1]).model_fields)
        nearest = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*path[:-1], nearest[0]])!r}?" if nearest else f"valid keys: {', '.join(valid)}"
        return f"unknown key {key!r}; {hint}{more}"
    if problem["type"] == "missing":
        return f"key {key!r} is required{more}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    return f"{key} is {problem['input']!r}: {message[0].lower()}{message[1:]}{more}"


def _section_at(root: type[StrictConfig], path: list[str]) -> type[StrictConfig]:
    """The config class that stands at ``path`` below ``root``."""
    section: Any = root
    for name in path:
        annotation = section.model_fields[name].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return section
