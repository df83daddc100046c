"""Rows of the store as records: frozen dataclasses, each made here from the columns of a query."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache, partial
from types import MappingProxyType
from typing import Any, TypeVar

from diffmem.errors import StoreError
from diffmem.store.database import Database
from diffmem.store.json_columns import from_json
from diffmem.store.refusals import DAMAGED

Record = TypeVar("Record")


class Records(Database):
    """A database whose own queries give records."""

    def records(
        self,
        kind: type[Record],
        sql: str,
        parameters: Sequence[Any] = (),
        *,
        json: Sequence[str] = (),
        enums: Mapping[str, type[StrEnum]] = MappingProxyType({}),
    ) -> list[Record]:
        """Return the rows of a query of diffmem's own as records, whose fields have the names of its columns.

        The columns `json` are decoded, and those of `enums` become members of these.
        """
        rows = self.read(sql, parameters)
        decode = cache(partial(from_json, place=self.path))  # the same text is often there again
        for row in rows:
            row.update((key, decode(row[key])) for key in json)
            for key, members in enums.items():
                row[key] = None if row[key] is None else self._member(members, row[key])
        return [kind(**row) for row in rows]

    def _member(self, members: type[StrEnum], text: str) -> StrEnum:
        try:
            return members(text)
        except ValueError as error:
            raise StoreError(f"{self.path}: {DAMAGED}") from error
