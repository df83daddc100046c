"""Study files: how they merge, which cells they give, and how every fault is reported."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import tiny
import tomli

from diffmem.cells import SpaceSettings
from diffmem.cells.cell import Cell
from diffmem.cells.settings import DataDistribution, Estimation, ModelConfiguration, Scoring, TrainingProcedure
from diffmem.errors import StudyError
from diffmem.measures import DENOISER_MEASURES, GROUPED
from diffmem.networks.unets import UNetModel
from diffmem.study import crossing
from diffmem.study.layers import ONE_OF, SECTIONS, models_of
from diffmem.study.schema import json_schema
from diffmem.study.study import Study, study_name

STUDIES = Path(__file__).parents[2] / "studies"

BASE = """
[P]
dataset = "digits"
size = 8

[M]
width = 8
channel_mult = [2, 2]

[T]
epochs = 10
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text: str | bytes, name: str = "study.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load(text: str | bytes, *overrides: str, profile: str | None = None) -> Study:
    return Study.load(write(text), profile=profile, overrides=overrides)


def faults(text: str | bytes, *overrides: str, profile: str | None = None) -> list[str]:
    with pytest.raises(StudyError) as caught:
        load(text, *overrides, profile=profile)
    assert str(caught.value).splitlines() == list(caught.value.faults)
    return list(caught.value.faults)


def dotted(changes: dict[str, str]) -> str:
    """Return the dotted base text with some keys set to other values, in TOML syntax."""
    replaced = {key for keys in ONE_OF if set(keys) & changes.keys() for key in keys} | changes.keys()
    kept = [line for line in tiny.DOTTED.splitlines() if line.partition(" ")[0] not in replaced]
    return "\n".join([*(f"{key} = {value}" for key, value in changes.items()), *kept, ""])


def values(study: Study, key: str) -> list[Any]:
    """Return the value of a key such as M.width in each cell."""
    section, _, name = key.partition(".")
    return [getattr(getattr(entry.cell, section), name) for entry in study.cells]


# --- one file ------------------------------------------------------------------------------------------


def test_a_study_without_axes_is_one_cell_with_all_defaults():
    study = load('[P]\ndataset = "digits"\nsize = 8\n')
    expected = Cell.resolve(
        DataDistribution(dataset="digits", size=8), ModelConfiguration(), TrainingProcedure(), Scoring()
    )
    assert [entry.cell for entry in study.cells] == [expected]
    assert (study.axes, study.estimation, study.cells[0].axis_values, study.cells[0].curve) == (
        (),
        Estimation(),
        {},
        "",
    )


def test_the_title_is_by_default_the_name_of_the_file():
    assert load(BASE).title == "study"
    assert load('title = "Retained skips"\nfigure = "Fig. 4"\n' + BASE).title == "Retained skips"
    assert load('title = "Retained skips"\nfigure = "Fig. 4"\n' + BASE).figure == "Fig. 4"


def test_the_store_knows_a_study_by_its_file_and_profile():
    assert load(BASE).name == study_name(Path("anywhere/study.toml")) == "study"
    laptop = load(BASE + "[profiles.laptop]\nP.size = 4\n", profile="laptop")
    assert laptop.name == study_name(Path("study.toml"), "laptop") == "study@laptop"


def test_keys_may_be_written_dotted_inline_or_in_a_table():
    inline = load('P = {dataset = "digits", size = 8}\nM = {width = 8, channel_mult = [2, 2]}\nT.epochs = 10\n')
    assert load(BASE).cells == load(tiny.DOTTED).cells == inline.cells


def test_windows_line_ends_change_nothing():
    assert load(BASE.replace("\n", "\r\n")).cells == load(BASE).cells


def test_the_settings_of_emm_are_no_part_of_a_cell():
    study = load(BASE + "[emm]\nepsilon = 0.2\n")
    assert study.estimation == Estimation(epsilon=0.2)
    assert study.cells == load(BASE).cells


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_that_ships_is_valid_with_all_its_profiles(path):
    assert Study.load(path).cells
    for profile in tomli.loads(path.read_text()).get("profiles", {}):
        assert Study.load(path, profile=profile).cells


# --- axes ----------------------------------------------------------------------------------------------


def test_axes_cross_and_the_last_one_changes_fastest():
    study = load(BASE + "[[axes]]\nM.blocks = [1, 2]\n[[axes]]\nP.size = [4, 8, 16]\n")
    assert study.axes == (("M.blocks",), ("P.size",))
    assert [(e.axis_values["M.blocks"], e.axis_values["P.size"]) for e in study.cells] == [
        (1, 4),
        (1, 8),
        (1, 16),
        (2, 4),
        (2, 8),
        (2, 16),
    ]
    assert list(zip(values(study, "M.blocks"), values(study, "P.size"), strict=True)) == [
        tuple(entry.axis_values.values()) for entry in study.cells
    ]


def test_keys_of_one_axis_move_together():
    study = load(BASE + '[[axes]]\nM.network = ["ddpm++", "ncsn++"]\nM.precondition = ["vp", "ve"]\n')
    assert study.axes == (("M.network", "M.precondition"),)
    assert list(zip(values(study, "M.network"), values(study, "M.precondition"), strict=True)) == [
        ("ddpm++", "vp"),
        ("ncsn++", "ve"),
    ]


def test_an_axis_wins_over_the_value_in_its_section():
    assert values(load(BASE + "[[axes]]\nP.size = [4, 16]\n"), "P.size") == [4, 16]


def test_a_value_that_is_a_list_may_sit_on_an_axis():
    study = load(BASE + "[[axes]]\nM.channel_mult = [[1, 1], [2, 2]]\n")
    assert values(study, "M.channel_mult") == [(1, 1), (2, 2)]


def test_a_key_of_every_training_section_may_sit_on_an_axis():
    study = load(BASE + "[[axes]]\nP.draw = [0, 1]\n[[axes]]\nT.seed = [0, 1]\n[[axes]]\nM.dropout = [0.0, 0.1]\n")
    assert len(study.cells) == 8


def test_a_cell_that_two_curves_share_is_on_both_and_trained_once():
    study = load(BASE + '[[axes]]\nM.network = ["optimum", "ddpm++"]\n[[axes]]\nT.lr = [1e-3, 1e-4]\n')
    assert values(study, "M.network") == ["optimum", "optimum", "ddpm++", "ddpm++"]
    assert study.cells[0].cell == study.cells[1].cell
    assert study.cells[0].curve != study.cells[1].curve
    assert [entry.axis_values["T.lr"] for entry in study.distinct] == [1e-3, 1e-3, 1e-4]


MANY = (
    BASE
    + """
[[axes]]
P.size = [4, 8, 12, 16, 20]
[[axes]]
T.seed = SEEDS
[[axes]]
P.draw = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
"""
)


