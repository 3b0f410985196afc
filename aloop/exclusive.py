"""What only one run at a time can use: its extensions, its stream."""

import threading
from collections.abc import Callable, Iterable
from weakref import WeakValueDictionary

from aloop.errors import AlreadyRunningError

__all__ = ["Possession", "possessor_of"]


class Possession:
    """What one run has to itself, as long as it lasts.

    Parameters:
        owner: how messages call the run.
        is_over: says whether the run needs it no more, though nobody gave anything back.
    """

    def __init__(self, owner: str, is_over: Callable[[], bool]) -> None:
        self.owner = owner
        self.is_over = is_over
        self._things: dict[int, object] = {}

    def take(self, things: Iterable[tuple[object, str]]) -> None:
        """Take things, each given with how messages call it.

        Raises `AlreadyRunningError`, and takes none of them, if another run has one.
        """
        taken = list(things)
        with _taking:  # for runs may begin in several threads at once
            for thing, what in taken:
                other = possessor_of(thing)
                if other is not None and other is not self:
                    raise AlreadyRunningError(
                        f"{what} is in use by {other.owner}; expected one of its own for each "
                        "loop that runs, because it keeps what it has seen; make another one, or "
                        "run the loops one after the other"
                    )
            for thing, _ in taken:
                self._things[id(thing)] = thing  # kept, so that the id is not given to another
                _possessors[id(thing)] = self

    def give_back(self) -> None:
        """Let others have what it has taken."""
        for key in self._things:
            if _possessors.get(key) is self:
                del _possessors[key]
        self._things.clear()


_taking = threading.Lock()

# Weakly: a run whose event loop was closed under it can be collected.
_possessors: "WeakValueDictionary[int, Possession]" = WeakValueDictionary()


def possessor_of(thing: object) -> Possession | None:
    """Give who has a thing, or None if it is to be had."""
    possession = _possessors.get(id(thing))
    if possession is not None and possession.is_over():
        possession.give_back()
        return None
    return possession
