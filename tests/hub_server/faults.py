"""Faults that a server plays on request: errors, lost connections and answers, slow and truncated bodies."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "status", "drop", "lose_answer", "truncate", "slow", "act", "applied", "html", "redirect", "drip", "corrupt"
]


@dataclass
class Fault:
    """Something that goes wrong with requests whose `METHOD /path` matches.

    Args:
        match: regular expression, searched for in `METHOD /path`.
        kind: `"status"` answers `status` instead; `"drop"` closes the connection unread; `"lose_answer"` does what was
            asked and closes the connection instead of answering; `"truncate"` announces the whole body and sends half;
            `"slow"` waits `seconds` before it answers; `"act"` does `action` first, such as somebody else's commit;
            `"applied"` does what was asked and answers `status`; `"html"` answers with a page and status 200;
            `"redirect"` redirects to the same address; `"drip"` sends the answer a byte a `seconds`; `"corrupt"` flips
            a bit of the answer's body.
        times: how many requests it strikes; None is all of them.
        skip: how many matching requests pass before.
        status: HTTP status of `"status"`.
        seconds: of `"slow"`.
    """

    match: str
    kind: Kind = "status"
    times: int | None = 1
    skip: int = 0
    status: int = 503
    seconds: float = 0.5
    action: Callable[[], object] = lambda: None
    struck: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def strikes(self, request: str) -> bool:
        if not re.search(self.match, request):
            return False
        with self._lock:
            if self.skip:
                self.skip -= 1
                return False
            if self.times is not None and self.struck >= self.times:
                return False
            self.struck += 1
            return True
