"""What only the people who publish a set can say of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Name and SPDX licence of a set, and what Croissant wants besides. `languages` are counted where none are given.

    `published` is a day, as YYYY-MM-DD; `version` is MAJOR.MINOR.PATCH.
    """

    name: str
    licence: str
    languages: tuple[str, ...] = ()
    creator: str | None = None
    url: str | None = None
    published: str | None = None
    version: str | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """What Croissant requires or recommends and nobody has given."""
        wanted = {"creator": self.creator, "url": self.url, "published": self.published, "version": self.version}
        return tuple(name for name, value in wanted.items() if value is None)
