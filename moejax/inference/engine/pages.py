"""The pages of one lane: which are free, who uses them, and which hold a beginning that is known.

A page is full and never changes again, or it belongs to one text. The *name* of a full page says
what it and all pages before it hold, so that a text that begins alike can have it, too. A page that
nobody uses any more keeps its name and content until there is need of it: the one that was left
first goes first.
"""

from hashlib import blake2b

import numpy as np

Name = bytes


def name_page(before: Name, token_N: np.ndarray) -> Name:
    """The name of a page with these tokens (int32), behind a page of the name ``before``."""
    return blake2b(token_N.tobytes(), digest_size=16, key=before).digest()


class PagePool:
    """``pages`` pages, of which page 0 is nobody's. With ``share``, named ones are given again."""

    def __init__(self, pages: int, share: bool) -> None:
        self.users = [0] * pages
        """How many texts have each page."""
        self._free = list(range(pages - 1, 0, -1))
        self._kept: dict[int, None] = {}  # without users, but with a name; the oldest first
        self._named: dict[Name, int] = {}
        self._names: dict[int, Name] = {}
        self._share = share

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._kept)

    @property
    def kept(self) -> int:
        """Those of them that still have a content that is known."""
        return len(self._kept)

    @property
    def used(self) -> int:
        """Pages that texts have."""
        return len(self.users) - 1 - self.available

    @property
    def shared(self) -> int:
        """Pages that several texts have."""
        return sum(users > 1 for users in self.users)

    def take(self) -> int:
        """A page for one text; there must be one (``available``)."""
        if self._free:
            page = self._free.pop()
        else:
            page = next(iter(self._kept))
            del self._kept[page]
            del self._named[self._names.pop(page)]
        self.users[page] = 1
        return page

    def find(self, name: Name) -> int | None:
        """The page of this name, if it is still there."""
        return self._named.get(name)

    def join(self, page: int) -> None:
        """One text more has this page, which has a name."""
        self._kept.pop(page, None)
        self.users[page] += 1

    def leave(self, pages: list[int]) -> None:
        """One text less has these. Of those before one another, the last one will go first."""
        for page in reversed(pages):
            self.users[page] -= 1
            if self.users[page] == 0:
                if page in self._names:
                    self._kept[page] = None
                else:
                    self._free.append(page)

    def name(self, page: int, name: Name) -> None:
        """Say what a full page holds. Of two with the same content, the first one is shared."""
        if self._share and name not in self._named:
            self._named[name] = page
            self._names[page] = name
