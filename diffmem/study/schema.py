"""The JSON schema of a study file, which editors use."""

from typing import Any

from diffmem.cells import SPACE_NAME, SpaceSettings
from diffmem.measures import MEASURES, all_names
from diffmem.study.layers import ON_AXES, SECTIONS, SPACES, TEXTS, models_of


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of study files, with which editors complete and check them."""
    sections = {section: _section(section) for section in SECTIONS}
    in_space = {"type": "string", "pattern": f"^{SPACE_NAME}$"}
    sections["score"]["properties"]["measures"]["items"] = {"anyOf": [{"enum": all_names()}, in_space]}
    sections["emm"]["properties"]["measure"]["anyOf"] = [{"enum": list(MEASURES)}, in_space]
    del sections["emm"]["properties"]["measure"]["type"]
    spaces = {
        "type": "object",
        "description": "Feature spaces by name, each a measure that score.measures and emm.measure can name.",
        "propertyNames": {"pattern": in_space["pattern"]},
        "additionalProperties": space_schema(),
    }
    axis = {
        section: {
            "type": "object",
            "additionalProperties": False,
            "properties": {key: _list_of(value) for key, value in sections[section]["properties"].items()},
        }
        for section in ON_AXES
    }
    axes = {
        "type": "array",
        "description": "Keys in one table move together; different tables cross.",
        "items": {"type": "object", "additionalProperties": False, "properties": axis},
    }
    texts = {name: {"type": "string", "description": TEXTS[name]} for name in TEXTS}
    profile = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"title": texts["title"], **sections, SPACES: spaces, "axes": axes},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "diffmem study",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **texts,
            **sections,
            SPACES: spaces,
            "axes": axes,
            "profiles": {
                "type": "object",
                "description": "What is different at another scale; `--profile NAME` asks for it.",
                "additionalProperties": profile,
            },
        },
    }


def space_schema() -> dict[str, Any]:
    """Return the schema of the table of a feature space."""
    return _without_references(SpaceSettings.model_json_schema())


def _section(section: str) -> dict[str, Any]:
    """Return the schema of a section; that of M has the keys of all networks, and their names."""
    schemas = [_without_references(model.model_json_schema()) for model in models_of(section)]
    if len(schemas) == 1:
        return schemas[0]
    properties: dict[str, dict[str, Any]] = {}
    for schema in schemas:
        for key, value in schema["properties"].items():
            if properties.setdefault(key, value) != value and key != "network":
                properties[key] = {"anyOf": [properties[key], value], "description": value["description"]}
    names = [schema["properties"]["network"] for schema in schemas]
    meanings = [f"`{each['const']}`: {each['description']}" for each in names]
    properties["network"] = {
        "default": names[0]["const"],
        "description": f"{'; '.join(meanings)}.",
        "enum": [each["const"] for each in names],
        "title": "Network",
        "type": "string",
    }
    whole = _without_references(SECTIONS[section].model_json_schema())
    return {**whole, "additionalProperties": False, "properties": properties}


def _without_references(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a section's schema with the models inside it written out, and nothing required: a base may give it."""
    models = schema.pop("$defs", {})

    def written_out(part: Any) -> Any:
        if isinstance(part, list):
            return [written_out(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return written_out(models[part["$ref"].rpartition("/")[2]])
        return {key: written_out(value) for key, value in part.items() if key != "required"}

    plain: dict[str, Any] = written_out(schema)
    return plain


def _list_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a key on an axis: a list of its values; of a table, lists of the values inside."""
    tables = [option for option in schema.get("anyOf", []) if "properties" in option]
    if tables:
        return {**tables[0], "properties": {key: _list_of(value) for key, value in tables[0]["properties"].items()}}
    inner = {key: value for key, value in schema.items() if key != "default"}
    return {"type": "array", "minItems": 1, "items": inner}
