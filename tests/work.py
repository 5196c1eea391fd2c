"""How much code computes, counted rather than timed: a busy machine does not change the count.

What happens inside one call of C, such as one match of a regular expression, counts as one: `make hardening` bounds
that, in seconds of the processor.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Calls:
    """How many functions were called, C's included."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        """What `sys.setprofile` asks for."""
        if event in ("call", "c_call"):
            self.count += 1


@contextmanager
def calls() -> Iterator[Calls]:
    """Counts the calls of this thread, and those of threads that start within.

    >>> with calls() as made:
    ...     _ = [abs(x) for x in range(10)]
    >>> 10 <= made.count < 20
    True
    """
    made = Calls()
    before, before_threads = sys.getprofile(), threading.getprofile()
    sys.setprofile(made)
    threading.setprofile(made)
    try:
        yield made
    finally:
        sys.setprofile(before)
        threading.setprofile(before_threads)


class Elements(TorchDispatchMode):
    """How many elements the results of torch's operations hold, those on the meta device apart.

    >>> with Elements() as made:
    ...     total = torch.zeros(3, 4).sum()
    >>> made.count
    13
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.count += sum(
            leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta"
        )
        return found
