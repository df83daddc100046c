"""The reference of a study file's keys as Markdown tables, written from the settings themselves."""

from collections.abc import Iterator
from typing import Any

from diffmem.cells import SPACE_NAME
from diffmem.networks import MEMBERS
from diffmem.settings import MOST
from diffmem.study.layers import SECTIONS
from diffmem.study.schema import json_schema, space_schema

PAPER = {
    "P.dataset": "Sec. 3; App. B",
    "P.size": "Fig. 1c",
    "P.draw": "-",
    "P.resolution": "Fig. 2a",
    "P.classes": "Fig. 2b",
    "P.balance": "Sec. 3",
    "P.labels": "-",
    "P.half": "-",
    "P.blend.dataset": "Fig. 2c",
    "P.blend.share": "Fig. 2c",
    "P.blend.classes": "Fig. 2c",
    "M.network": "Eq. 2, Fig. 1a; Fig. 4",
    "M.precondition": "App. B; Fig. 4",
    "M.condition": "Fig. 5a, 5d, Table 3",
    "M.labels": "Fig. 5b, 5c",
    "T.epochs": "Fig. 1c, 1d",
    "T.steps": "-",
    "T.images": "-",
    "T.batch_size": "Table 1",
    "T.lr": "Table 1",
    "T.warmup_epochs": "App. B",
    "T.optimizer": "App. B",
    "T.momentum": "its code",
    "T.weight_decay": "Table 2",
    "T.ema": "Table 2",
    "T.shuffle": "its code",
    "T.precision": "its code",
    "T.seed": "-",
    "score.samples": "Fig. 6",
    "score.every": "its code",
    "score.points": "-",
    "score.steps": "App. B",
    "score.precision": "-",
    "score.batch_size": "-",
    "score.pairs": "Fig. 9, 10",
    "score.held_out": "-",
    "score.measures": "-",
    "score.groups": "-",
    "score.augment": "-",
    "score.keep": "-",
    "emm.epsilon": "Def. 3.1",
    "emm.measure": "-",
    "emm.threshold": "Sec. 2",
    "emm.search": "-",
    "emm.range": "-",
    "emm.tolerance": "-",
    "emm.stop": "-",
}
"""Where in Gu et al. 2023 each key is varied or defined, but for those that networks have for themselves; `-`:
diffmem's own."""

HEADER = "| key | type and range | default | meaning | in the paper |\n|---|---|---|---|---|\n"

JsonSchema = dict[str, Any]


def key_tables() -> str:
    """Return every key of a study file in Markdown: type, range, default, meaning and its place in the paper."""
    properties = json_schema()["properties"]
    tables = [_table(section, properties[section]) for section in SECTIONS]
    return "\n\n".join([*tables, _table("spaces.NAME", space_schema())])


def _table(section: str, schema: JsonSchema) -> str:
    rows = [_row(key, inner) for key, inner in _keys(section, schema)]
    return f"### [{section}]\n\n{schema['description']}\n\n{HEADER}" + "\n".join(rows)


def _keys(prefix: str, schema: JsonSchema) -> Iterator[tuple[str, JsonSchema]]:
    """Yield the dotted key and the schema of everything in a table that is not itself a table."""
    for name, inner in schema["properties"].items():
        tables = [option for option in inner.get("anyOf", []) if "properties" in option]
        if tables:
            yield from _keys(f"{prefix}.{name}", tables[0])
        else:
            yield f"{prefix}.{name}", inner


def _row(key: str, schema: JsonSchema) -> str:
    cells = [f"`{key}`", _kind(schema), _default(schema), schema["description"], _in_the_paper(key)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _in_the_paper(key: str) -> str:
    """Return where a key is in the paper; of one that a network has for itself, that network says it."""
    own = {f"M.{name}": place for each in MEMBERS.values() for name, place in each.PAPER.items()}
    return {**own, **PAPER}.get(key, "-")


def _kind(schema: JsonSchema) -> str:
    """Return the type and the range of a value in words, its alternatives joined by `or`."""
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "const" in schema:
        return _value(schema["const"])
    if "enum" in schema:
        return ", ".join(map(_value, schema["enum"]))
    if schema["type"] == "array":
        return _list_kind(schema)
    if schema.get("pattern") == f"^{SPACE_NAME}$":
        return "a space's name"
    name = {"string": "text"}.get(schema["type"], schema["type"])
    return " ".join(filter(None, [name, " and ".join(_limits(schema))]))


def _list_kind(schema: JsonSchema) -> str:
    """Return the type of a list; those of study files have no length, one item or more, or a length."""
    items = _kind(schema["items"]).replace("integer", "integers", 1)
    if "maxItems" in schema:
        return f"list of {schema['maxItems']} {items}"
    return f"{'non-empty ' if schema.get('minItems') else ''}list of {items}"


LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _limits(schema: JsonSchema) -> list[str]:
    """Return the limits of a number, or the characters of a text."""
    limits = [f"{sign} {_number(schema[name])}" for name, sign in LIMITS.items() if schema.get(name, MOST) != MOST]
    return limits + (["of 0, 1 and space"] if schema.get("pattern") == "^[01 ]+$" else [])


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:,}"


def _default(schema: JsonSchema) -> str:
    """Return the default, which a key that every cell needs does not have."""
    if "default" not in schema:
        return "none, needed"
    return "not set" if schema["default"] is None else _value(schema["default"])


def _value(value: Any) -> str:
    """Return a value as a study file writes it."""
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value:.6g}`" if isinstance(value, float) else f"`{value}`"
