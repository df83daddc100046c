"""What a page says of the machines and people behind it: nothing, unless it is asked to."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any

NAME = r"""[\\/][^\s\\/:'"`,;{}<>|]+"""
PATH = re.compile(
    rf"""
      (?<=["'])(?:~|[A-Za-z]:)?[\\/][^"'\n]*[\\/][^"'\n]*(?=["'])   # in quotation marks, blanks and all
    | (?<![\w.~\\/])(?<!https:)(?<!http:)(?:
          (?:file:)?//?(?:{NAME})+                                     # file:///a/b, //server/a
        | \\\\[^\s\\]+(?:{NAME})+                                      # \\server\a
        | ~[\w.-]*(?:{NAME})+
        | (?:[A-Za-z]:)?(?:{NAME}){{2,}}
      )
    """,
    re.VERBOSE,
)
"""An absolute path, or one from somebody's home folder, in any text."""
WHOLE = re.compile(r"(?!.*\s[~/\\])(?:file:/|~[\w.-]*[\\/]|[A-Za-z]:[\\/]|[\\/])[^:]*[\\/]?[^:]*$")
"""A text that is a path and nothing else."""


class Private:
    """Leaves host names and the folders of absolute paths out of texts, the same ones in the same way everywhere."""

    def __init__(self, hosts: Iterable[str]) -> None:
        known = sorted({host for host in hosts if host}, key=len, reverse=True)
        self.hosts = re.compile("|".join(rf"(?<![\w-]){re.escape(host)}(?![\w-])" for host in known)) if known else None
        self.names: dict[str, str] = {}  # of each path that was met

    def __call__(self, value: Any) -> Any:
        """Return rows, lists or texts without what identifies a machine; other values as they are."""
        if isinstance(value, Enum):
            return value
        if isinstance(value, str):
            place, colon, rest = value.partition(": ")
            if WHOLE.match(place) and "\n" not in place:  # blanks and all, as sentences begin that name a file
                return self._name(place) + colon + self(rest)
            return PATH.sub(lambda found: self._name(found[0]), value)
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **self({field.name: getattr(value, field.name) for field in fields(value)}))
        if isinstance(value, Mapping):
            return {key: self._error(self(each)) if key == "error" else self(each) for key, each in value.items()}
        return [self(each) for each in value] if isinstance(value, list | tuple) else value

    def _error(self, text: Any) -> Any:
        """Return why a cell failed; only that is likely to name a host, and other words may be called like one."""
        return self.hosts.sub("(host)", text) if isinstance(text, str) and self.hosts else text

    def _name(self, path: str) -> str:
        """Return the last part of a path, numbered if another path has it too: names tell curves apart."""
        if path not in self.names:
            *outer, last = re.split(r"[\\/]+", path.rstrip("\\/"))
            if outer[-1:] in (["home"], ["Users"], [""]) or last.startswith("~"):
                last = "(home)" if outer[-1:] != [""] else last
            taken, number, name = set(self.names.values()), 1, f"…/{last}"
            while name in taken:
                number += 1
                name = f"…/{last} ({number})"
            self.names[path] = name
        return self.names[path]
