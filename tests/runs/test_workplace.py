"""Files that all nodes of a cluster reach: whole, of one cell each, in a folder or at an address."""

import os
import secrets
import socket
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from diffmem.errors import MachineError
from diffmem.runs.workplace import STATE, WEIGHTS, Workplace

CELL, OTHER = "0" * 16, "1" * 16


@pytest.fixture(params=["folder", "address"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Workplace:
    address = str(tmp_path / "work") if request.param == "folder" else f"memory://{secrets.token_hex(4)}"
    return Workplace.opened(address, tmp_path / "s.duckdb")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"state")
    return path


def test_what_is_put_there_is_had_from_there(place: Workplace, file: Path, tmp_path: Path) -> None:
    place.put(file, CELL, 12, STATE)
    place.get(tmp_path / "copy", CELL, 12, STATE)
    assert (tmp_path / "copy").read_bytes() == b"state"


def test_files_are_told_apart_by_cell_kind_and_number(place: Workplace, file: Path) -> None:
    for step in (100, 12, 9):
        place.put(file, CELL, step, STATE)
    place.put(file, OTHER, 7, STATE)
    place.put(file, CELL, 30, WEIGHTS)
    assert place.numbers(CELL, STATE) == [9, 12, 100]
    place.remove(CELL, [9, 10, 12], STATE)
    assert (place.numbers(CELL, STATE), place.numbers(CELL, WEIGHTS)) == ([100], [30])
    assert place.cells() == {CELL, OTHER}
    place.remove_all(CELL)
    assert (place.numbers(CELL, STATE), place.numbers(CELL, WEIGHTS), place.cells()) == ([], [], {OTHER})


def test_a_file_that_is_put_again_takes_the_place_of_the_old_one_and_leaves_nothing_else(
    place: Workplace, file: Path, tmp_path: Path
) -> None:
    place.put(file, CELL, 12, STATE)
    file.write_bytes(b"newer")
    place.put(file, CELL, 12, STATE)
    place.get(tmp_path / "copy", CELL, 12, STATE)
    assert (tmp_path / "copy").read_bytes() == b"newer"
    place.close()
    files, folder = fsspec.url_to_fs(place.address)
    assert [name.rpartition("/")[2] for name in files.ls(folder, detail=False)] == [f"{place.store}.{CELL}.12.pt"]


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(place: Workplace, file: Path, tmp_path: Path) -> None:
    place.put(file, CELL, 12, STATE)
    with pytest.raises(MachineError):
        place.put(tmp_path / "missing", CELL, 12, STATE)
    place.get(tmp_path / "copy", CELL, 12, STATE)
    assert (tmp_path / "copy").read_bytes() == b"state"


def test_a_machine_that_sees_other_files_says_so(tmp_path: Path) -> None:
    place = Workplace.opened(str(tmp_path / "work"), tmp_path / "s.duckdb")
    place.check()
    elsewhere = replace(place, address=str(tmp_path / "work of another machine"))
    with pytest.raises(MachineError) as refused:
        elsewhere.check()
    assert str(refused.value) == (
        f"{elsewhere.address}: not the same files on {socket.gethostname()} as where the run was started; give a "
        "folder that all nodes share, or an address such as s3://bucket/folder, with --work"
    )
    place.close()
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("address", ["nowhere://folder", "/dev/null/work"])
def test_an_address_that_cannot_be_used_is_said_in_a_sentence(address: str) -> None:
    with pytest.raises(MachineError, match=rf"^{address}: cannot keep the files of a run there: "):
        Workplace.opened(address, Path("s.duckdb"))


def test_an_address_whose_package_is_missing_names_it() -> None:
    with pytest.raises(MachineError, match=r"^s3://bucket/work: .*s3fs"):
        Workplace.opened("s3://bucket/work", Path("s.duckdb"))


def test_a_file_that_is_not_there_is_an_error_that_names_the_address(place: Workplace, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot keep the files of a run there"):
        place.get(tmp_path / "copy", CELL, 1, STATE)
    assert not (tmp_path / "copy").exists()


def test_stores_that_keep_their_files_at_one_address_see_their_own_alone(place: Workplace, file: Path) -> None:
    other = Workplace.opened(place.address, file.parent / "other" / "s.duckdb")
    place.put(file, CELL, 12, STATE)
    assert (other.cells(), other.numbers(CELL, STATE)) == (set(), [])
    other.put(file, CELL, 24, STATE)
    other.remove_all(CELL)
    assert place.numbers(CELL, STATE) == [12]


def test_what_killed_runs_have_left_is_removed_after_a_day(tmp_path: Path) -> None:
    store, folder = tmp_path / "s.duckdb", tmp_path / "work"
    place = Workplace.opened(str(folder), store)
    old = [folder / f"{place.store}.{CELL}.1.pt.0a1b.partial"]
    others = [folder / "mine.partial", folder / f"{place.store}.{CELL}.1.pt", folder / f"{place.store}.0a1b.run"]
    others.append(folder / f"{place.store}.{CELL}.2.pt.0a1b.partial")  # which somebody writes now
    for path in (*old, *others):
        path.touch()
    for path in (*old, *others[:3]):
        os.utime(path, (0, 0))
    Workplace.opened(str(folder), store).close()
    assert sorted(path.name for path in folder.iterdir()) == sorted([place.mark, *(path.name for path in others)])
