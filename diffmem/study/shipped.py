"""The studies that ship with diffmem: those of the paper, and the quickstart."""

import os
from pathlib import Path

import diffmem


def shipped_studies() -> dict[str, Path]:
    """Return the study files that ship with diffmem, by name."""
    package = Path(diffmem.__file__).parent
    inside = package / "studies"
    folder = inside if inside.is_dir() else package.parent / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def study_file(path: Path) -> Path:
    """Return the file that is meant: `path` if it is one, else `NAME.toml` or `studies/NAME.toml` here, or one that
    ships, if it is only a name; `path` if there is none."""
    if path.suffix or len(path.parts) != 1 or os.path.isfile(path):  # noqa: PTH113 - a Path raises of impossible names
        return path
    here = [file for file in (Path(f"{path}.toml"), Path("studies") / f"{path}.toml") if os.path.exists(file)]  # noqa: PTH110
    return here[0] if here else shipped_studies().get(str(path), path)
