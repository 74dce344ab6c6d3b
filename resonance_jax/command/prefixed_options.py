"""How tyro reads a nested dataclass with an OPTION_PREFIX: its fields are the options --PREFIX-FIELD."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import get_type_hints

from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from resonance_jax.command.options import option_name


def registry() -> ConstructorRegistry:
    """tyro's rules and the one for OPTION_PREFIX; they hold within a `with` block."""
    rules = ConstructorRegistry()
    rules.struct_rule(_prefixed)
    return rules


def _prefixed(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The options of a dataclass with an OPTION_PREFIX, None for everything else."""
    kind = info.type
    if not dataclasses.is_dataclass(kind) or getattr(kind, "OPTION_PREFIX", None) is None:
        return None
    fields = {option_name(kind, field.name): field for field in dataclasses.fields(kind)}
    types, helps, given = get_type_hints(kind), _helps(kind), isinstance(info.default, kind)
    return StructConstructorSpec(
        instantiate=lambda **values: kind(**{fields[name].name: value for name, value in values.items()}),
        fields=tuple(
            StructFieldSpec(
                name=name,
                type=types[field.name],
                default=getattr(info.default, field.name) if given else field.default,
                helptext=helps[field.name],
            )
            for name, field in fields.items()
        ),
    )


def _helps(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass, in one line."""
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