def many(seeds: int) -> str:
    """Return a study of 50 cells for each of some seeds."""
    return MANY.replace("SEEDS", str(list(range(seeds))))


def test_cells_share_the_sections_that_their_axes_do_not_tell_apart():
    cells = [entry.cell for entry in load(many(10)).cells]
    shared = {section: len({id(getattr(cell, section)) for cell in cells}) for section in ("P", "M", "T", "score")}
    assert (len(cells), shared) == (500, {"P": 50, "M": 1, "T": 10, "score": 1})


def test_settings_are_checked_once_for_each_value_and_not_for_each_cell(monkeypatch):
    checked = []
    for owner, name in ((crossing, "impossible_data"), (UNetModel, "faults"), (crossing, "impossible_checkpoints")):
        check = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, check=check: checked.append(check) or check(*given))
    load(many(10))
    assert len(checked) == 50 + 1 + 10


def test_each_further_cell_of_a_study_takes_less_than_2500_bytes():
    load(many(1))
    peaks = []
    for seeds in (40, 80):
        tracemalloc.start()
        load(many(seeds))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 2000 < 2500


def test_a_key_on_two_axes_is_one_fault_whatever_its_first_values_are():
    (fault,) = faults(BASE + "[[axes]]\nP.size = [1979-05-27, 4]\n[[axes]]\nP.size = [4, 8]\n")
    assert "P.size: is on an axis already" in fault


def test_a_default_and_the_same_value_written_out_are_one_cell():
    assert len(load(BASE + '[[axes]]\nM.embedding = ["positional", "positional"]\n').cells) == 1


def test_curves_are_told_apart_by_all_axes_but_those_of_size_and_replicates():
    study = load(
        BASE
        + '[[axes]]\nM.condition = ["none", "unique"]\nM.dropout = [0.0, 0.1]\n'
        + "[[axes]]\nP.size = [4, 8]\nT.epochs = [20, 10]\n"
        + "[[axes]]\nP.draw = [0, 1]\n"
        + "[[axes]]\nT.seed = [0, 1]\n"
        + "[[axes]]\nM.skips = [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]]\n"
    )
    assert len(study.cells) == 32
    assert list(dict.fromkeys(entry.curve for entry in study.cells)) == [
        "M.condition = none, M.dropout = 0.0, M.skips = [1, 1, 1, 1, 1, 1]",
        "M.condition = none, M.dropout = 0.0, M.skips = [1, 0, 0, 0, 0, 0]",
        "M.condition = unique, M.dropout = 0.1, M.skips = [1, 1, 1, 1, 1, 1]",
        "M.condition = unique, M.dropout = 0.1, M.skips = [1, 0, 0, 0, 0, 0]",
    ]


def test_a_study_of_sizes_alone_has_one_curve_without_a_label():
    assert {entry.curve for entry in load(BASE + "[[axes]]\nP.size = [4, 8]\n").cells} == {""}


# --- extends and profiles ------------------------------------------------------------------------------


def test_extends_merges_key_by_key_and_the_file_wins():
    write('title = "base"\n' + BASE + "lr = 1e-3\n[score]\nsteps = 9\n", "base.toml")
    study = load('extends = "base.toml"\nT.epochs = 5\nscore.samples = 7\n')
    cell = study.cells[0].cell
    assert (cell.T.epochs, cell.T.lr, cell.M.width) == (5, 1e-3, 8)
    assert (cell.score.steps, cell.score.samples) == (9, 7)
    assert study.title == "base"


def test_extends_goes_over_several_files_and_the_nearest_wins():
    write(BASE + "lr = 1e-1\nema = 0.1\nseed = 1\n", "one.toml")
    write('extends = "one.toml"\nT.ema = 0.2\nT.seed = 2\n', "two.toml")
    cell = load('extends = "two.toml"\nT.seed = 3\n').cells[0].cell
    assert (cell.T.lr, cell.T.ema, cell.T.seed) == (1e-1, 0.2, 3)


def test_extends_is_relative_to_the_file_that_says_it():
    write(BASE, "shared/base.toml")
    write('extends = "base.toml"\nT.seed = 4\n', "shared/more.toml")
    assert values(load('extends = "shared/more.toml"\n'), "T.seed") == [4]


def test_axes_of_a_file_replace_those_of_the_base_as_a_whole():
    write(BASE + "[[axes]]\nM.blocks = [1, 2]\n[[axes]]\nP.size = [4, 8]\n", "base.toml")
    study = load('extends = "base.toml"\n[[axes]]\nT.seed = [0, 1, 2]\n')
    assert study.axes == (("T.seed",),)
    assert (values(study, "T.seed"), values(study, "P.size")) == ([0, 1, 2], [8, 8, 8])


def test_axes_of_the_base_stay_where_the_file_has_none():
    write(BASE + "[[axes]]\nP.size = [4, 8]\n", "base.toml")
    assert values(load('extends = "base.toml"\nT.seed = 5\n'), "P.size") == [4, 8]


def test_an_empty_list_of_axes_takes_those_of_the_base_away():
    write(BASE + "[[axes]]\nP.size = [4, 16]\n", "base.toml")
    assert values(load('extends = "base.toml"\naxes = []\n'), "P.size") == [8]


def test_a_profile_merges_key_by_key_and_wins():
    text = BASE + 'lr = 1e-3\n[profiles.laptop]\ntitle = "small"\nT.epochs = 2\n[profiles.laptop.P]\nsize = 4\n'
    study = load(text, profile="laptop")
    cell = study.cells[0].cell
    assert (cell.T.epochs, cell.T.lr, cell.P.size, study.title) == (2, 1e-3, 4, "small")
    assert load(text).cells[0].cell.T.epochs == 10


def test_axes_of_a_profile_replace_those_of_the_study_as_a_whole():
    text = BASE + "[[axes]]\nP.size = [4, 8]\n[[axes]]\nM.blocks = [1, 2]\n[[profiles.laptop.axes]]\nT.seed = [0, 1]\n"
    study = load(text, profile="laptop")
    assert study.axes == (("T.seed",),)
    assert len(load(text).cells) == 4


def test_axes_of_the_study_stay_where_the_profile_has_none():
    text = BASE + "[[axes]]\nP.size = [4, 8]\n[profiles.laptop]\nT.epochs = 2\n"
    assert values(load(text, profile="laptop"), "P.size") == [4, 8]


def test_profiles_merge_along_extends():
    write(
        BASE + "[profiles.laptop]\nT.epochs = 2\nT.seed = 2\n[[profiles.laptop.axes]]\nP.size = [2, 4]\n", "base.toml"
    )
    study = load('extends = "base.toml"\n[profiles.laptop]\nT.seed = 3\n', profile="laptop")
    assert (values(study, "T.epochs"), values(study, "T.seed")) == ([2, 2], [3, 3])
    assert values(study, "P.size") == [2, 4]


