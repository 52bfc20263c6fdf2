"""Choosing which grid point each weight goes to, given the inputs it will meet.

A weight W (out, K) on a grid of given steps S (out, K); the inputs are known by their mean outer product H = X^T X / n.
The output error of a rounded weight Q is tr((Q - W) H (Q - W)^T). Nearest rounding minimizes it only for H diagonal.
"""

import torch
from torch import Tensor

from fpsim.formats import Format
from fpsim.nn import functional

_COLUMNS = 128  # of the weight that are corrected one by one before the rest is corrected in one product


def nearest(weight: Tensor, step: Tensor, row: Format) -> Tensor:
    """The nearest grid point, ties to even, saturating."""
    return functional.round_(weight / step, row).mul_(step)


def output_error(change: Tensor, gram: Tensor) -> Tensor:
    """(out,) squared error of each output, tr(D H D^T) row by row, for a weight that changed by `change`."""
    return ((change @ gram) * change).sum(1)


def gptq(weight: Tensor, step: Tensor, row: Format, gram: Tensor, damping: float = 0.01) -> Tensor:
    """Columns are rounded in turn; what each one loses is made up for by those that are still free.

    GPTQ, Frantar et al., arXiv:2210.17323, algorithm 1, with columns in descending order of diag(H) ("act-order"), for
    any grid whose steps are fixed beforehand. Steps:
    1. H' = H + damping * mean(diag H) * I; U the upper Cholesky factor of H'^-1, so that U^T U = H'^-1;
    2. for each column q: Q_q = nearest(W_q), e = (W_q - Q_q) / U_qq;
    3. W_r -= e U_qr for the columns r that follow.

    weight, step : (out, K) float32; gram : (K, K). Returns (out, K) on the grid. A column that no input touches is
    rounded to nearest.
    """
    order = torch.argsort(gram.diagonal(), descending=True)
    w, s, h = weight[:, order].clone(), step[:, order], gram[order][:, order].double()
    dead = h.diagonal() <= 0
    mean = h.diagonal().mean()
    if mean <= 0:
        return nearest(weight, step, row)
    h.diagonal().add_(damping * mean)
    h[dead, dead] = mean
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()
    made = torch.empty_like(w)
    for first in range(0, w.shape[1], _COLUMNS):
        last = min(first + _COLUMNS, w.shape[1])
        errors = torch.empty_like(w[:, first:last])
        for q in range(first, last):
            made[:, q] = nearest(w[:, q], s[:, q], row)
            error = (w[:, q] - made[:, q]) / factor[q, q]
            w[:, q:last] -= error[:, None] * factor[q, q:last]
            errors[:, q - first] = error
        w[:, last:] -= errors @ factor[first:last, last:]
    result = torch.empty_like(made)
    result[:, order] = made
    return result


def neighbours(scaled: Tensor, row: Format) -> tuple[Tensor, Tensor]:
    """(lower, unit): the grid points around each value are lower and lower + unit, with lower <= value.

    scaled : float32, already divided by its scale. The unit is the local step of the format. Beyond the largest value
    there is only one neighbour and the unit is 0. Grids nest, so the upper end of a binade is a point of the next one.
    """
    inside = scaled.clamp(row.min, row.max)
    if row.kind == "int":
        unit = torch.full_like(inside, 2.0**-row.bias)
    else:
        exponent = torch.frexp(inside).exponent.clamp_(min=row.minimum_exponent + 1) - 1
        unit = torch.ldexp(torch.ones_like(inside), exponent - row.mantissa_bits)
    lower = torch.floor(inside / unit) * unit
    # Below zero the lower neighbour of a power of two lies in the next binade, whose step is twice as long.
    lower = torch.where(lower < row.min, torch.full_like(lower, row.min), lower)
    unit = torch.minimum(unit, row.max - lower)
    return lower, unit
