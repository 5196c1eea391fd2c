"""Training items and how a batch of them becomes model inputs."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from processing_ncpl import Encoding, NCPLProcessor


@dataclass(frozen=True)
class Run:
    """One run as training sees it: its configuration and the residuals to predict, each a loss minus `prior`.

    Args:
        config: a checked configuration (`fields_ncpl.check_config`).
        prior: what the law forecasts for the final loss, nats per token.
        final: residual of the final loss in nats; None where the run teaches curve points alone.
        steps: training steps of the curve's points.
        curve: residuals in nats at `steps`.
        name: of the run in its log, for messages.

    >>> Run({"source": "marin", "max step": 100}, prior=3.0, final=0.02, steps=(50,), curve=(0.4,)).targets
    2
    """

    config: Mapping[str, Any]
    prior: float
    final: float | None = None
    steps: Sequence[float] = ()
    curve: Sequence[float] = ()
    name: str = ""

    @property
    def targets(self) -> int:
        """Number of losses to predict."""
        return (self.final is not None) + len(self.steps)

    def points(self) -> "Iterable[Run]":
        """The run as one item for each of its targets, the final loss first, as the published training reads it."""
        if self.final is not None:
            yield Run(self.config, self.prior, self.final, name=self.name)
        for step, residual in zip(self.steps, self.curve, strict=True):
            yield Run(self.config, self.prior, None, (step,), (residual,), self.name)


@dataclass
class PlainCollator:
    """One padded row for each target, the whole configuration repeated in each: the published way, and the reference.

    Args:
        processor: encodes the configurations.

    >>> from ncpl.training.backbone import train_tokenizer
    >>> config = {"source": "marin", "max step": 100}
    >>> collate = PlainCollator(NCPLProcessor(train_tokenizer([config] * 2), prompt_version=2))
    >>> collate([Run(config, prior=3.0, final=0.02, steps=(50,), curve=(0.4,))])["loss_mask"].sum().item()
    2
    """

    processor: NCPLProcessor

    def __call__(self, runs: Sequence[Run]) -> dict[str, Tensor]:
        rows: list[tuple[Encoding, float | None]] = []
        for run in runs:
            prefix = self.processor.prefix(run.config)
            for point in run.points():
                step, target = (None, point.final) if point.final is not None else (point.steps[0], point.curve[0])
                rows.append((prefix + self.processor.branch(run.config, step, target), target))
        return dict(self.processor.pad(rows))


@dataclass
class PackedCollator:
    """The targets of `PlainCollator` in a fraction of the tokens, with the same loss and gradients.

    The prompts of a batch form a trie: tokens that begin several of them are computed once, so that a run costs its
    configuration once and then two tokens a curve point, and runs share the fields in which they begin alike. A pack
    holds several tries, depth first; a token attends to its ancestors and itself alone, at the position it has in its
    own prompt (tree attention; SpecInfer, arXiv 2305.09781). The targets' own tokens, which no prediction reads, are
    left out: a label stands one position behind its prediction, as `NCPLForecaster` reads it, whatever token is there.

    Args:
        processor: encodes the configurations.
        attention: the model's `attn_implementation`: `"sdpa"`, `"eager"` or `"flex_attention"`.
        pack_length: most tokens in one pack; only a prompt that is longer by itself exceeds it. A batch is spread
            evenly over as few packs as that allows.
        device: the model's, needed by `"flex_attention"` alone, whose mask cannot be moved; it cannot be built by
            worker processes either.

    >>> from ncpl.training.backbone import train_tokenizer
    >>> config = {"source": "marin", "max step": 100}
    >>> collate = PackedCollator(NCPLProcessor(train_tokenizer([config] * 2), prompt_version=2))
    >>> collate([Run(config, prior=3.0, final=0.02, steps=(50, 75), curve=(0.4, 0.3))])["position_ids"].sort().values
    tensor([[0, 0, 1, 2, 3, 3, 4, 4, 5, 5]])
    """

    processor: NCPLProcessor
    attention: str = "sdpa"
    pack_length: int = 256
    device: torch.device | str = "cpu"

    def __call__(self, runs: Sequence[Run]) -> dict[str, Any]:
        rows = PlainCollator(self.processor)(runs)
        names = ("input_ids", "is_number_mask", "number_values_filled")
        ids, is_number, values = (rows[name].numpy() for name in names)
        # Without the target's token; one place in each pack is kept for the label of its last prediction.
        lengths = rows["attention_mask"].numpy().sum(-1) - 1
        packs = pack_rows(ids, is_number, values, lengths, self.pack_length - 1)
        batch = {name: torch.nn.functional.pad(packs.take(rows[name]), (0, 1)) for name in names}
        shape = batch["input_ids"].shape
        labels_at = packs.read_pack, packs.read_index + 1
        batch["loss_mask"] = torch.zeros(shape, dtype=torch.bool)
        batch["loss_mask"][labels_at] = True
        batch["labels"] = torch.zeros(shape)
        batch["labels"][labels_at] = rows["labels"][rows["loss_mask"]]
        batch["position_ids"] = torch.nn.functional.pad(packs.positions, (0, 1))
        ends = torch.nn.functional.pad(packs.ends, (0, 1), value=shape[1])
        # Dense masks travel with the batch, from pinned memory.
        device = self.device if self.attention == "flex_attention" else "cpu"
        return {**batch, "attention_mask": tree_mask(ends.to(device), self.attention)}


@dataclass(frozen=True)
class Packs:
    """Where the tokens of rows went.

    Args:
        source: (packs, length), a token's place in the flattened rows; -1 is padding.
        positions: (packs, length), its position in its row, 0 at padding.
        ends: (packs, length), behind which token of the pack the token's subtree ends.
        read_pack, read_index: (rows,), where each row's last token is.
    """

    source: Tensor
    positions: Tensor
    ends: Tensor
    read_pack: Tensor
    read_index: Tensor

    def take(self, rows: Tensor) -> Tensor:
        """What (rows, tokens) holds, in packs; zeros at padding."""
        return torch.where(self.source >= 0, rows.flatten()[self.source], torch.zeros((), dtype=rows.dtype))


def pack_rows(
    ids: np.ndarray, is_number: np.ndarray, values: np.ndarray, lengths: np.ndarray, pack_length: int
) -> Packs:
    """Lays rows out as tries: tokens that begin several rows stand once in a pack.

    Args:
        ids, is_number, values: (rows, tokens), the rows, padded on the right.
        lengths: (rows,), at least 1.
        pack_length: most tokens in a pack, unless a row is longer.
    """
    count, width = ids.shape
    inside = np.arange(width) < lengths[:, None]
    # Bitwise, so that equal tokens are the same number; nothing equals padding.
    keys = np.stack([np.where(inside, 2 * ids + is_number, -1), values.astype(np.float32).view(np.int32)], -1)
    keys = np.ascontiguousarray(keys, np.int32)
    # Any order in which rows that begin alike are neighbours.
    order = np.argsort(keys.reshape(count, -1).view(f"V{keys[0].nbytes}")[:, 0], kind="stable")
    keys, lengths = keys[order], lengths[order]
    alike = (keys[1:] == keys[:-1]).all(-1).cumprod(-1).sum(-1)
    # The last token stays a row's own: its prediction is read there.
    shared = np.minimum(np.append(0, alike), lengths - 1)
    starts = _split(lengths.tolist(), shared.tolist(), pack_length)
    shared[starts] = 0
    row, position = np.nonzero(inside[order] & (np.arange(width) >= shared[:, None]))
    first = np.append(0, np.cumsum(lengths - shared))
    # A subtree ends where the next row begins that does not share its root; a pack's first row shares nothing.
    leaving = np.where(shared[:, None] <= np.arange(width), first[:-1, None], first[-1])
    leaving = np.append(leaving[1:], np.full((1, width), first[-1]), 0)
    ends = np.minimum.accumulate(leaving[::-1])[::-1]
    pack_of = np.cumsum(np.isin(np.arange(count), starts)) - 1
    offset = first[:-1][starts]
    pack, index = pack_of[row], np.arange(len(row)) - offset[pack_of[row]]
    shape = (len(starts), index.max() + 1)
    read = np.empty(count, np.int64)
    read[order] = first[1:] - 1

    def place(per_token: np.ndarray, padding: Any) -> Tensor:
        placed = np.broadcast_to(padding, shape).astype(np.int64)
        placed[pack, index] = per_token
        return torch.from_numpy(placed)

    return Packs(
        source=place(order[row] * width + position, -1),
        positions=place(position, 0),
        # Padding sees itself, as a softmax over nothing is not a number.
        ends=place(ends[row, position] - offset[pack], np.arange(1, shape[1] + 1)),
        read_pack=torch.from_numpy(pack[read]),
        read_index=torch.from_numpy(index[read]),
    )


def tree_mask(ends: Tensor, attention: str, seen_by_all: int = 0) -> Any:
    """The attention mask of packs in the form an attention takes: a token sees its ancestors and itself.

    Args:
        ends: (batch, tokens), behind which token each token's subtree ends, the tokens being depth first.
        attention: `"sdpa"`, `"eager"` or `"flex_attention"`; the last gives a `BlockMask` for the device of `ends`.
        seen_by_all: number of cached tokens in front that every token sees.

    Returns:
        (batch, 1, tokens, cached + tokens), true where seen (sdpa) or added to the scores (eager); or the `BlockMask`.

    Raises:
        ValueError: an attention that takes no such mask.

    >>> tree_mask(torch.tensor([[3, 2, 3]]), "sdpa").int()[0, 0].tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    batch, tokens = ends.shape
    # A cached token is the ancestor of all.
    ends = torch.nn.functional.pad(ends, (seen_by_all, 0), value=tokens)
    if attention == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def visible(pack: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query + seen_by_all) & (query < ends[pack, key])

        return create_block_mask(visible, batch, None, tokens, seen_by_all + tokens, device=ends.device)
    if attention not in ("sdpa", "eager"):
        raise ValueError(f"attention: {attention!r} takes no tree mask, accepted: sdpa, eager, flex_attention")
    query = torch.arange(tokens, device=ends.device)[:, None]
    key = torch.arange(seen_by_all + tokens, device=ends.device)
    seen = (key <= query + seen_by_all) & (query < ends[:, None, None])
    return seen if attention == "sdpa" else torch.where(seen, 0.0, torch.finfo(torch.float32).min)


def _split(lengths: Sequence[int], shared: Sequence[int], pack_length: int) -> list[int]:
    """The rows that begin packs: as few packs as `pack_length` allows, as even as so many can be."""
    longest = max(lengths)
    most = max(longest, pack_length)
    fewest = len(_fill(lengths, shared, most))
    # A longer pack never makes more packs: bisect for the shortest that needs no more than the fewest.
    even = bisect_left(range(most), -fewest, lo=longest, key=lambda length: -len(_fill(lengths, shared, length)))
    return _fill(lengths, shared, even)


def _fill(lengths: Sequence[int], shared: Sequence[int], pack_length: int) -> list[int]:
    """The rows that begin packs when each takes rows, in order, while they fit."""
    starts, tokens = [0], lengths[0]
    for row in range(1, len(lengths)):
        tokens += lengths[row] - shared[row]
        if tokens > pack_length:
            starts.append(row)
            tokens = lengths[row]
    return starts