def test_a_profile_of_the_base_is_a_profile_of_the_file_and_wins_over_its_settings():
    write(BASE + "[profiles.laptop]\nT.epochs = 2\n", "base.toml")
    study = load('extends = "base.toml"\nT.epochs = 50\n', profile="laptop")
    assert values(study, "T.epochs") == [2]


def test_profiles_that_are_not_asked_for_change_nothing():
    text = BASE + "[profiles.laptop]\nT.epochs = 2\n[profiles.cluster]\nT.epochs = 99\n"
    assert load(text).cells == load(BASE).cells


def test_an_unknown_profile_names_those_there_are():
    (fault,) = faults(BASE + "[profiles.laptop]\n[profiles.cluster]\n", profile="laptpo")
    assert fault.startswith("study.toml: ")
    assert all(name in fault for name in ("laptpo", "laptop", "cluster"))


def test_a_file_that_extends_itself_is_a_fault():
    (fault,) = faults('# a comment\nextends = "study.toml"\n' + BASE)
    assert fault.startswith("study.toml:2: extends: study.toml ")


def test_two_files_that_extend_each_other_are_a_fault():
    write('\nextends = "study.toml"\n', "base.toml")
    (fault,) = faults('extends = "base.toml"\n' + BASE)
    assert fault.startswith("base.toml:2: extends: study.toml ")


def test_a_base_that_is_not_there_is_a_fault_that_names_both_files():
    (fault,) = faults('extends = "nowhere.toml"\n' + BASE)
    assert fault.startswith("nowhere.toml: cannot be read")
    assert "study.toml" in fault


def test_a_fault_in_a_base_names_the_base():
    write("[M]\nwidht = 8\n", "base.toml")
    assert faults('extends = "base.toml"\n' + BASE) == ["base.toml:2: M.widht: no such key; did you mean width?"]


def test_a_value_of_the_base_that_the_file_replaces_is_not_judged():
    write('[M]\nwidth = "wide"\n', "base.toml")
    assert values(load('extends = "base.toml"\n' + BASE), "M.width") == [8]


# --- overrides -----------------------------------------------------------------------------------------


def test_set_overrides_a_setting_and_is_part_of_the_cell():
    written = BASE.replace("epochs = 10", "epochs = 3").replace("width = 8", 'width = 8\ncondition = "true"')
    assert load(BASE, "T.epochs=3", 'M.condition="true"').cells == load(written).cells


def test_set_wins_over_a_profile_and_the_last_one_over_those_before():
    text = BASE + "[profiles.laptop]\nT.epochs = 2\n"
    assert values(load(text, "T.epochs=4", "T.epochs=5", profile="laptop"), "T.epochs") == [5]


def test_set_takes_any_toml_with_spaces_tables_and_lists():
    study = load(BASE, " M.channel_mult = [1, 1] ", "T = {epochs = 3, seed = 4}", "emm.epsilon=0.3")
    assert (values(study, "M.channel_mult"), values(study, "T.epochs"), values(study, "T.seed")) == ([(1, 1)], [3], [4])
    assert study.estimation.epsilon == 0.3


def test_set_with_a_list_replaces_the_values_of_an_axis():
    study = load(BASE + "[[axes]]\nP.size = [4, 8]\n[[axes]]\nT.seed = [0, 1]\n", "P.size=[2, 16, 32]")
    assert values(study, "P.size") == [2, 2, 16, 16, 32, 32]
    assert study.axes == (("P.size",), ("T.seed",))


def test_set_with_a_single_value_fixes_an_axis():
    study = load(BASE + "[[axes]]\nP.size = [4, 8]\n[[axes]]\nT.seed = [0, 1]\n", "P.size=16")
    assert (values(study, "P.size"), values(study, "T.seed")) == ([16, 16], [0, 1])


PAIR = BASE + '[[axes]]\nM.network = ["ddpm++", "ncsn++"]\nM.precondition = ["vp", "ve"]\n'


def test_set_replaces_one_key_of_an_axis_and_the_others_keep_theirs():
    single, several = load(PAIR, 'M.precondition="edm"'), load(PAIR, 'M.precondition=["ve", "edm"]')
    assert values(single, "M.network") == values(several, "M.network") == ["ddpm++", "ncsn++"]
    assert (values(single, "M.precondition"), values(several, "M.precondition")) == (["edm", "edm"], ["ve", "edm"])


def test_set_on_an_axis_with_another_number_of_values_says_so():
    (fault,) = faults(PAIR, 'M.network=["ddpm++"]')
    assert fault.startswith('--set M.network=["ddpm++"]: M.network: ')
    assert "equally many" in fault


def test_set_with_an_empty_list_on_an_axis_is_a_fault():
    (fault,) = faults(BASE + "[[axes]]\nP.size = [4, 8]\n", "P.size=[]")
    assert fault.startswith("--set P.size=[]: P.size: ")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("M.widht=8", "--set M.widht=8: M.widht: no such key; did you mean width?"),
        ("T.epochs=0", "--set T.epochs=0: T.epochs: must be greater than or equal to 1, not 0"),
        ("T.epochs", "--set T.epochs: not KEY=VALUE in TOML syntax"),
        ("M.condition=none", "--set M.condition=none: not KEY=VALUE in TOML syntax"),
        ("T=3", "--set T=3: T: must be a table"),
        ("", "--set : "),
        ("=", "--set =: not KEY=VALUE in TOML syntax"),
        ("title=5", "--set title=5: title: must be text"),
        ("figure=[1]", "--set figure=[1]: figure: must be text"),
        ('extends="other.toml"', '--set extends="other.toml": extends: '),
        ("axes=[]", "--set axes=[]: axes: "),
        ("profiles.laptop.T.epochs=3", "--set profiles.laptop.T.epochs=3: profiles"),
    ],
)
def test_a_wrong_override_is_a_fault_that_shows_it(override, expected):
    (fault,) = faults(BASE, override)
    assert fault.startswith(expected)


def test_faults_of_overrides_and_of_the_file_come_together():
    found = faults(BASE + "seed = -1  # WRONG\n", "T.epochs=0", "M.lr=3")
    assert set(places(found)) == {*marked(BASE + "seed = -1  # WRONG\n"), "--set T.epochs=0", "--set M.lr=3"}


# --- faults: where -------------------------------------------------------------------------------------


def marked(text: str, name: str = "study.toml") -> list[str]:
    """Return the places of the lines of a text that say WRONG."""
    return [f"{name}:{number}" for number, line in enumerate(text.split("\n"), start=1) if "WRONG" in line]


def places(found: list[str]) -> list[str]:
    return [fault.partition(": ")[0] for fault in found]


