"""One run as it was logged: the last value of each column, and a thinned curve of each loss.

Points are added in blocks, a list a column: a log of any size is read in bounded memory and at the speed of its parser.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ncpl.logs.derive import number_of
from ncpl.logs.frameworks import plain_name

Row = dict[str, Any]
Parse = Callable[[Any], Any]

CURVE_POINTS = 512
"""Points of a curve that are kept; when there are twice as many, every second one goes."""
BLOCK = 2000
"""Rows that are added at once."""

_LOSS = re.compile(r"loss|cross_?entropy|perplexity|(^|[._])(ppl|nll|bpb|xent|ce)($|[._])|bits_per_(byte|token)", re.I)
_NOT_FINAL = re.compile(
    r"z_?loss|aux|balanc|router|loss_?scale|vs_samples|std|stddev|__min$|__max$|global_max|(^|[._])(best|min)[._]|moe_|"
    r"loss_fn|smoothing|loss_type|loss_func|num_|_count$|per_class|weight|runtime|train_runtime|loss_link|_every$|"
    r"_freq$|interval|mask_loss|coef|\.component$|\.class|target|kernel|fused|chunk|impl$|window|parallel_loss|ema_loss_",
    re.I,
)
_RATE = re.compile(r"(^|[._])(lr|learning_rate)($|[._])")
_NOT_FINITE = ("nan", "inf", "infinity", "-inf", "-infinity", "-nan")


@dataclass
class Curve:
    """A logged loss: what it ended at, and a thinned curve.

    Args:
        kept: [(step, loss), ...], every `stride`-th finite point.
        last: the finite value of the largest step; None before there is one.
        at: the largest step so far.
        finite, nans: how many values were numbers, and how many were not.
        broken: whether NaN or infinity was logged after the last finite value.
    """

    kept: list[tuple[float, float]] = field(default_factory=list)
    last: float | None = None
    at: float = -math.inf
    finite: int = 0
    nans: int = 0
    broken: bool = False
    stride: int = 1
    ended: float = -math.inf

    def add(self, steps: Sequence[float], losses: Sequence[float]) -> None:
        """Adds points in the order in which they were logged."""
        sound = list(itertools.compress(zip(steps, losses, strict=True), map(math.isfinite, losses)))
        self.kept += sound[-self.finite % self.stride :: self.stride]
        while len(self.kept) > 2 * CURVE_POINTS:
            del self.kept[1::2]
            self.stride *= 2
        self.finite += len(sound)
        if len(sound) == len(losses) and steps[0] >= self.at and all(map(_in_order, steps, steps[1:])):
            self.last, self.at, self.ended, self.broken = losses[-1], steps[-1], steps[-1], False
            return
        self.nans += len(losses) - len(sound)
        for step, loss in zip(steps, losses, strict=True):
            late = step >= self.at
            self.at = max(step, self.at)
            if not math.isfinite(loss):
                self.broken = self.broken or late
            elif late or self.last is None:
                self.last, self.ended, self.broken = loss, step, False

    @property
    def points(self) -> list[tuple[float, float]]:
        """The thinned curve by step, evenly spread, its end included."""
        ended = {} if self.last is None else {self.ended: self.last}
        return sorted((dict(self.kept) | ended).items())

    @property
    def diverged(self) -> bool:
        """Whether it ended in NaN; a table that writes NaN where nothing was measured has more of them than numbers."""
        return self.broken and self.finite >= self.nans


def _in_order(before: float, after: float) -> bool:
    return before <= after


@dataclass
class Logged:
    """One run as it was logged.

    Args:
        name: as its log calls it; None where it has none.
        values: flattened configuration, and the last value of each logged column.
        curves: name of a logged loss -> its curve.
        peaks: name of a logged learning rate -> its largest value.
        changed: names whose value changed while the run was logged, which no configuration's does.
        at: the largest logged step.
        points: how many points were logged; 0 where the log holds one row a run.
        complete: whether the values hold a whole configuration, in which an absent key has its default.
        origin: file or folder.
        parts: of each file its values, where a configuration stands in several files.
    """

    name: str | None
    values: dict[str, Any]
    curves: dict[str, Curve] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    at: float = -math.inf
    points: int = 0
    origin: str = ""
    complete: bool = False
    parts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, columns: Mapping[str, Sequence[Any]], steps: Sequence[Any], parse: Parse | None = None) -> None:
        """Adds logged points.

        Args:
            columns: name -> a value a point, None or empty where it has none.
            steps: of each point, None where it has none.
            parse: what makes a value of a cell, where the cells are text as the file holds them.
        """
        try:
            numbers: list[float | None] = list(map(int, steps)) if parse is not None else _whole(steps)
        except (TypeError, ValueError):
            numbers = [number_of(step if parse is None else parse(step), counted=True) for step in steps]
        order = [self.points + i if step is None else step for i, step in enumerate(numbers, 1)]
        # Tables are not always sorted, and a run that starts again goes back: the largest step is the last.
        before = itertools.accumulate((-math.inf if n is None else n for n in numbers), max, initial=self.at)
        late = [step is None or step >= at for step, at in zip(numbers, before, strict=False)]
        self.points += len(order)
        self.at = max(self.at, *(step for step in numbers if step is not None), -math.inf)
        for name, cells in columns.items():
            if is_loss(name):
                self._add_losses(name, cells, order, parse)
            else:
                self._add_values(name, cells, late, parse)

    def _add_losses(self, name: str, cells: Sequence[Any], order: list[float], parse: Parse | None) -> None:
        logged = [cell is not None and cell != "" for cell in cells]
        if not all(logged):
            cells, order = list(itertools.compress(cells, logged)), list(itertools.compress(order, logged))
        try:
            losses: list[float | None] = list(map(float, cells))
        except (TypeError, ValueError):
            losses = [_loss_value(cell if parse is None else parse(cell)) for cell in cells]
            order = [step for step, loss in zip(order, losses, strict=True) if loss is not None]
        if order:
            self.curves.setdefault(name, Curve()).add(order, [loss for loss in losses if loss is not None])

    def _add_values(self, name: str, cells: Sequence[Any], late: list[bool], parse: Parse | None) -> None:
        if _is_rate(name):
            numbers = (number_of(cell if parse is None else parse(cell)) for cell in _different(cells))
            peak = max((number for number in numbers if number is not None), default=None)
            if peak is not None:
                # The largest learning rate that was logged is the peak.
                self.peaks[name] = max(float(peak), self.peaks.get(name, 0.0))
        if name not in self.changed:
            values = [value for cell in _different(cells) if (value := _value(cell, parse)) is not None]
            if values and any(value != self.values.setdefault(name, values[0]) for value in values):
                self.changed.add(name)
        if name in self.changed:
            last = (
                value
                for cell, is_late in zip(reversed(cells), reversed(late), strict=True)
                if is_late and (value := _value(cell, parse)) is not None
            )
            self.values[name] = next(last, self.values[name])

    def configured(self, values: Mapping[str, Any]) -> "Logged":
        """The run with its configuration: what that says of a name comes before what was logged under it."""
        given = {name: value for name, value in values.items() if value is not None}
        self.values.update(given)
        self.changed -= given.keys()
        for name in given:
            self.peaks.pop(name, None)
        return self


def blocks(rows: Iterable[Row]) -> Iterator[dict[str, list[Any]]]:
    """Rows as blocks of columns.

    >>> list(blocks([{"step": 1, "loss": 4.0}, {"step": 2}]))
    [{'step': [1, 2], 'loss': [4.0, None]}]
    """
    rows = iter(rows)
    while block := list(itertools.islice(rows, BLOCK)):
        names = dict.fromkeys(itertools.chain.from_iterable(block))
        yield {name: [row.get(name) for row in block] for name in names}


def _whole(steps: Sequence[Any]) -> list[float | None]:
    """Steps that are whole numbers as they are.

    Raises:
        ValueError: some are not.
    """
    if any(type(step) is not int for step in steps):
        raise ValueError("not whole numbers")
    return list(steps)


def _different(cells: Sequence[Any]) -> Iterable[Any]:
    """The different cells, in their order."""
    try:
        return dict.fromkeys(cells)
    except TypeError:
        return cells


def _value(cell: Any, parse: Parse | None) -> Any:
    """A cell's value; None where there is none or it is NaN."""
    value = cell if parse is None or cell is None else parse(cell)
    return None if value == "" or (isinstance(value, float) and math.isnan(value)) else value


def _loss_value(value: Any) -> float | None:
    """A loss, NaN and infinities included, perhaps as text."""
    if isinstance(value, str) and value.strip().lower().lstrip("+") in _NOT_FINITE:
        return math.nan
    number = number_of(value)
    if number is not None:
        return float(number)
    return math.nan if isinstance(value, float) else None


@functools.lru_cache(100_000)
def is_loss(name: str) -> bool:
    """Whether a column may hold the loss of the run (not a regulariser's, an extreme's or a setting).

    >>> is_loss("eval/c4/CE loss"), is_loss("train/z_loss"), is_loss("val_ppl"), is_loss("layers")
    (True, False, True, False)
    """
    plain = plain_name(name)
    return bool(_LOSS.search(plain)) and not _NOT_FINAL.search(plain)


@functools.lru_cache(100_000)
def _is_rate(name: str) -> bool:
    return bool(_RATE.search(plain_name(name)))
