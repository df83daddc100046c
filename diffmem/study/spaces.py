"""The feature spaces that a study declares, with every fault that their tables have."""

from collections.abc import Collection, Mapping
from pathlib import Path

from diffmem.cells import SpaceSettings
from diffmem.measures import DeclaredSpace, name_fault, threshold_fault
from diffmem.study.crossing import build_section
from diffmem.study.layers import SPACES, Faults, Setting


def spaces_of(settings: Mapping[str, Setting], path: Path, faults: Faults) -> dict[str, DeclaredSpace]:
    """Return the spaces that settings declare, by name, with their faults noted."""
    tables: dict[str, list[str]] = {}
    for key in settings:
        if key.startswith(f"{SPACES}."):
            tables.setdefault(key.removeprefix(f"{SPACES}.").rpartition(".")[0], []).append(key)
    found = {name: _space(name, keys[0], settings, path, faults) for name, keys in tables.items()}
    return {name: space for name, space in found.items() if space}


def _space(name: str, first: str, settings: Mapping[str, Setting], path: Path, faults: Faults) -> DeclaredSpace | None:
    table = f"{SPACES}.{name}"
    place = settings[first].place
    if fault := name_fault(name):
        faults.add(place, table, fault)
        return None
    if f"{table}.features" not in settings:
        features = "module:function, a TorchScript or ONNX file, timm:NAME or transformers:NAME"
        faults.add(place, f"{table}.features", f"missing; a space needs what makes features: {features}")
        return None
    bad: set[str] = set()
    own = {key: setting for key, setting in settings.items() if key.rpartition(".")[0] == table}
    built = build_section(SpaceSettings, table, own, path, faults, bad)
    if built is None or bad:
        return None
    if fault := threshold_fault(built):
        faults.add(place, f"{table}.threshold", fault)
        return None
    source = settings[f"{table}.features"].place.source
    return DeclaredSpace(name, built, folder="." if source.startswith("--set ") else str(Path(source).parent))


def check_used(spaces: Collection[str], used: Collection[str], settings: Mapping[str, Setting], faults: Faults) -> None:
    """Note the spaces that no measure of a study is in."""
    for name in spaces:
        if name not in used:
            place = settings[f"{SPACES}.{name}.features"].place
            fault = f'is declared, but not used; add "{name}" to score.measures, or name it in emm.measure'
            faults.add(place, f"{SPACES}.{name}", fault)
