"""`diffmem audit`: the groups of a dataset, in words, as data and as a page."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from diffmem.cli import main
from diffmem.data import audit, find_groups, load_source


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFMEM_CACHE", str(tmp_path / "cache"))


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 236, (count, 8, 8), dtype=np.uint8)


@pytest.fixture
def images() -> np.ndarray:
    """Save a folder of 20 images: 3 times one of them, twice another one, one nearly twice, and a mirror image."""
    base = noise(15)
    found = np.concatenate([base, base[[2, 2, 4]], base[[6]] + 3, base[[8], :, ::-1]])
    Path("data").mkdir()
    for number, image in enumerate(found):
        Image.fromarray(image).save(f"data/{number:02d}.png")
    return found


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["audit", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.mark.usefixtures("images")
def test_the_groups_of_a_folder_are_listed_the_largest_first() -> None:
    printed = json.loads(command("data", "--json").stdout)
    groups = [(group["members"], group["identical"]) for group in printed["groups"]]
    assert groups == [([2, 15, 16], True), ([4, 17], True), ([6, 18], False)]
    assert [Path(file).name for file in printed["groups"][0]["files"]] == ["02.png", "15.png", "16.png"]
    counts = {key: printed[key] for key in ("images", "identical", "nearly_identical", "distinct", "largest")}
    assert counts == {"images": 20, "identical": 5, "nearly_identical": 2, "distinct": 16, "largest": 3}
    assert (printed["width"], printed["height"], printed["delta"], printed["augment"]) == (8, 8, 0.05, [])


@pytest.mark.usefixtures("images")
def test_an_audit_is_said_in_words() -> None:
    shown = command("data").stdout.splitlines()
    assert shown[0] == (
        "data: 20 images of 8x8 pixels; 5 are identical with another one, 2 more nearly identical (root mean square "
        "below 0.05 of the scale)"
    )
    assert shown[1] == "3 groups of 7 images, at most 3 in one: 16 images are left if each group counts as one"
    assert re.search(r"3 +identical +data/02.png, data/15.png, data/16.png", "\n".join(shown))


@pytest.mark.usefixtures("images")
def test_mirror_images_are_of_a_group_where_that_is_told() -> None:
    printed = json.loads(command("data", "--augment", "hflip", "--json").stdout)
    assert [8, 19] in [group["members"] for group in printed["groups"]]
    assert printed["augment"] == ["hflip"]
    assert "below 0.05 of the scale, also hflip)" in command("data", "--augment", "hflip").stdout


def test_an_audit_of_distinct_images_says_so() -> None:
    np.savez("data.npz", images=noise(9))
    shown = command("data.npz").stdout
    assert shown == (
        "data.npz: 9 images of 8x8 pixels; no two are identical or nearly identical (root mean square below 0.05 of "
        "the scale)\n"
    )
    assert json.loads(command("data.npz", "--json").stdout)["largest"] == 1


def test_a_larger_delta_finds_more_and_groups_are_those_of_the_warnings() -> None:
    digits = load_source("digits", None).images
    for delta in (0.05, 0.09):
        printed = json.loads(command("digits", "--delta", delta, "--json").stdout)
        found = find_groups(digits, delta=delta)
        assert (printed["identical"], printed["nearly_identical"]) == (found.identical, found.alike - found.identical)
    assert len(printed["groups"]) > 1
    assert printed["groups"][0]["files"] == []


def test_the_page_has_a_picture_of_each_image_of_a_group(images: np.ndarray) -> None:
    result = command("data", "-o", "pages/audit.html")
    assert result.stdout.splitlines()[-1] == "audit: pages/audit.html"
    page = Path("pages/audit.html").read_text()
    assert "<h1>Audit of data</h1>" in page
    assert "3 groups of 7 images" in page
    assert page.count("<h3>") == 3
    found = re.findall(r"base64,([^\"]+)", page)
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]
    assert len(shown) == 7
    for picture, number in zip(shown, [2, 15, 16, 4, 17, 6, 18], strict=True):
        assert np.array_equal(picture, images[number])


def test_a_page_of_many_groups_says_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    base = noise(6)
    np.savez("data.npz", images=np.concatenate([base, base, base]))
    monkeypatch.setattr("diffmem.cli.auditing.SHOWN", 4)
    monkeypatch.setattr("diffmem.cli.auditing.PICTURES", 2)
    command("data.npz", "-o", "audit.html")
    page = Path("audit.html").read_text()
    assert page.count("The first 2 of 3 images.") == 4
    assert "2 smaller groups are not shown; diffmem audit --json lists them." in page


def test_names_of_files_are_no_markup() -> None:
    Path("<b>").mkdir()
    for number in range(2):
        Image.fromarray(noise(1)[0]).save(f"<b>/{number}.png")
    command("<b>", "-o", "audit.html")
    page = Path("audit.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;/1.png" in page


def test_colour_images_of_different_sizes_are_compared_at_one_size() -> None:
    Path("data").mkdir()
    for number, side in enumerate((8, 16, 16)):
        Image.fromarray(noise(1, number).repeat(3).reshape(8, 8, 3)).resize((side, side)).save(f"data/{number}.png")
    result = command("data")
    assert result.exit_code == 2
    sentence = result.stderr.strip()
    assert sentence.endswith("; --resolution N crops and resizes them to N x N pixels")
    found = audit("data", resolution=16, delta=0.4)
    assert (found.width, found.images) == (16, 3)
    assert all(Image.open(io.BytesIO(png)).mode == "RGB" for group in found.groups for png in found.pictures(group, 9))


@pytest.mark.parametrize("delta", ["0", "1", "-3", "nan", "near"])
def test_a_delta_out_of_range_is_refused(delta: str) -> None:
    result = command("digits", f"--delta={delta}")
    assert result.exit_code == 2
    assert "Invalid value for '--delta'" in result.stderr or "delta must be above 0 and below 1" in result.stderr


def test_an_unknown_augmentation_is_refused_with_those_there_are() -> None:
    result = command("digits", "--augment", "rotate")
    assert result.exit_code == 2
    assert "'rotate' is not one of 'hflip', 'shift'" in result.stderr
