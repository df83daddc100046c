"""The reference of a study file's keys: complete, right, and the one that the docs have."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from diffmem.cells import SpaceSettings
from diffmem.cli import main
from diffmem.networks import MEMBERS
from diffmem.study.keys import PAPER, key_tables
from diffmem.study.layers import known_keys
from diffmem.study.schema import json_schema

DOCUMENT = Path(__file__).parents[2] / "docs" / "study-files.md"


def row_of(key: str) -> list[str]:
    """Return the cells of a key's row: key, type and range, default, meaning, place in the paper."""
    (line,) = [line for line in key_tables().splitlines() if line.startswith(f"| `{key}` |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def descriptions(schema: dict, path: str = "") -> dict[str, str | None]:
    """Return the description of every property inside a schema."""
    found = {}
    for name, inner in schema.get("properties", {}).items():
        found[f"{path}.{name}"] = inner.get("description")
        found |= descriptions(inner, f"{path}.{name}")
    for option in schema.get("anyOf", []):
        found |= descriptions(option, path)
    return found


def test_the_document_has_the_tables_that_the_command_prints():
    printed = CliRunner().invoke(main, ["schema", "--markdown"]).stdout.strip()
    document = DOCUMENT.read_text()
    written = document.split("prints -->\n", 1)[1].split("<!-- end of keys -->", 1)[0].strip()
    assert written == printed, "put what `diffmem schema --markdown` prints between the comments of docs/study-files.md"


def test_every_key_has_a_row_and_a_place_in_the_paper():
    rows = [line.split("`")[1] for line in key_tables().splitlines() if line.startswith("| `")]
    of_spaces = {f"spaces.NAME.{key}" for key in SpaceSettings.model_fields}
    assert sorted(rows) == sorted({*known_keys(), *of_spaces})
    own = {f"M.{key}" for member in MEMBERS.values() for key in member.PAPER}
    assert {*PAPER, *own} == known_keys()


def test_everything_that_a_file_or_a_profile_can_say_is_described():
    schema = json_schema()
    undescribed = [path for path, text in descriptions(schema).items() if not text]
    assert undescribed == []


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("P.size", "integer >= 2", "none, needed"),
        ("P.draw", 'integer >= 0 and < 2^63 or `"first"`', "`0`"),
        ("P.classes", "integer >= 1 and <= 100,000 or non-empty list of integers >= 0", "not set"),
        ("P.blend.share", "number >= 0 and <= 1", "none, needed"),
        ("M.network", '`"ddpm++"`, `"ncsn++"`, `"optimum"`', '`"ddpm++"`'),
        ("M.channel_mult", "non-empty list of integers >= 1", "`[2, 2, 2]`"),
        ("M.skips", "text of 0, 1 and space", "not set"),
        ("T.lr", "number > 0", "`0.0002`"),
        ("T.seed", "integer >= 0 and < 2^63", "`0`"),
        ("spaces.NAME.features", "text", "none, needed"),
        ("spaces.NAME.threshold", "number > 0 and < 1", "not set"),
        ("emm.range", "list of 2 integers >= 1", "not set"),
    ],
)
def test_a_row_has_type_range_and_default(key, kind, default):
    assert row_of(key)[1:3] == [kind, default]


def test_the_schema_refuses_lists_and_masks_that_a_study_file_refuses():
    properties = json_schema()["properties"]
    assert properties["M"]["properties"]["channel_mult"]["minItems"] == 1
    (mask,) = [option for option in properties["M"]["properties"]["skips"]["anyOf"] if option["type"] == "string"]
    assert mask["pattern"] == "^[01 ]+$"
    (pair,) = [option for option in properties["emm"]["properties"]["range"]["anyOf"] if option["type"] == "array"]
    assert (pair["minItems"], pair["maxItems"]) == (2, 2)
