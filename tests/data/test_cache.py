"""The cache of decoded images: whole entries, and nothing else, whatever has ended the process that wrote them."""

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from diffmem.data.cache import keep, new_pixels
from diffmem.data.collection import read_images
from diffmem.errors import DataError

KILLED = """
import sys
from pathlib import Path
from diffmem.data.cache import keep

def write(file):
    file.write(b"the first half")
    file.flush()
    print("ready", flush=True)
    sys.stdin.readline()

keep(Path(sys.argv[1]), write)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))
    np.savez("a.npz", images=np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8))
    return tmp_path / "cache"


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def entries(folder: Path) -> list[str]:
    """Return the files of the cache by what they are, but for locks, of which no more than the name is needed."""
    kinds = [file.partition("/")[0] if "/" in file else Path(file).suffix for file in files(folder)]
    return sorted(kind for kind in kinds if kind != "locks")


def test_what_a_killed_writer_has_left_is_removed_by_the_next(cache: Path) -> None:
    with tiny.started(KILLED, cache / "x.npz") as process:
        process.send_signal(signal.SIGKILL)
    assert len(files(cache)) == 1
    read_images("a.npz", resolution=None)
    assert entries(cache) == [".json", ".pixels", "contents"]


def test_a_process_killed_while_it_keeps_images_leaves_only_whole_entries(cache: Path) -> None:
    np.savez("large.npz", images=np.zeros((12_000, 64, 64), dtype=np.uint8))
    read = "import sys; from diffmem.data.collection import read_images; read_images(sys.argv[1], resolution=None)"
    with subprocess.Popen([sys.executable, "-c", read, "large.npz"], env=tiny.environment()) as process:
        while process.poll() is None:
            if any(file.is_file() and file.stat().st_size for file in cache.glob(".*.partial")):
                process.kill()
            time.sleep(0.0005)
    assert process.returncode == -signal.SIGKILL
    read_images("large.npz", resolution=None)
    assert entries(cache) == [".json", ".pixels", "contents"]


def test_what_another_process_is_writing_is_left_alone(cache: Path) -> None:
    with tiny.started(KILLED, cache / "x.npz") as process:
        read_images("a.npz", resolution=None)
        assert len(entries(cache)) == 4
        process.communicate("go on\n")
    assert (cache / "x.npz").read_bytes() == b"the first half"
    assert len(entries(cache)) == 4


@pytest.mark.parametrize(("age", "left"), [(60, True), (3700, False)])
def test_what_another_host_is_writing_is_left_alone_for_an_hour(cache: Path, age: int, left: bool) -> None:
    cache.mkdir()
    partial = cache / ".x.npz.another-host-1-0123abcd.partial"
    partial.write_bytes(b"some")
    os.utime(partial, (time.time() - age,) * 2)
    read_images("a.npz", resolution=None)
    assert partial.exists() is left


@pytest.mark.parametrize("name", ["tmpabcd", "notes.partial", f"a.{socket.gethostname()}-x.partial", "a.npz"])
def test_a_file_that_is_not_ours_is_left_alone(cache: Path, name: str) -> None:
    cache.mkdir()
    (cache / name).write_bytes(b"some")
    os.utime(cache / name, (0, 0))
    read_images("a.npz", resolution=None)
    assert (cache / name).exists()


def test_a_full_disk_leaves_nothing(cache: Path) -> None:
    np.savez("large.npz", images=np.zeros((1000, 64, 64), dtype=np.uint8))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be kept there \(File too large"):
            read_images("large.npz", resolution=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert entries(cache) == ["contents"]


def test_an_error_while_writing_leaves_nothing(cache: Path) -> None:
    def fails(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DataError, match="No space left"):
        keep(cache / "x.npz", fails)
    assert files(cache) == []


DAMAGES = {
    "emptied": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros, as after a power cut": lambda content: bytes(len(content)),
    "one bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "other": lambda _: b"no entry at all",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["pixels", "json"])
def test_an_entry_that_is_not_as_it_was_written_is_made_again(cache: Path, suffix: str, damage: str) -> None:
    first = read_images("a.npz", resolution=None)
    expected = first.images.copy()
    (entry,) = cache.glob(f"*.{suffix}")
    whole = entry.read_bytes()
    entry.unlink()  # the old file is mapped, and must stay as it is
    entry.write_bytes(DAMAGES[damage](whole))
    again = read_images("a.npz", resolution=None)
    np.testing.assert_array_equal(again.images, expected)
    assert again.fingerprint == first.fingerprint
    assert entry.read_bytes() == whole


def test_what_cannot_be_read_is_not_blamed_on_the_folder_of_the_cache(cache: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), new_pixels():
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not files(cache)
