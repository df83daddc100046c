"""Files that are written whole: by several at once, by ones that are killed, and through no link."""

import os
import signal
import threading
from pathlib import Path

import pytest
import tiny

from diffmem.atomic import whole
from diffmem.errors import DiffmemError


def test_two_that_write_one_file_at_once_do_not_meet(tmp_path: Path) -> None:
    path, together, failures = tmp_path / "page.html", threading.Barrier(8), []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with whole(path) as place:
                    together.wait(60)
                    place.write_text(f"{number}" * 1000)
                    together.wait(60)
                assert len(set(path.read_text())) == 1
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_no_link_beside_the_file_is_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    for name in ("page.html.tmp", ".page.html.partial", "page.html.new"):
        (tmp_path / name).symlink_to(precious)
    with whole(tmp_path / "page.html") as place:
        assert not place.is_symlink()
        place.write_text("a page")
    assert precious.read_text() == "as it was"
    assert (tmp_path / "page.html").read_text() == "a page"


def test_a_new_file_may_be_read_by_whom_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole(tmp_path / "page.html") as place:
            place.write_text("a page")
    finally:
        os.umask(before)
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o640


KILLED = """
import sys
from pathlib import Path
from diffmem.atomic import whole
with whole(Path(sys.argv[1])) as place:
    place.write_text("half a page")
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_what_a_killed_writer_has_left_is_removed_by_the_next_of_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with tiny.started(KILLED, path) as process:
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 1
    with whole(tmp_path / "other.html") as place:
        place.write_text("another page")
    assert len(list(tmp_path.iterdir())) == 2
    with whole(path) as place:
        place.write_text("a page")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other.html", "page.html"]


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("as it was")
    with pytest.raises(ZeroDivisionError), whole(path) as place:
        place.write_text("half a page")
        raise ZeroDivisionError
    with pytest.raises(DiffmemError, match="cannot be written"), whole(path) as place:
        raise OSError(28, "No space left on device")
    assert path.read_text() == "as it was"
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_what_was_left_on_a_host_with_a_dotted_name_is_removed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node1.some.cluster")
    path = tmp_path / "page.html"
    with whole(path) as place:
        place.write_text("a page")
        left = place.name
    gone = left.replace(f"-{os.getpid()}-", "-4194305-")
    (tmp_path / gone).write_text("half a page")
    with whole(path) as place:
        place.write_text("a page")
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
