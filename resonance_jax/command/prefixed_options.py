"""How tyro reads a config: the names of its options, --PREFIX-FIELD where it nests, and what --help says."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import Any, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from resonance_jax.command.options import option_name


def registry() -> ConstructorRegistry:
    """tyro's rules and the one for dataclasses; they hold within a `with` block."""
    rules = ConstructorRegistry()
    rules.struct_rule(_options)
    return rules


def _options(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The options of a dataclass, None for everything else.

    tyro's own rule knows no OPTION_PREFIX, and breaks a help where its source breaks a line.
    """
    kind = info.type
    # tyro wraps what it parses in a dataclass of its own.
    if not dataclasses.is_dataclass(kind) or kind.__module__.partition(".")[0] == "tyro":
        return None
    fields = {option_name(kind, field.name): field for field in dataclasses.fields(kind)}
    types, given = get_type_hints(kind, include_extras=True), isinstance(info.default, kind)
    helps = {name: text for part in reversed(kind.__mro__[:-1]) for name, text in _helps(part).items()}
    prefixed = lambda **values: kind(**{fields[name].name: value for name, value in values.items()})
    return StructConstructorSpec(
        # The class itself where it can be, because --help takes its docstring.
        instantiate=prefixed if hasattr(kind, "OPTION_PREFIX") else kind,
        fields=tuple(
            StructFieldSpec(
                name=name,
                type=types[field.name],
                default=getattr(info.default, field.name) if given else _default(field),
                helptext=helps.get(field.name),
            )
            for name, field in fields.items()
        ),
    )


def _default(field: dataclasses.Field[Any]) -> object:
    """The default of a field, tyro.MISSING where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


def _helps(kind: type) -> dict[str, str]:
    """The string below each field that a dataclass adds to those it inherits, in one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
