"""A feature space as it is declared, by name, and the measure that tells copies in it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from diffmem.cells import SPACE_NAME as SPACE_NAME
from diffmem.cells import SpaceSettings
from diffmem.errors import DataError
from diffmem.measures.measure import Compare, Compared, Measure
from diffmem.measures.members import all_names

if TYPE_CHECKING:
    from torch import Tensor

THIRD = 1 / 3
"""The threshold of the rule `nearest` unless another one is given (Gu et al. 2023, Sec. 2)."""

MODELS = ("timm", "transformers")
"""Packages whose models have names."""

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class SpaceIdentity:
    """What tells a space from others of its name: evidence by two of them is never mixed."""

    measure: str  # its name
    features: str  # as they were declared; the file's name without its folder
    content: str  # hash of the file, the weights or the function's source
    resize: str
    pixels: str
    rule: str
    threshold: float  # a similarity, or a share of the second nearest distance
    dimensions: int


@dataclass(frozen=True)
class DeclaredSpace:
    """A feature space, not opened yet."""

    name: str
    settings: SpaceSettings
    folder: str = "."  # in which its file or its module is looked for
    function: Function | None = field(default=None, hash=False)  # in the place of settings.features

    @classmethod
    def of(cls, name: str, table: Mapping[str, Any]) -> Self:
        """Return the space of a table of its settings, whose `features` may be a function; DataError."""
        given, function = dict(table), None
        if callable(table.get("features")):
            function = table["features"]
            given["features"] = called(function)
        if fault := name_fault(name):
            raise DataError(f"the space {name!r}: {fault}")
        try:
            settings = SpaceSettings(**given)
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(f"the space {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if fault := threshold_fault(settings):
            raise DataError(f"the space {name}: threshold: {fault}")
        return cls(name, settings, function=function)

    @property
    def label(self) -> str:
        """Return what messages call it."""
        return f"the space {self.name} ({self.shown})"

    @property
    def shown(self) -> str:
        """Return its features without the folder of a file or of a model."""
        features = self.settings.features
        package, _, name = features.partition(":")
        if package in MODELS:
            place = Path(name.removeprefix("local-dir:")).expanduser()
            return f"{package}:{place.name}" if place.is_absolute() else features
        return features if ":" in features else Path(features).name

    @property
    def threshold(self) -> float:
        """Return its threshold: a similarity, or a share of the second nearest distance."""
        return THIRD if self.settings.threshold is None else self.settings.threshold

    @property
    def measure(self) -> Measure:
        """Return the measure that tells copies in it; its file is opened where that first compares."""
        settings = self.settings
        identity = SpaceIdentity(
            self.name, self.shown, "", settings.resize, settings.pixels, settings.rule, self.threshold, 0
        )
        compare, prepare = partial(_compare, space=self), partial(_prepare, space=self)
        return measure_in(identity, compare, prepare, partial(_features, space=self))


def called(function: Function) -> str:
    """Return a function's name as `module:function`."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"


def name_fault(name: str) -> str:
    """Return what is wrong with the name of a space; empty if nothing is."""
    if name in all_names():
        return "is a measure already; give the space another name"
    if not re.fullmatch(SPACE_NAME, name):
        return "a name has small letters, digits, - and _, and begins with a letter"
    return ""


def threshold_fault(settings: SpaceSettings) -> str:
    """Return what is wrong with the threshold of a space; empty if nothing is."""
    if settings.rule == "similarity" and settings.threshold is None:
        return "missing; a similarity needs one, and there is none for all features (SSCD: 0.5 or 0.6)"
    return ""


def _compare(
    images: "Tensor", training_images: "Tensor", index: "Tensor", distance: "Tensor", *, space: DeclaredSpace
) -> Compared:
    return _prepare(training_images, space=space)(images, training_images, index, distance)


def _prepare(training_images: "Tensor", *, space: DeclaredSpace) -> Compare:
    """Find the features of the training images."""
    from diffmem.measures.in_space import compare_in  # torch: other modules know the measure without it

    return compare_in(space, training_images)


def _features(images: "Tensor", *, space: DeclaredSpace) -> "Tensor":
    from diffmem.measures.in_space import opened

    return opened(space, images.device)[0].features(images)


def _unknown(*_given: "Tensor") -> Compared:
    raise DataError("a store knows a space by its name alone; declare it to compare images in it")


def measure_in(
    space: SpaceIdentity,
    compare: Compare = _unknown,
    prepare: "Callable[[Tensor], Compare] | None" = None,
    features: "Callable[[Tensor], Tensor] | None" = None,
) -> Measure:
    """Return the measure that tells copies in a space: by cosine similarity, or by two distances."""
    name = space.measure
    source = f"features {space.features}, resize {space.resize}, pixels {space.pixels}"
    if space.rule == "nearest":
        return Measure(
            name=name,
            source=source,
            ratio=f"memorization ratio ({name})",
            copied="memorized",
            rule="its nearest training image is less than {} times as far away as the second nearest, by the l2 "
            f"distance of features in the space {name}",
            axis=f"nearest distance / second nearest distance ({name})",
            threshold=space.threshold,
            largest=1.0,
            compare=compare,
            prepare=prepare,
            features=features,
        )
    return Measure(
        name=name,
        source=source,
        ratio=f"copied share ({name})",
        copied="copied",
        rule=f"the cosine similarity to its most similar training image is above {{}} in the space {name}",
        axis=f"1 - cosine similarity to the most similar training image ({name})",
        threshold=1 - space.threshold,
        largest=1.0,
        compare=compare,
        prepare=prepare,
        features=features,
        similarity=True,
    )
