"""Command-line options made from a config class: one option per field, its docstring as help, its default shown."""

import argparse
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from dydiff_dist.strict_config import StrictConfig, describe_error


def add_options(parser: argparse.ArgumentParser, config: type[StrictConfig]) -> None:
    """Adds an option ``--field-name`` for each field of ``config`` and of the configs inside it."""
    for name, field in config.model_fields.items():
        if _is_config(field.annotation):
            add_options(parser, field.annotation)
            continue
        text = (field.description or "").replace("%", "%%").replace("\n", " ")
        if not field.is_required() and field.default not in (None, "", ()):
            text += f" Default: {_shown(field.default)}."
        option = "--" + name.replace("_", "-")
        # A default of SUPPRESS leaves absent options out, so that the config's own default applies.
        settings: dict[str, Any] = {
            "dest": name,
            "help": text,
            "required": field.is_required(),
            "default": argparse.SUPPRESS,
        }
        parser.add_argument(option, **settings, **_value_settings(field.annotation))


def read_options(arguments: argparse.Namespace, config: type[StrictConfig]) -> StrictConfig:
    """The config that the parsed options describe; a bad value is a one-line ``ValueError`` naming the option."""
    try:
        return config.model_validate(_values(vars(arguments), config))
    except ValidationError as error:
        place, _, rest = describe_error(error, config).partition(" ")
        option = place.rpartition(".")[2].replace("_", "-")
        raise ValueError(f"option --{option} {rest}") from None


def _values(given: dict[str, Any], config: type[StrictConfig]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in config.model_fields.items():
        if _is_config(field.annotation):
            values[name] = _values(given, field.annotation)
        elif name in given:
            is_list = isinstance(given[name], list)
            values[name] = tuple(given[name]) if is_list else given[name]
    return values


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, StrictConfig)


def _value_settings(annotation: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    while get_origin(annotation) in (Annotated, Union, types.UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    if get_origin(annotation) is tuple:
        kinds = get_args(annotation)
        inner = _value_settings(kinds[0])
        return {**inner, "nargs": "+" if kinds[-1] is Ellipsis else len(kinds)}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    metavar = {int: "N", float: "X", str: "TEXT"}[annotation]
    return {"type": annotation, "metavar": metavar}


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