IN_PLACE = {
    "a key of a table": BASE + "widht = 8  # WRONG\n",
    "a table": BASE + "[Q]  # WRONG\nwidth = 8\n",
    "a key before all tables": "# first\n\nwidht = 8  # WRONG\n" + BASE,
    "a dotted key": "M.widht = 8  # WRONG\n" + tiny.DOTTED,
    "one of several dotted keys": tiny.DOTTED + "T.seed = 1\nT.sede = 1  # WRONG\nT.lr = 0.1\n",
    "an inline table": "score = {samples = 3, stesp = 9}  # WRONG\n" + BASE,
    "a table in a table": BASE + "[T.more]\nvalue = 3  # WRONG\n",
    "a value out of range": BASE + "\n\nseed = -1  # WRONG\n",
    "a value after a list over several lines": BASE.replace("[2, 2]", "[\n  2,\n  2,  # ] \n]")
    + "seed = -1  # WRONG\n",
    "a value after a list whose lines look like tables": BASE
    + "[[axes]]\nM.channel_mult = [\n[1, 1],\n[2, 2],\n]\n[score]\nsteps = 0  # WRONG\n",
    "a value after a text whose lines look like settings": 'title = """\n[P]\nsize = 0\n[[axes]]\n"""\n'
    + BASE
    + "seed = -1  # WRONG\n",
    "a value after a comment that looks like a table": BASE + "# [P]\n# size = 3\nseed = -1  # WRONG\n",
    "a value after a text with brackets and quotes": "title = \"a [P] ''' # b\"\n" + BASE + "seed = -1  # WRONG\n",
    "a list over several lines": BASE + "[[axes]]\nT.epochs = [  # WRONG\n  10,\n  0,\n]\n",
    "the second axis": BASE
    + "[[axes]]\nP.size = [4, 8]\n[[axes]]\nM.blocks = [1]\nM.widht = [8]  # WRONG\n[[axes]]\nT.seed = [0]\n",
    "an axis with tables": BASE + "[[axes]]\nP.size = [4]\n[[axes]]\n[axes.M]\nwidht = [8]  # WRONG\n",
    "an axis with inline tables": BASE + "[[axes]]\nP = {size = [4]}\nM = {widht = [8]}  # WRONG\n",
    "an axis without values": BASE + "[[axes]]\nP.size = []  # WRONG\n",
    "an axis with one value": BASE + "[[axes]]\nP.size = 8  # WRONG\n",
    "an empty axis": BASE + "[[axes]]\nP.size = [4]\n[[axes]]  # WRONG\n[score]\nsteps = 9\n",
    "axes that are no tables": "axes = [1, 2]  # WRONG\n" + BASE,
    "an axis of what is no part of a cell": BASE + "[[axes]]\nemm.epsilon = [0.1]  # WRONG\n",
    "an axis of titles": BASE + '[[axes]]\nP.size = [4, 8]\ntitle = ["a", "b"]  # WRONG\n',
    "an axis of unequal lengths": BASE + "[[axes]]\nM.blocks = [1, 2]  # WRONG\nM.width = [8]\n",
    "a key on two axes": BASE + "[[axes]]\nM.blocks = [1, 2]\n[[axes]]\nM.blocks = [2, 1]  # WRONG\n",
    "a profile": BASE + "[profiles.a]\nT.epochs = 3\n[profiles.b]\nT.epohcs = 3  # WRONG\n",
    "a table of a profile": BASE + "[profiles.a.T]\nepochs = 3\n[profiles.b.T]\nepochs = 4\nepohcs = 3  # WRONG\n",
    "an axis of a profile": BASE
    + "[[axes]]\nP.size = [4]\n[[profiles.a.axes]]\nP.size = [4]\n[[profiles.a.axes]]\nM.widht = [8]  # WRONG\n",
    "an axis of the second profile": BASE
    + "[[profiles.a.axes]]\nP.size = [4]\n[[profiles.b.axes]]\nM.widht = [8]  # WRONG\n",
    "profiles that are no tables": "profiles = 3  # WRONG\n" + BASE,
    "a profile that is no table": "profiles.a = 3  # WRONG\n" + BASE,
    "a title that is no text": "title = 3  # WRONG\n" + BASE,
    "a base that is no text": "extends = 3  # WRONG\n" + BASE,
    "a section that is no table": BASE.replace("[T]\nepochs = 10", "[[T]]  # WRONG\nepochs = 10"),
    "a quoted key": BASE + '"seed" = -1  # WRONG\n',
    "a quoted key with a dot": BASE + 'seed = 1\n"a.b" = 1  # WRONG\n',
    "two settings that do not agree": BASE.replace("[2, 2]", '[2, 2]\nskips = "111"  # WRONG'),
    "the one that is written of two settings": BASE.replace("width", 'condition = "random"  # WRONG\nwidth'),
    "a value of an axis that does not agree": BASE
    + "[[axes]]\nT.seed = [0, 1]\n[[axes]]\nP.size = [8, 9999]  # WRONG\n",
}


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("text", IN_PLACE.values(), ids=IN_PLACE)
def test_a_fault_names_the_line_it_is_on(text, ends):
    assert places(faults(text.replace("\n", ends))) == marked(text)


PROFILED = {
    "a table": "[profiles.a]\nT.epochs = 0  # WRONG\n",
    "a dotted key": "[profiles]\na.T.seed = 3\na.T.epochs = 0  # WRONG\n",
    "an inline table": "[profiles]\nb = {}\na = {T = {epochs = 0}}  # WRONG\n",
    "an axis": "[[axes]]\nT.epochs = [0]\n"
    "[[profiles.a.axes]]\nP.size = [4]\n[[profiles.a.axes]]\nT.epochs = [0]  # WRONG\n",
}


@pytest.mark.parametrize("text", PROFILED.values(), ids=PROFILED)
def test_a_wrong_value_of_the_chosen_profile_names_its_line(text):
    assert places(faults(BASE + text, profile="a")) == marked(BASE + text)


EVERYTHING_BASE = """\
title = 5                          # WRONG
[score]
stesp = 3                          # WRONG
[T]
lr = -1                            # WRONG
seed = -1
"""

EVERYTHING = """\
extends = "base.toml"
titel = "a"                        # WRONG
[P]
dataset = "digits"
size = 99999                       # WRONG
[M]
width = "wide"                     # WRONG
condition = "maybe"                # WRONG
skips = "111"                      # WRONG
batch_size = 3                     # WRONG
[T]
seed = 1
ema = 1.0                          # WRONG
[[axes]]
T.momentum = [0.1, 0.2]            # WRONG
M.blocks = [1]
[[axes]]
M.dropout = [
    0.1,
]
[[axes]]
M.dropout = [0.1]                  # WRONG
[emm]
epsilon = 2                        # WRONG
[Q]                                # WRONG
[profiles.small]
T.lrr = 1                          # WRONG
"""


def test_every_fault_is_reported_at_once_each_with_its_file_and_line():
    write(EVERYTHING_BASE, "base.toml")
    expected = [*marked(EVERYTHING_BASE, "base.toml"), *marked(EVERYTHING)]
    assert sorted(places(faults(EVERYTHING))) == sorted(expected)


