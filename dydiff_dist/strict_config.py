"""Base of all configuration: frozen, typed, and strict about names."""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from dydiff_dist.quoting import MAX_QUOTED, quoted, shortened

_LONG_QUOTE = re.compile(f"'[^']{{{MAX_QUOTED},}}'|\"[^\"]{{{MAX_QUOTED},}}\"")
MAX_DEPTH = 50
TOO_DEEP = "sections or lists are nested too deeply; no configuration needs ten levels"
_LAST_VERSION = "0.1.0"
"""The last version that knew the keys which are retired today."""


class StrictConfig(BaseModel):
    """A configuration section. Unknown keys and wrong types are errors; fields are documented by their docstrings.

    A key that goes is named in ``retired``, so that configurations, checkpoints and exported models from before can
    still be read where they don't depend on it:

        class DataConfig(StrictConfig):
            retired = {"cache_bytes": 0}  # a file may still say "cache_bytes": 0, and nothing else
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    retired: ClassVar[Mapping[str, Any]] = {}
    """Keys that once existed -> the value, as JSON has it, at which dropping them changes nothing."""

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Reads JSON, without the retired keys of this section and of those below.

        Raises:
            ValidationError: as pydantic says, or a retired key has a value that did something.
        """
        try:
            tree = json.loads(json_data)
        except (ValueError, RecursionError):  # pydantic says what is wrong with it
            return super().model_validate_json(json_data, **options)
        problems: list[InitErrorDetails] = []
        kept = _without_retired(tree, cls, (), problems)
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return super().model_validate_json(json.dumps(kept), **options)

    @classmethod
    def variant(cls, tree: Mapping[str, Any]) -> type[BaseModel]:
        """The class that a tree of this section is for; a section that comes in several kinds overrides it."""
        return cls


def describe_error(
    error: ValidationError, root: type[BaseModel] | None = None, tree: Mapping[str, Any] | None = None
) -> str:
    """One line for the first problem pydantic found: key, value, rule, and the nearest valid key if it is unknown.

    Args:
        error: of validating ``root``.
        root: the outermost section; None names no other keys.
        tree: what was validated, where sections come in several kinds.
    """
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = shortened(".".join(path))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        if root is None:
            return f"unknown key {key!r}{more}"
        valid = list(_section_at(root, path[:-1], tree or {}).model_fields)
        nearest = difflib.get_close_matches(path[-1][:MAX_QUOTED], valid, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*path[:-1], nearest[0]])!r}?" if nearest else f"valid keys: {', '.join(valid)}"
        return f"unknown key {key!r}; {hint}{more}"
    if problem["type"] == "missing":
        return f"key {key!r} is required{more}"
    message = _LONG_QUOTE.sub(lambda quote: shortened(quote[0]), problem["msg"].removeprefix("Value error, "))
    message = shortened(message, 3 * MAX_QUOTED)
    if problem["type"] == "json_invalid":
        return f"not JSON ({message.removeprefix('Invalid JSON: ')})"
    if problem["type"] == "value_error":
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    return f"{key + ' ' if key else ''}is {quoted(problem['input'])}: {message[0].lower()}{message[1:]}{more}"


def check_values(tree: Any, source: str, key: str = "") -> None:
    """Refuses what JSON can say and no configuration means: numbers that are infinite or of no machine's size, text
    that is no text.

    Args:
        tree: JSON types.
        source: what errors call it.
        key: of ``tree``, dotted.

    Raises:
        ValueError: source, key, value and rule.
    """
    rule = ""
    if key.count(".") > MAX_DEPTH:
        raise ValueError(f"{source}: {key.partition('.')[0]}: {TOO_DEEP}")
    if isinstance(tree, dict):
        for name, value in tree.items():
            check_values(name, source, f"a name in {key}" if key else "a name")
            check_values(value, source, f"{key}.{name}" if key else name)
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            check_values(value, source, f"{key}.{number}")
    elif isinstance(tree, float) and not math.isfinite(tree):
        rule = "give a finite number"
    elif isinstance(tree, int) and abs(tree) >= 2**63:
        rule = "give a number below 2^63"
    elif isinstance(tree, str) and (
        "\0" in tree or (not tree.isascii() and tree.encode(errors="ignore").decode() != tree)
    ):
        rule = "give text without NUL and half characters"
    if rule:
        raise ValueError(f"{source}: {key} is {quoted(tree)}: {rule}")


def _without_retired(tree: Any, section: type[BaseModel], path: tuple[str, ...], problems: list) -> Any:
    """A section's tree without retired keys, those below included; ``problems`` takes the keys that can't go."""
    if not isinstance(tree, dict):
        return tree
    retired, kept = getattr(section, "retired", {}), {}
    for key, value in tree.items():
        if key in section.model_fields:
            for below in _sections_of(section, key):
                value = _without_retired(value, below, (*path, key), problems)
            kept[key] = value
        elif key not in retired:
            kept[key] = value
        elif value != retired[key]:
            rule = f"this key is gone after version {_LAST_VERSION}; without it all is as it was at {retired[key]!r}"
            error = PydanticCustomError("retired", f"{rule}. Remove it, or stay with that version")
            problems.append(InitErrorDetails(type=error, loc=(*path, key), input=value))
    return kept


def _sections_of(section: type[BaseModel], key: str) -> Iterator[type[BaseModel]]:
    """The config classes that a field of ``section`` takes, e.g. the one of ``DataConfig | None``."""
    annotation = section.model_fields[key].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            yield candidate


def _section_at(root: type[BaseModel], path: list[str], tree: Mapping[str, Any]) -> type[BaseModel]:
    """The config class that stands at ``path`` below ``root``, for what ``tree`` says there."""
    names = iter(path)
    for name in names:
        field = root.model_fields[name]
        root, tree = next(_sections_of(root, name)), tree.get(name) or {}
        if get_origin(field.annotation) in (dict, list, tuple):
            next(names, None)  # which of the sections in it: all are of one class
            tree = {}
        if issubclass(root, StrictConfig):
            root = root.variant(tree)
    return root
