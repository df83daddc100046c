"""The feature spaces that a study declares: used by name, relative to its file, and every fault with its line."""

from pathlib import Path

import pytest
import tiny

from diffmem.errors import StudyError
from diffmem.study.study import Study

SPACE = '\n[spaces.sscd]\nfeatures = "sscd.pt"\nthreshold = 0.5\n'
LINE = 1 + len((tiny.TEXT + 'measures = ["sscd"]\n\n').splitlines())
"""The line of [spaces.sscd] in a study that uses it."""


def text(more: str, measures: str = '["sscd"]') -> str:
    return tiny.TEXT + f"measures = {measures}\n" + more


def faults(tmp_path: Path, written: str, **more: list[str]) -> list[str]:
    path = tiny.write(tmp_path, written)
    with pytest.raises(StudyError) as refused:
        Study.load(path, **more)
    return [fault.replace(str(path), "tiny.toml") for fault in refused.value.faults]


def test_a_space_is_a_measure_by_its_name(tmp_path: Path) -> None:
    study = Study.load(tiny.write(tmp_path, text(SPACE + '[emm]\nmeasure = "sscd"\n')))
    assert (study.measure.name, study.threshold, study.estimated["measure"]) == ("sscd", 0.5, "sscd")
    assert study.spaces["sscd"].folder == str(tmp_path)
    assert [entry.cell.score.measures for entry in study.cells] == [("sscd",)] * 2
    assert {*study.cells[0].spaces} == {"sscd"}
    plain = Study.load(tiny.write(tmp_path))
    assert [entry.cell.cell_id for entry in study.cells] == [entry.cell.cell_id for entry in plain.cells]


def test_the_measure_of_the_emm_is_one_that_scores(tmp_path: Path) -> None:
    study = Study.load(tiny.write(tmp_path, tiny.TEXT + SPACE + '[emm]\nmeasure = "sscd"\n'))
    assert study.cells[0].cell.score.measures == ("sscd",)


def test_a_space_is_extended_overridden_and_of_the_folder_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    tiny.write(tmp_path / "below", text(SPACE), "base")
    above = 'extends = "below/base.toml"\n[profiles.strict]\nspaces.sscd.threshold = 0.6\n'
    path = tiny.write(tmp_path, above)
    assert Study.load(path).spaces["sscd"].folder == str(tmp_path / "below")
    assert Study.load(path, profile="strict").spaces["sscd"].threshold == 0.6
    given = ["spaces.sscd.threshold=0.7", "spaces.sscd.features='a:b'"]
    found = Study.load(path, overrides=given).spaces["sscd"]
    assert (found.threshold, found.folder, found.settings.features) == (0.7, ".", "a:b")


def test_a_space_that_no_measure_is_in_is_a_fault(tmp_path: Path) -> None:
    assert faults(tmp_path, text(SPACE, measures="[]")) == [
        f'tiny.toml:{LINE + 1}: spaces.sscd: is declared, but not used; add "sscd" to score.measures, or name it in '
        "emm.measure"
    ]


def test_a_measure_that_is_no_space_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, text(""))
    assert fault.startswith(f"tiny.toml:{LINE - 2}: score.measures: no measure 'sscd'; there are nearest, calibrated, ")
    assert fault.endswith(", gaps, membership, quality, and feature spaces that are declared as [spaces.NAME]")


MISSING = (
    "spaces.sscd.features: missing; a space needs what makes features: module:function, a TorchScript or ONNX file, "
    "timm:NAME or transformers:NAME"
)


@pytest.mark.parametrize(
    ("table", "line", "said"),
    [
        (
            "[spaces.sscd]\nthreshold = 0.5\n",
            1,
            MISSING,
        ),
        (
            '[spaces.sscd]\nfeatures = "a:b"\n',
            1,
            "spaces.sscd.threshold: missing; a similarity needs one, and there is none for all features "
            "(SSCD: 0.5 or 0.6)",
        ),
        (
            '[spaces.sscd]\nfeatures = "a:b"\nthreshold = 1.5\n',
            2,
            "spaces.sscd.threshold: must be less than 1, not 1.5",
        ),
        (
            '[spaces.sscd]\nfeatures = "a:b"\nthreshold = 0.5\nresize = "224"\n',
            3,
            'spaces.sscd.resize: must be "none", "short 288", "short 256 crop 224" or "square 320", not \'224\'',
        ),
        (
            '[spaces.sscd]\nfeatures = "a:b"\nthreshold = 0.5\npixels = "0..2"\n',
            3,
            "spaces.sscd.pixels: must be '0..255', '0..1' or 'imagenet', not '0..2'",
        ),
        (
            "[spaces.sscd]\nfeatures = 3\nthreshold = 0.5\n",
            1,
            "spaces.sscd.features: must be text, not 3",
        ),
        (
            '[spaces.sscd]\nfeatures = "a:b"\nthreshold = 0.5\nresise = "none"\n',
            3,
            "spaces.sscd.resise: no such key; did you mean resize?",
        ),
    ],
)
def test_a_fault_of_a_space_is_told_with_its_line(table: str, line: int, said: str, tmp_path: Path) -> None:
    assert faults(tmp_path, text("\n" + table)) == [f"tiny.toml:{LINE + line}: {said}"]


def test_a_name_that_a_space_cannot_have_is_a_fault(tmp_path: Path) -> None:
    table = 'features = "a:b"\nthreshold = 0.5\n'
    assert faults(tmp_path, tiny.TEXT + f"\n[spaces.nearest]\n{table}") == [
        f"tiny.toml:{LINE}: spaces.nearest: is a measure already; give the space another name"
    ]
    assert faults(tmp_path, tiny.TEXT + f"\n[spaces.SSCD]\n{table}") == [
        f"tiny.toml:{LINE}: spaces.SSCD: a name has small letters, digits, - and _, and begins with a letter"
    ]


def test_what_is_no_table_of_a_space_is_a_fault(tmp_path: Path) -> None:
    tables = "must be a table of features, resize, pixels, rule, threshold: [spaces.NAME]"
    assert faults(tmp_path, text("\n[spaces]\nsscd = 3\n"))[-1] == f"tiny.toml:{LINE + 1}: spaces.sscd: {tables}"
    assert faults(tmp_path, "spaces = 3\n" + tiny.TEXT) == [f"tiny.toml:1: spaces: {tables}"]
    on_axis = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", "spaces.sscd.threshold = [0.5, 0.6]")
    (fault,) = [each for each in faults(tmp_path, on_axis) if "axis" in each]
    assert fault.endswith("spaces.sscd.threshold: cannot be on an axis; only keys of P, M and T can")