@pytest.mark.parametrize("bad", ["size = 0", 'size = "many"', ""], ids=["out of range", "of a wrong type", "missing"])
def test_a_size_that_is_wrong_hides_no_other_fault(bad):
    text = BASE.replace("size = 8", bad).replace("width = 8", 'width = 8\nskips = "1"')
    assert {fault.split(": ")[1] for fault in faults(text)} == {"P.size", "M.skips"}
    assert {fault.split(": ")[1] for fault in faults(text.replace("digits", "digitz"))} >= {"P.size", "P.dataset"}


def test_faults_come_in_the_order_of_the_lines_and_levels_that_do_not_fit_hide_none():
    text = BASE.replace("width = 8", 'skips = "1 1"\nwidth = 7').replace("[2, 2]", "[2, 2, 2, 2, 2]") + "lrr = 1\n"
    keys = [fault.split(": ")[1] for fault in faults(text.replace("size = 8", "size = 100_000"))]
    assert keys == ["P.size", "M.skips", "M.width", "M.channel_mult", "T.lrr"]


def test_a_fault_that_many_cells_share_is_reported_once():
    assert len(faults(BASE + "ema = 2.0\n[[axes]]\nP.size = [4, 8]\n[[axes]]\nT.seed = [0, 1, 2]\n")) == 1


def test_a_wrong_setting_is_not_reported_again_for_what_it_should_agree_with():
    assert len(faults(BASE.replace("width = 8", 'width = 8\nskips = "1 1"\nblocks = 0'))) == 1


def test_what_every_cell_needs_is_missed_in_the_file():
    assert faults("[T]\nepochs = 3\n") == [
        "study.toml: P.dataset: missing; every cell needs it",
        "study.toml: P.size: missing; every cell needs it",
    ]


# --- faults: what --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("M.widht = 8", "M.widht: no such key; did you mean width?"),
        ("M.channels_mult = [2]", "M.channels_mult: no such key; did you mean channel_mult?"),
        ("score.sample = 3", "score.sample: no such key; did you mean samples?"),
        ("M.epochs = 8", "M.epochs: no such key; did you mean T.epochs?"),
        ("T.samples = 8", "T.samples: no such key; did you mean score.samples?"),
        ("T.size = 8", "T.size: no such key; did you mean P.size?"),
        ("axis = 3", "axis: no such key; did you mean axes?"),
        ("scores.samples = 3", "scores: no such key; did you mean score?"),
        ("profile.a.T.epochs = 3", "profile: no such key; did you mean profiles?"),
        ("M.xyz = 3", "M.xyz: no such key"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_valid_one(line, expected):
    assert faults(f"{line}\n{tiny.DOTTED}") == [f"study.toml:1: {expected}"]


def test_an_unknown_key_of_an_axis_comes_with_the_nearest_valid_one():
    (fault,) = faults(BASE + "[[axes]]\nM.widht = [8]\n")
    assert fault.endswith("M.widht: no such key; did you mean width?")
    (fault,) = faults(BASE + "[[axes]]\nsize = [8]\n")
    assert fault.endswith("size: no such key; did you mean P.size?")


def test_the_same_mistake_gives_the_same_message_in_every_process():
    path = write("M.batch_size = 8\n" + tiny.DOTTED)
    script = f"from diffmem.study import Study; from pathlib import Path; Study.load(Path({str(path)!r}))"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    messages = {process.communicate()[1].splitlines()[-1] for process in started}
    assert len(messages) == 1
    assert "did you mean " in messages.pop()


ALL_KEYS = list(
    dict.fromkeys(f"{name}.{key}" for name in SECTIONS for model in models_of(name) for key in model.model_fields)
)


@pytest.mark.parametrize("value", ["1979-05-27", "{}", "[[]]"], ids=["a date", "a table", "a list of lists"])
@pytest.mark.parametrize("key", ALL_KEYS)
def test_a_value_of_a_wrong_type_is_a_fault(key, value):
    found = faults(dotted({key: value}))
    assert [fault for fault in found if fault.startswith(f"study.toml:1: {key}: must be ")]
    assert {fault.split(": ")[1] for fault in found} == {key}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("P.dataset", "3"),
        ("P.size", "0"),
        ("P.size", "1"),  # a nearest and a second nearest image need two
        ("P.size", "8.0"),
        ("P.size", "true"),
        ("P.size", '"8"'),
        ("P.draw", "-1"),
        ("P.draw", '"last"'),
        ("P.draw", "true"),
        ("P.resolution", "2"),
        ("P.classes", "0"),
        ("M.network", '"unet"'),
        ("M.precondition", '"VP"'),
        ("M.width", "0"),
        ("M.channel_mult", "[]"),
        ("M.channel_mult", "[2, 0]"),
        ("M.channel_mult", "[2, 1.5]"),
        ("M.channel_mult", "2"),
        ("M.blocks", "0"),
        ("M.attention", "[0]"),
        ("M.attention", "4"),
        ("M.embedding", '"none"'),
        ("M.skips", '"12"'),
        ("M.skips", '""'),
        ("M.skips", '"   "'),
        ("M.skips", "[1, 2]"),
        ("M.skips", "111111"),
        ("M.dropout", "1.0"),
        ("M.dropout", "-0.1"),
        ("M.condition", "true"),
        ("M.labels", "0"),
        ("T.epochs", "0"),
        ("T.batch_size", "0"),
        ("T.lr", "0"),
        ("T.lr", "inf"),
        ("T.lr", "nan"),
        ("T.warmup_epochs", "-1"),
        ("T.optimizer", '"adamw"'),
        ("T.momentum", "1"),
        ("T.weight_decay", "-1e-3"),
        ("T.ema", "1"),
        ("T.shuffle", "true"),
        ("T.seed", "-1"),
        ("T.seed", str(2**63)),  # the store keeps 64 bits
        ("score.samples", "0"),
        ("score.every", "0"),
        ("score.steps", "1"),
        ("score.batch_size", "0"),
        ("score.pairs", "-1"),
        ("emm.epsilon", "0"),
        ("emm.epsilon", "1"),
        ("emm.threshold", "0"),
        ("emm.threshold", "1.5"),
    ],
)
def test_a_value_out_of_range_is_a_fault(key, value):
    (fault,) = faults(dotted({key: value}))
    assert fault.startswith(f"study.toml:1: {key}: ")


@pytest.mark.parametrize(
    "line", ["M.channel_mult = 2", "M.attention = 4", 'M.skips = "11a"', "M.skips = 3", "P.size = {}"]
)
def test_a_message_speaks_of_toml_not_of_python(line):
    key, _, value = line.partition(" = ")
    (fault,) = faults(dotted({key: value}))
    assert not [word for word in ("tuple", "dict", "pattern", "String should", "Value error") if word in fault]


