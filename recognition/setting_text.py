"""A setting's value from its text, by the type that its dataclass declares, and that type in a user's words.

variants: settings that come in several kinds, {base class: {name: class}}; their text is the name of a kind.
Proven by tests/recognition/test_config.py.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal

from recognition.errors import SettingsError

Variants = Mapping[type, Mapping[str, type]]


def parse(text: str, kind: Any, name: str, variants: Variants) -> Any:
    """A value of the declared type from its text; SettingsError says what was expected."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    wrong = SettingsError(f"{name}: {text!r} is not {describe(kind, variants)}")
    if origin in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null"):
            return None
        return parse(text, next(a for a in arguments if a is not type(None)), name, variants)
    if origin is Literal:
        if text not in arguments:
            raise SettingsError(f"{wrong}{_closest_value(text, arguments)}")
        return text
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(parse(part, arguments[0], name, variants) for part in parts)
        if len(parts) != len(arguments):
            raise wrong
        return tuple(parse(part, a, name, variants) for part, a in zip(parts, arguments, strict=True))
    if kind in variants:
        if text not in variants[kind]:
            raise SettingsError(f"{wrong}{_closest_value(text, tuple(variants[kind]))}")
        return variants[kind][text]()
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise wrong
        return text.lower() in ("true", "1", "yes")
    if is_dataclass(kind):
        raise SettingsError(f"{name}: is a group; set one of {', '.join(f.name for f in dataclasses.fields(kind))}")
    try:
        return kind(text)
    except ValueError:
        raise wrong from None


def _closest_value(text: str, valid: Sequence[Any]) -> str:
    near = difflib.get_close_matches(text, [str(v) for v in valid], n=1, cutoff=0.4)
    return f"; nearest: {near[0]}" if near else ""


def describe(kind: Any, variants: Variants) -> str:
    """A declared type in a user's words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else describe(a, variants) for a in arguments)
    if origin is tuple:
        if arguments[1:] == (Ellipsis,):
            return f"a comma-separated list of {describe(arguments[0], variants)}s"
        return f"{len(arguments)} values with commas between"
    if kind in variants:
        return f"one of {', '.join(variants[kind])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(kind, str(kind))
