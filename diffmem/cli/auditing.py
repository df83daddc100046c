"""The command that looks through a dataset for images that count as one: `audit`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from diffmem.cli.options import FileName, augment_option, json_option, max_pixels_option
from diffmem.cli.tables import echo, print_json, print_table
from diffmem.text import counted

if TYPE_CHECKING:
    from diffmem.data import Audit, ImageGroup

SHOWN, PICTURES = 100, 24
"""Groups, and images of each, that a page shows."""
LISTED, NAMED = 20, 6
"""Groups, and images of each, that the terminal lists."""


@click.command()
@click.argument("dataset")
@click.option(
    "--resolution",
    type=click.IntRange(4, 4096),
    metavar="N",
    help="Compare images at N x N pixels, by centre crop and Lanczos resize.  [default: their own size]",
)
@click.option(
    "--delta",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Images that differ by less are nearly identical. The difference is the root mean square over "
    "pixels, as a share of the scale.",
)
@augment_option
@click.option(
    "-o", "--output", type=FileName(dir_okay=False), help="Also write a page with pictures of the largest groups."
)
@max_pixels_option
@json_option
def audit(
    dataset: str, resolution: int | None, delta: float, augment: tuple[str, ...], output: Path | None, as_json: bool
) -> None:
    """Find identical and nearly identical images in a dataset.

    DATASET is digits, emoji, cifar10, imagenet-dogs, or a path, as in P.dataset.

    The images are listed in groups. Two images are in one group if they are nearly identical, or if other images
    connect them. The measure `grouped` uses the same groups.

    If a model copies such an image, its memorization ratio is too low: the two nearest training images of the copy are
    about equally far away.

    Example: diffmem audit data/train/ -o audit.html
    """
    from diffmem.cli.reading import shown_reading
    from diffmem.data import audit as audited

    with shown_reading():
        found = audited(dataset, resolution=resolution, delta=delta, augment=augment)
    if output is not None:
        _write(found, output)
    if as_json:
        print_json({key: value for key, value in vars(found).items() if key != "pixels"} | {"largest": found.largest})
        return
    for line in _said(found):
        echo(line)
    if found.groups:
        most = "" if len(found.groups) <= LISTED else f", the {LISTED} largest"
        print_table(f"groups{most}:", [_row(group) for group in found.groups[:LISTED]])
    if output is not None:
        echo(f"audit: {output}")


def _said(found: "Audit") -> list[str]:
    also = f", also {' and '.join(found.augment)}" if found.augment else ""
    kind = f"(root mean square below {found.delta:g} of the scale{also})"
    about = f"{found.dataset}: {found.images:,} images of {found.width}x{found.height} pixels"
    lines = [f"{about}; no two are identical or nearly identical {kind}"]
    if found.groups:
        lines = [
            f"{about}; {found.identical:,} are identical with another one, {found.nearly_identical:,} more nearly "
            f"identical {kind}",
            f"{counted(len(found.groups), 'group')} of {found.identical + found.nearly_identical:,} images, at most "
            f"{found.largest:,} in one: {found.distinct:,} images are left if each group counts as one",
        ]
    return [*lines, *(f"note: {note}" for note in found.notes)]


def _row(group: "ImageGroup") -> dict[str, object]:
    names = group.files or [str(member) for member in group.members]
    more = ", ..." if group.images > NAMED else ""
    return {
        "images": group.images,
        "kind": "identical" if group.identical else "nearly identical",
        "files" if group.files else "positions": ", ".join(names[:NAMED]) + more,
    }


def _write(found: "Audit", path: Path) -> None:
    from diffmem.report import ShownGroup, write_audit

    groups = [
        ShownGroup(
            f"{group.images:,} images, {'identical' if group.identical else 'nearly identical'}",
            group.images,
            list(zip(group.files or map(str, group.members), found.pictures(group, PICTURES), strict=False)),
        )
        for group in found.groups[:SHOWN]
    ]
    write_audit(path, f"Audit of {found.dataset}", _said(found), groups, left_out=max(0, len(found.groups) - SHOWN))