IMPOSSIBLE = {
    "more images than the source has": ("P.size", {"P.size": "1741"}, "1740"),
    "more images than its first classes have": ("P.size", {"P.size": "400", "P.classes": "2"}, "400"),
    "more classes than the source has": ("P.classes", {"P.classes": "11"}, "10"),
    "a higher resolution than the source has": ("P.resolution", {"P.resolution": "16"}, "8"),
    "an unknown source": ("P.dataset", {"P.dataset": '"digts"'}, "digits"),
    "a skip mask that is too short": ("M.skips", {"M.skips": '"111 11"'}, "6"),
    "a skip mask that is too long": ("M.skips", {"M.skips": '"111 111 1"'}, "6"),
    "a skip mask for other blocks": ("M.skips", {"M.skips": '"111 111"', "M.blocks": "3"}, "8"),
    "attention where there is no resolution": ("M.attention", {"M.attention": "[4, 3]"}, "3"),
    "attention below the lowest resolution": ("M.attention", {"M.attention": "[2]"}, "2"),
    "a side that cannot be halved so often": ("M.channel_mult", {"M.channel_mult": "[1, 1, 1, 1, 1]"}, "8"),
    "a lower side that cannot be halved": ("M.channel_mult", {"P.resolution": "5", "M.channel_mult": "[1, 1]"}, "5"),
    "random labels without their number": ("M.labels", {"M.condition": '"random"'}, "random"),
    "channels that no group norm can split": ("M.width", {"M.width": "9"}, "9"),
    "fewer channels than a group needs": ("M.width", {"M.width": "2"}, "2"),
}


@pytest.mark.parametrize(("key", "changes", "word"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_settings_that_cannot_be_together_are_a_fault(key, changes, word):
    (fault,) = faults(dotted(changes))
    place, named, message = fault.split(": ", 2)
    assert place in {f"study.toml:{dotted(changes).splitlines().index(f'{k} = {v}') + 1}" for k, v in changes.items()}
    assert (named, word in message) == (key, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"P.size": "1740"},
        {"P.size": "348", "P.classes": "2"},
        {"P.resolution": "4"},
        {"M.channel_mult": "[1, 1, 1, 1]"},
        {"M.skips": '"111 000"'},
        {"M.attention": "[]"},
        {"M.attention": "[8, 4]"},
        {"M.condition": '"random"', "M.labels": "3"},
        {"M.network": '"optimum"', "M.skips": '"1"', "M.width": "3"},
        {"M.width": "4"},
    ],
    ids=str,
)
def test_settings_at_the_limit_of_what_is_possible_are_valid(changes):
    assert len(load(dotted(changes)).cells) == 1


def test_an_impossible_cell_is_a_fault_though_the_others_are_possible():
    (fault,) = faults(BASE + "[[axes]]\nP.size = [8, 1740, 1741]\n")
    assert "1741" in fault


def test_more_cells_than_anyone_can_run_are_a_fault_at_once():
    axis = "[[axes]]\n{} = " + str(list(range(1000))) + "\n"
    (fault,) = faults(BASE + axis.format("T.seed") + axis.format("P.draw"))
    assert "1000000 cells" in fault


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BASE + "width 8\n", 12),
        (BASE + "epochs = 11\n", 12),
        (BASE.replace("[M]", "[M"), 6),
        (BASE.replace('"digits"', '"digits'), 3),
        (BASE.replace('"digits"', "digits"), 3),
        (BASE + "[M]\nblocks = 2\n", 12),
        (BASE.replace("\n", "\r\n") + "width 8\r\n", 12),
    ],
    ids=["no sign", "twice", "open table", "open text", "no quotes", "table twice", "windows"],
)
def test_a_text_that_is_no_toml_is_one_fault_with_its_line(text, line):
    (fault,) = faults(text)
    assert fault.startswith(f"study.toml:{line}: not valid TOML: ")


def test_a_file_that_is_not_utf8_is_one_fault():
    (fault,) = faults(BASE.encode() + b"# \xe9\n")
    assert fault.startswith("study.toml")
    assert "not UTF-8" in fault


def test_a_file_that_is_not_there_or_is_a_folder_is_one_fault():
    for path in (Path("nowhere.toml"), Path()):
        with pytest.raises(StudyError) as caught:
            Study.load(path)
        (fault,) = caught.value.faults
        assert fault.startswith(f"{path}: cannot be read: ")


def test_a_base_that_is_no_toml_is_the_only_fault():
    write("size 8\n", "base.toml")
    assert places(faults('extends = "base.toml"\nT.epochs = 3\n')) == ["base.toml:1"]


@pytest.mark.parametrize(
    "line",
    [
        "T.epochs = 1" + 400 * "0",
        "T.epochs = 1" + 5000 * "0",
        "T.lr = 1" + 400 * "0",
        "M.blocks = 1" + 20 * "0",
        "M.width = 1" + 20 * "0" + "1",
        'extends = "\\u0000"',
        'extends = ""',
        "title = " + 1000 * "[" + 1000 * "]",
        "T." + 2000 * "a." + "a = 1",
    ],
    ids=lambda line: line[:14],
)
def test_a_value_that_no_machine_can_use_is_a_fault_not_a_crash(line):
    key, _, value = line.partition(" = ")
    assert faults(dotted({key: value}))


# --- whatever the text ---------------------------------------------------------------------------------

VALUES = [
    *("0", "1", "-1", "3", "9999", "1" + 20 * "0", "1" + 400 * "0", "0.5", "1e400", "inf", "nan", "true"),
    *('""', '"a"', '"first"', '"111 111"', '"\\u0000"', '"study.toml"', "'''\n[P]\n'''", "1979-05-27", "07:32:00"),
    *("[]", "[[]]", "[1, 2]", "[4, 8, 16]", '["none"]', "[true]", "[{}]", "[\n1,\n]", "{}", "{a = 1}", "{P = {}}"),
]
ANY_KEYS = [*ALL_KEYS, *SECTIONS, "title", "figure", "extends", "axes", "axes.P.size", "profiles", "profiles.a", "a"]


def check_study_or_fault(path: Path, *overrides: str, profile: str | None = None) -> None:
    try:
        study = Study.load(path, profile=profile, overrides=overrides)
    except StudyError as error:
        assert error.faults
        assert all(fault.startswith((str(path), "--set ")) or " extends it" in fault for fault in error.faults)
    else:
        assert study.cells
        assert isinstance(study.title, str)
        assert isinstance(study.figure, str)
        json.dumps([dict(entry.axis_values) for entry in study.cells])


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:12])
def test_any_value_of_any_key_gives_a_study_or_a_study_error(value):
    for key in ANY_KEYS:
        check_study_or_fault(write(dotted({key: value})))
        check_study_or_fault(write(BASE), f"{key}={value}")
        check_study_or_fault(write(f"{BASE}[[axes]]\n{key} = [{value}, {value}]\n"))


# --- the schema ----------------------------------------------------------------------------------------


