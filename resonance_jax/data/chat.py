"""Chat templates: found in a model's directory, rendered as transformers renders them.

A template comes with the model and is a program, so it runs in Jinja's immutable sandbox.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from resonance_jax.files import decode_utf8, of_kind, read_json, reason

if TYPE_CHECKING:
    import jinja2.sandbox

REMEDY = "put back an undamaged copy"


def chat_template_in(folder: Path, tokenizer_config: Mapping[str, object]) -> str | None:
    """The template of chat_template.jinja, else chat_template.json, else tokenizer_config.json; None: none.

    Of several templates the one named "default" is taken.

    Args:
        folder: the model's directory.
        tokenizer_config: the content of its tokenizer_config.json.

    Raises:
        ValueError: a file is damaged, or the template is no text.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return decode_utf8(path.read_bytes(), str(path))
    path = folder / "chat_template.json"
    stated = (read_json(path, dict, REMEDY) if path.is_file() else tokenizer_config).get("chat_template")
    if isinstance(stated, list):
        named = [of_kind(entry, dict, f"A chat template in {folder}") for entry in stated]
        stated = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    return None if stated is None else of_kind(stated, str, f"The chat template in {folder}")


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
    where: str,
) -> str:
    """The text of a conversation under a template.

    Args:
        template: in Jinja's language.
        messages: {"role": ..., "content": ...} each.
        add_generation_prompt: end with what opens the assistant's answer.
        special_tokens: "bos_token" and the like, which templates may write.
        where: names the model in error sentences.

    Raises:
        ValueError: jinja2 is missing, or the template is damaged or refuses the messages.
    """
    environment = _environment(where)
    known = {"tools": None, "documents": None, **special_tokens}
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            **known,
        )
    except Exception as error:  # the template is a program: anything can go wrong in it
        raise ValueError(f"The chat template of {where} cannot be applied: {reason(error)}.") from None


def _environment(where: str) -> "jinja2.sandbox.ImmutableSandboxedEnvironment":
    try:
        import jinja2
        import jinja2.ext
        import jinja2.nodes
        import jinja2.parser
        import jinja2.sandbox
    except ImportError:
        raise ValueError(f"The chat template of {where} needs jinja2: pip install jinja2.") from None

    class Generation(jinja2.ext.Extension):
        """Drops the marks {% generation %} … {% endgeneration %} around the assistant's words."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes what HTML forbids
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
