"""`diffmem plan` and the other study files of the folder: what is shared is counted, their images are never read."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from click.testing import CliRunner

from diffmem.cli import main

STUDY = 'P.dataset = "{}"\nP.size = 4\nM.network = "optimum"\n'
HUGE = f"axes = [{{T.seed = {list(range(1000))}}}, {{P.draw = {list(range(100))}}}]\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def images(name: str, count: int = 8, side: int = 8) -> str:
    np.savez(name, images=np.random.default_rng(len(name)).integers(256, size=(count, side, side), dtype=np.uint8))
    return name


def shared(*more: str) -> list[int]:
    """Return in how many other studies each cell of a.toml is."""
    result = CliRunner().invoke(main, ["plan", "a.toml", "--json", *more])
    assert result.exit_code == 0, result.output
    return [row["shared"] for row in json.loads(result.stdout)]


def test_the_images_of_another_study_are_not_read(cache: Path) -> None:
    Path("a.toml").write_text(STUDY.format("digits"))
    Path("b.toml").write_text(STUDY.format(images("b.npz")))
    Path("c.toml").write_text(STUDY.format("digits") + f'P.blend = {{dataset = "{images("c.npz")}", share = 0.5}}\n')
    Path("d.toml").write_text(STUDY.format("digits") + f'axes = [{{P.dataset = ["digits", "{images("d.npz")}"]}}]\n')
    assert shared() == [0]
    assert not cache.exists()


def test_a_profile_of_another_study_does_not_read_its_images(cache: Path) -> None:
    profile = '[profiles.laptop]\nP.dataset = "{}"\n'
    Path("a.toml").write_text(STUDY.format("digits") + profile.format("digits"))
    Path("b.toml").write_text(STUDY.format("digits") + profile.format(images("b.npz")))
    assert shared("--profile", "laptop") == [0]
    assert shared() == [1]
    assert not cache.exists()


def test_studies_of_the_same_images_are_counted(cache: Path) -> None:
    for name in ("a.toml", "b.toml", "c.toml"):
        Path(name).write_text(STUDY.format(images("mine.npz")))
    Path("d.toml").write_text(STUDY.format("mine.npz") + "axes = [{P.size = [2, 4]}]\n")
    assert shared() == [3]
    assert len(list(cache.glob("*.pixels"))) == 1


def test_the_same_images_at_another_resolution_are_not_decoded_for_another_study(cache: Path) -> None:
    Path("a.toml").write_text(STUDY.format(images("mine.npz")))
    Path("b.toml").write_text(STUDY.format("mine.npz") + "P.resolution = 4\n")
    assert shared() == [0]
    assert len(list(cache.glob("*.pixels"))) == 1


def test_studies_of_datasets_with_a_name_are_counted_whatever_images_a_study_has() -> None:
    Path("a.toml").write_text(STUDY.format(images("mine.npz")) + 'axes = [{P.dataset = ["digits", "mine.npz"]}]\n')
    Path("b.toml").write_text(STUDY.format("digits"))
    Path("c.toml").write_text(STUDY.format("nowhere.npz") + 'axes = [{P.dataset = ["digits", "cifar10"]}]\n')
    assert shared() == [2, 0]


@pytest.mark.parametrize(
    "text",
    [
        STUDY.format("nowhere"),
        STUDY.format("digits") + HUGE,
        STUDY.format("digits") + "\n".join(f"M.a{number} = 1" for number in range(4000)),
        STUDY.format("digits") + "#" * 5_000_000,
        STUDY.format("digits") + "[[axes]]\n" * 5000,
        STUDY.format("digits") + "M." + "a." * 5000 + "a = 1",
        STUDY.format("digits") + f"title = {'[' * 20_000}",
        'P.dataset = ["digits"]\nP.size = {a = 1}',
        'P.dataset = "\\u0000"\nP.size = 4',
        'axes = [{P.dataset = [["digits"], {a = 1}]}]\nP.size = 4',
        'extends = "b.toml"',
        'extends = "pipe"',
        'extends = "/dev/zero"',
        'extends = "long.toml"',
        f'P = {{dataset = "digits", size = 4}}\nM = {{blocks = 1000, channel_mult = {[1] * 8000}}}\n'
        f"axes = [{{T.seed = {list(range(900))}}}]",
        "\0",
        "",
    ],
    ids=range(17),
)
def test_whatever_is_wrong_with_another_study_neither_ends_nor_slows_a_plan(text: str) -> None:
    Path("a.toml").write_text(STUDY.format("digits"))
    os.mkfifo("pipe")
    Path("long.toml").write_text(STUDY.format("digits") + "\n".join(f"[profiles.p{n}]" for n in range(100_000)))
    shared()  # what is loaded once
    Path("b.toml").write_text(text)
    began = time.process_time()
    counted = shared()
    assert time.process_time() - began < 1.5
    assert counted in ([0], [1])


def test_another_study_that_is_a_pipe_is_not_waited_for() -> None:
    Path("a.toml").write_text(STUDY.format("digits"))
    os.mkfifo("b.toml")
    Path("c.toml").symlink_to("/dev/zero")
    Path("d.toml").mkdir()
    assert tiny.diffmem("plan", "a.toml").returncode == 0


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_study_that_is_a_pipe_is_refused_and_not_waited_for(command: str) -> None:
    os.mkfifo("a.toml")
    ended = tiny.diffmem(command, "a.toml")
    assert (ended.returncode, ended.stderr) == (2, "a.toml: a pipe or a device, not a study file\n")
    Path("b.toml").write_text('extends = "a.toml"')
    assert tiny.diffmem(command, "b.toml").stderr == "a.toml: a pipe or a device, not a study file\n"
