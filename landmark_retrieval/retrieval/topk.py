"""The best of many scores, on a tie always the lower row."""

from collections.abc import Sequence

import torch

# columns of a block that are looked at together
_GROUP = 64


def stable_topk(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `torch.topk(scores, k, dim=1)`, but among equal scores the lower column comes first; faster for small k.

    Args:
        scores: (n, m) without NaN.
        k: at most m.

    Returns:
        values (n, k) and columns (n, k) int64.
    """
    n, m = scores.shape
    # the columns in groups: no column of the answer lies outside the k groups with the largest maxima
    groups = m // _GROUP
    if groups < 4 * k:
        return _best_of(scores, None, k)
    whole = groups * _GROUP
    held = scores[:, :whole].unflatten(1, (groups, _GROUP))
    _, best = _best_of(held.amax(dim=2), None, k)
    candidates = held.gather(1, best.unsqueeze(2).expand(n, k, _GROUP)).flatten(1)
    columns = (best.unsqueeze(2) * _GROUP + torch.arange(_GROUP, device=scores.device)).flatten(1)
    if whole < m:
        candidates = torch.cat([candidates, scores[:, whole:]], dim=1)
        columns = torch.cat([columns, torch.arange(whole, m, device=scores.device).expand(n, m - whole)], dim=1)
    return _best_of(candidates, columns, k)


def _best_of(scores: torch.Tensor, rows: torch.Tensor | None, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k scores and their rows, on a tie the lower row; without `rows` the columns are the rows."""
    # one more than asked for tells whether a tie goes on behind the last
    values, places = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    equal = values[:, 1:] == values[:, :-1]
    values, places = values[:, :k], places[:, :k]
    found = places if rows is None else rows.gather(1, places)
    # topk returns the right values, but in a tie the rows in any order
    tied = equal[:, : k - 1].any(dim=1).nonzero().squeeze(1)
    if len(tied):
        values[tied], found[tied] = _ordered(values[tied], found[tied])
    # and where the last value stands outside the k, too, it may have left out a lower row
    cut = equal[:, k - 1 :].any(dim=1).nonzero().squeeze(1)
    if len(cut):
        whole = scores[cut]
        numbers = torch.arange(whole.shape[1], device=whole.device).expand_as(whole) if rows is None else rows[cut]
        ordered = _ordered(whole, numbers)
        values[cut], found[cut] = ordered[0][:, :k], ordered[1][:, :k]
    return values, found


def _ordered(scores: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, by_row = rows.sort(dim=1)
    scores, by_score = scores.gather(1, by_row).sort(dim=1, descending=True, stable=True)
    return scores, rows.gather(1, by_score)


def merged(parts: Sequence[tuple[torch.Tensor, torch.Tensor]], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k of several lists of (scores, rows), on a tie the lower row."""
    scores, rows = (torch.cat([part[side] for part in parts], dim=1) for side in (0, 1))
    return (scores, rows) if len(parts) == 1 else _best_of(scores, rows, min(k, scores.shape[1]))