def test_the_committed_schema_is_the_one_of_the_code():
    assert json.loads((STUDIES / "study.schema.json").read_text()) == json.loads(json.dumps(json_schema()))


def test_the_schema_knows_exactly_the_keys_of_a_study_file():
    schema = json_schema()["properties"]
    assert set(schema) == {*SECTIONS, "title", "figure", "extends", "axes", "profiles", "spaces"}
    fields = {section: {key for model in models_of(section) for key in model.model_fields} for section in SECTIONS}
    for section in SECTIONS:
        assert set(schema[section]["properties"]) == fields[section]
        assert schema[section]["additionalProperties"] is False
    axis = schema["axes"]["items"]["properties"]
    assert {name: set(axis[name]["properties"]) for name in axis} == {name: fields[name] for name in ("P", "M", "T")}
    assert set(schema["profiles"]["additionalProperties"]["properties"]) == {*SECTIONS, "title", "axes", "spaces"}
    assert set(schema["spaces"]["additionalProperties"]["properties"]) == {*SpaceSettings.model_fields}


def test_the_schema_requires_no_key_because_a_base_or_an_axis_may_give_it():
    assert "required" not in json.dumps(json_schema())


def test_what_moves_with_a_replicate_still_tells_curves_apart():
    study = load(BASE + "[[axes]]\nT.seed = [0, 1]\nM.width = [4, 8]\n")
    assert [entry.curve for entry in study.cells] == ["M.width = 4", "M.width = 8"]


def test_a_mark_that_windows_editors_begin_a_file_with_changes_nothing():
    assert load(b"\xef\xbb\xbf" + BASE.encode()).cells == load(BASE).cells


def test_the_lines_of_a_long_list_are_found_in_one_pass():
    """As one statement of 50,000 lines, which took hours to find the end of by trying each."""
    numbers = "".join(f"  {number},\n" for number in range(50_000))
    text = BASE + f"[[axes]]\nT.seed = [\n{numbers}]\n[score]\nstesp = 0  # WRONG\n[[axes]]\nT.lr = [\n{numbers}]\n"
    assert places(faults(text)) == [*marked(text), "study.toml"]


@pytest.mark.parametrize("closing", ['"""', '""""', '"""""'])
def test_a_text_that_ends_in_quotes_moves_no_line(closing):
    text = f'title = """[\n\\"\n{closing}\n' + BASE + "seed = -1  # WRONG\n"
    assert places(faults(text)) == marked(text)


def test_files_that_extend_each_other_without_end_are_one_fault():
    for number in range(50):
        write(f'extends = "{number + 1}.toml"\n' + BASE, f"{number}.toml")
    with pytest.raises(StudyError) as caught:
        Study.load(Path("0.toml"))
    assert places(list(caught.value.faults)) == ["20.toml:1"]


def test_a_loop_of_links_is_a_fault():
    Path("loop.toml").symlink_to("loop.toml")
    (fault,) = faults('extends = "loop.toml"\n' + BASE)
    assert fault.startswith("loop.toml: cannot be read: ")


def test_a_value_of_a_search_that_is_wrong_is_not_missing_too():
    for line in ('search = "bisect"\nrange = [2]', "range = [2, 4]\nsearch = 3"):
        assert len(faults(BASE + f"[emm]\n{line}\n")) == 1


# --- measures ------------------------------------------------------------------------------------------


def test_measures_change_no_number_and_so_no_cell():
    plain, scored = load(BASE), load(BASE + '[score]\nmeasures = ["calibrated"]\n')
    assert [entry.cell.score.measures for entry in scored.cells] == [("calibrated",)]
    assert [entry.cell.cell_id for entry in scored.cells] == [entry.cell.cell_id for entry in plain.cells]
    assert scored.cells[0].cell.configuration == plain.cells[0].cell.configuration
    assert (plain.measure.name, plain.threshold, plain.estimated["measure"]) == ("nearest", 1 / 3, "nearest")


@pytest.mark.parametrize("scored", ["", '[score]\nmeasures = ["calibrated"]\n', '[score]\nmeasures = ["nearest"]\n'])
def test_the_measure_of_the_emm_is_one_that_every_cell_is_scored_by(scored):
    study = load(BASE + scored + '[emm]\nmeasure = "calibrated"\n[[axes]]\nP.size = [8, 16]\n')
    for entry in study.cells:
        assert entry.cell.score.measures.count("calibrated") == 1
    assert [entry.cell.cell_id for entry in study.cells] == [
        entry.cell.cell_id for entry in load(BASE + "[[axes]]\nP.size = [8, 16]\n").cells
    ]
    assert (study.measure.name, study.threshold) == ("calibrated", 1.0)
    assert {"measure": "calibrated", "threshold": 1.0}.items() <= study.estimated.items()


def test_a_search_scores_the_cells_that_it_chooses_by_its_measure():
    text = BASE.replace("size = 8\n", "") + '[emm]\nmeasure = "calibrated"\nsearch = "bisect"\nrange = [4, 8]\n'
    assert [entry.cell.score.measures for entry in load(text).at(5)] == [("calibrated",)]


def test_a_measure_of_the_command_line_or_a_profile_is_one_too():
    assert load(BASE, 'emm.measure="calibrated"').cells[0].cell.score.measures == ("calibrated",)
    profiles = BASE + '[profiles.other]\nemm.measure = "calibrated"\n'
    assert load(profiles, profile="other").cells[0].cell.score.measures == ("calibrated",)
    assert load(profiles).cells[0].cell.score.measures == ()


