"""What a store keeps of the names of images."""

from pathlib import Path

import pytest

from diffmem.data import kept_names


@pytest.mark.parametrize(
    ("dataset", "name", "kept"),
    [
        ("digits", "digits:3", "digits:3"),
        ("jane doe/faces", "jane doe/faces/cats/1.png", "faces/cats/1.png"),
        ("{home}/jane doe/faces", "{home}/jane doe/faces/cats/1.png", "faces/cats/1.png"),
        ("{home}/jane doe/faces/", "{home}/jane doe/faces/12:30 a.png", "faces/12:30 a.png"),
        ("jane doe/faces/*/*.png", "{home}/jane doe/faces/cats/1.png", "faces/cats/1.png"),
        ("{home}/jane doe/imgs.npz", "{home}/jane doe/imgs.npz:3", "imgs.npz:3"),
        ("jane doe/*.npz", "jane doe/*.npz:3", "jane doe/*.npz:3"),
        ("google/ddpm-cifar10-32", "google/ddpm-cifar10-32:3", "google/ddpm-cifar10-32:3"),
        ("{home}/jane doe/faces", "{home}/elsewhere/1.png", "1.png"),
        (".", "jane doe/imgs.npz", "{last}/jane doe/imgs.npz"),
        ("jane doe/faces", "jane doe/faces/1\udcff.png", "faces/1\\udcff.png"),
    ],
)
def test_names_are_kept_from_the_dataset_on(
    dataset: str, name: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jane doe/faces/cats").mkdir(parents=True)
    Path("jane doe/imgs.npz").touch()
    places = {"home": str(tmp_path), "last": tmp_path.name}
    assert kept_names(dataset.format(**places), [name.format(**places)]) == [kept.format(**places)]
