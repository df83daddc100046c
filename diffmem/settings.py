"""Settings: values with a name, a type, bounds and a description, and the text that names a cell by them."""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    NEUTRAL: ClassVar[Mapping[str, Any]] = {}
    """Keys that came later, each with the value at which all is as it was before: then it is no part of a name."""
    NO_NUMBERS: ClassVar[frozenset[str]] = frozenset()
    """Keys that change speed, looks, or what is kept, and are never part of a name."""

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Return the settings that change numbers, as plain data made once: not to be changed."""
        dumped = self.model_dump(mode="json", exclude=set(self.NO_NUMBERS))
        return {key: value for key, value in dumped.items() if key not in self.NEUTRAL or value != self.NEUTRAL[key]}

    @cached_property
    def as_json(self) -> str:
        """Return `numbers` as JSON with sorted keys, the text that goes into a `cell_id`."""
        return json.dumps(self.numbers, sort_keys=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some settings changed, without what was worked out from the old ones."""
        copied = super().model_copy(update=update, deep=deep)
        for key in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[key]
        return copied


def as_tuple(value: Any) -> Any:
    """Return a list, as TOML has it, as a tuple, and anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


MOST = 10**9
"""The largest whole number of a setting: more is a slip of the pen, and its products are still numbers that the store
can hold."""

Integers = tuple[Annotated[int, Field(ge=1, le=MOST)], ...]

List = Annotated[Integers, BeforeValidator(as_tuple)]

NonEmptyList = Annotated[Integers, Field(min_length=1), BeforeValidator(as_tuple)]

Pair = Annotated[Integers, Field(min_length=2, max_length=2), BeforeValidator(as_tuple)]

Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]

ClassList = Annotated[tuple[Annotated[int, Field(ge=0, le=MOST)], ...], Field(min_length=1), BeforeValidator(as_tuple)]