@pytest.mark.parametrize(
    ("more", "measures"),
    [
        ('groups = "none"', ()),
        ('groups = "near"', ("grouped",)),
        ('groups = "exact"', ("grouped-exact",)),
        ('groups = "near"\naugment = ["shift", "hflip"]', ("grouped-hflip-shift",)),
        ('groups = "near"\nmeasures = ["grouped", "calibrated"]', ("grouped", "calibrated")),
        ('groups = "near"\nmeasures = ["calibrated"]\n[emm]\nmeasure = "grouped"', ("calibrated", "grouped")),
        (
            'groups = "exact"\naugment = ["hflip"]\n[emm]\nmeasure = "grouped-shift"',
            ("grouped-shift", "grouped-exact-hflip"),
        ),
    ],
)
def test_groups_ask_for_the_measure_that_groups_so_and_change_no_cell(more, measures):
    grouped = load(BASE + f"[score]\n{more}\n").cells[0].cell
    assert grouped.score.measures == measures
    assert grouped.cell_id == load(BASE).cells[0].cell.cell_id
    assert "groups" not in grouped.configuration["score"]


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (
            '[score]\nmeasures = ["calibratd"]\n',
            "study.toml:13: score.measures: no measure 'calibratd'; did you mean calibrated?",
        ),
        ('[emm]\nmeasure = "nearst"\n', "study.toml:13: emm.measure: no measure 'nearst'; did you mean nearest?"),
        (
            '[emm]\nmeasure = "x"\n',
            f"study.toml:13: emm.measure: no measure 'x'; there are nearest, calibrated, {', '.join(GROUPED)}, "
            "and feature spaces that are declared as [spaces.NAME]",
        ),
        (
            '[score]\naugment = ["hflip"]\n',
            'study.toml:13: score.augment: is of groups of training images; add groups = "near", or "exact"',
        ),
        (
            '[score]\ngroups = "near"\naugment = ["hflip", "rotate"]\n',
            "study.toml:14: score.augment: must be 'hflip' or 'shift', not 'rotate'",
        ),
        ('[score]\ngroups = "twins"\n', "study.toml:13: score.groups: must be 'none', 'exact' or 'near', not 'twins'"),
        ('[score]\nmeasures = ["gap"]\n', "study.toml:13: score.measures: no measure 'gap'; did you mean gaps?"),
        (
            '[emm]\nmeasure = "gaps"\n',
            "study.toml:13: emm.measure: gaps measures a denoiser at each noise level and calls no image a copy, so "
            "there is no ratio by it; `diffmem gaps STUDY` shows what it found",
        ),
        (
            "[emm]\nthreshold = 1.5\n",
            "study.toml:13: emm.threshold: must be at most 1 for the measure nearest, not 1.5",
        ),
        (
            '[emm]\nmeasure = "calibrated"\nthreshold = 2.5\n',
            "study.toml:14: emm.threshold: must be at most 2 for the measure calibrated, not 2.5",
        ),
        ('[score]\nmeasures = "calibrated"\n', "study.toml:13: score.measures: must be a list, not 'calibrated'"),
        ("[emm]\nmeasure = 3\n", "study.toml:13: emm.measure: must be text, not 3"),
        ("[emm]\nthreshold = 0\n", "study.toml:13: emm.threshold: must be greater than 0, not 0"),
    ],
)
def test_a_fault_of_a_measure_is_told_with_its_line(more, fault):
    assert faults(BASE + more) == [fault]


def test_the_threshold_of_a_measure_may_be_as_large_as_it_can_be():
    study = load(BASE + '[emm]\nmeasure = "calibrated"\nthreshold = 2\n')
    assert (study.threshold, study.estimated["threshold"]) == (2.0, 2.0)


def test_the_schema_knows_the_measures():
    sections = json_schema()["properties"]
    of_copies = ["nearest", "calibrated", *GROUPED]
    in_space = {"type": "string", "pattern": "^[a-z][a-z0-9_-]*$"}
    items = sections["score"]["properties"]["measures"]["items"]
    assert items == {"anyOf": [{"enum": [*of_copies, *DENOISER_MEASURES, "quality"]}, in_space]}
    assert sections["emm"]["properties"]["measure"]["anyOf"] == [{"enum": of_copies}, in_space]


# --- keys in the place of others -----------------------------------------------------------------------


def test_a_profile_with_another_budget_replaces_that_of_the_study():
    text = BASE + "[profiles.steps]\nT.steps = 3\n[profiles.images]\nT.images = 40\n"
    trained = {profile: load(text, profile=profile).cells[0].cell for profile in (None, "steps", "images")}
    assert {profile: cell.last_step for profile, cell in trained.items()} == {None: 1, "steps": 3, "images": 1}
    assert trained["images"].T.epochs == 5


def test_a_study_with_another_budget_replaces_that_of_its_base():
    write(BASE + "[[axes]]\nT.epochs = [1, 2]\n[score]\nevery = 5\n", "base.toml")
    study = load('extends = "base.toml"\nT.steps = 3\nscore.points = 2\nT.batch_size = 3\n')
    assert [entry.cell.checkpoints for entry in study.cells] == [[(1, 1), (3, 3)]]
    assert study.axes == ()


def test_an_axis_with_another_budget_replaces_that_of_the_base():
    write(BASE, "base.toml")
    study = load('extends = "base.toml"\n[[axes]]\nT.steps = [3, 4]\n')
    assert [entry.cell.last_step for entry in study.cells] == [3, 4]


def test_an_override_with_another_budget_replaces_that_of_the_study():
    (entry,) = load(BASE, "T.steps=7", "score.points=3").cells
    assert (entry.cell.last_step, entry.cell.score.every) == (7, None)
    assert load(BASE, "T.images=80").cells[0].cell.cell_id == load(BASE).cells[0].cell.cell_id


@pytest.mark.parametrize(
    ("axes", "line", "key", "first"),
    [
        ("[[axes]]\nT.steps = [1, 2]\nT.images = [3, 4]\n", 6, "T.images", "T.steps, at study.toml:5"),
        ("[[axes]]\nT.steps = [1, 2]\n[[axes]]\nT.epochs = [3, 4]\n", 7, "T.epochs", "T.steps, at study.toml:5"),
        ("T.epochs = 3\n[[axes]]\nT.steps = [1, 2]\n", 6, "T.steps", "T.epochs, at study.toml:4"),
        ("score.every = 9999\nscore.points = 3\n", 5, "score.points", "score.every, at study.toml:4"),
    ],
)
def test_two_keys_in_the_place_of_one_another_are_a_fault_at_the_line_of_the_second(axes, line, key, first):
    (fault,) = faults('P = {dataset = "digits", size = 8}\nM.width = 8\nM.channel_mult = [2, 2]\n' + axes)
    taken, _, place = first.partition(", ")
    assert fault.startswith(f"study.toml:{line}: {key}: {taken} is in its place already, {place}; a study has one of ")


@pytest.mark.parametrize(
    ("more", "line", "key"),
    [
        ("steps = 4\n", 12, "T.steps"),
        ("[[axes]]\nT.epochs = [3, 4]\nT.steps = [3, 4]\n", 14, "T.steps"),
        ("[[axes]]\nT.images = [30, 40]\n", 13, "T.images"),
    ],
)
def test_a_budget_that_is_said_twice_is_a_fault(more, line, key):
    assert faults(BASE + more) == [
        f"study.toml:{line}: {key}: T.epochs is in its place already, at study.toml:11; a study has one of T.epochs, "
        "T.steps or T.images"
    ]


def test_two_budgets_among_the_overrides_are_a_fault():
    with pytest.raises(StudyError) as caught:
        load(BASE, "T.images=30", "T.steps=7")
    assert str(caught.value) == (
        "--set T.images=30: T.images: T.steps is in its place already, at --set T.steps=7; a study has one of "
        "T.epochs, T.steps or T.images"
    )
    assert load(BASE, "T.steps=7", "T.steps=8").cells[0].cell.last_step == 8


def test_a_fault_of_a_budget_is_at_the_key_that_says_it():
    (fault,) = faults(BASE.replace("epochs = 10", "steps = 0"))
    assert fault == "study.toml:11: T.steps: must be greater than or equal to 1, not 0"
