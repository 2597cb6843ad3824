"""Command-line options made from a config class: one option per field, its docstring as help, its default shown.

pydantic-settings and jsonargparse do as much and more, each with rules and messages of its own; here an option is
checked by the config class that the Python interface has, and an error is the same line.
"""

import argparse
import types
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from dydiff_dist.strict_config import StrictConfig, describe_error

Config = TypeVar("Config", bound=StrictConfig)


def add_options(parser: argparse._ActionsContainer, config: type[StrictConfig]) -> None:
    """Adds an option ``--field-name`` to a parser or a group of one, for each field of ``config`` and of the configs
    inside it.

    Examples:
        >>> class Waves(StrictConfig):
        ...     num_waves: int = 3
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser, Waves)
        >>> read_options(parser.parse_args(["--num-waves", "5"]), Waves)
        Waves(num_waves=5)
    """
    for name, field in config.model_fields.items():
        if _is_config(field.annotation):
            add_options(parser, field.annotation)
            continue
        text = (field.description or "").replace("%", "%%").replace("\n", " ")
        if not field.is_required() and field.default not in (None, "", ()):
            text += f" Default: {_shown(field.default)}."
        # A default of SUPPRESS leaves absent options out, so that the config's own default applies.
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            help=text,
            required=field.is_required(),
            default=argparse.SUPPRESS,
            **_value_settings(field.annotation),
        )


def read_options(arguments: argparse.Namespace, config: type[Config]) -> Config:
    """The config that the parsed options describe.

    Raises:
        ValueError: a bad value; one line that names the option.
    """
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
            values[name] = tuple(given[name]) if isinstance(given[name], list) else given[name]
    return values


def _is_config(annotation: Any) -> TypeGuard[type[StrictConfig]]:
    return isinstance(annotation, type) and issubclass(annotation, StrictConfig)


def _value_settings(annotation: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    while get_origin(annotation) in (Annotated, Union, types.UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    if get_origin(annotation) is tuple:
        kinds = get_args(annotation)
        return {**_value_settings(kinds[0]), "nargs": "+" if kinds[-1] is Ellipsis else len(kinds)}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": annotation, "metavar": {int: "N", float: "X", str: "TEXT"}[annotation]}


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
