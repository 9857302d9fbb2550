"""A Triton kernel for everything between two matrix products of a q-net.

Bias, ReLU, layer norm, residual and the product with the output layer read and write each activation once. In plain torch
they take six passes over memory, which is more time than the matrix products on a large GPU.

This module needs Triton. :mod:`~pyterrier_hypencoder.scoring.cuda` imports it only if a GPU is used.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..qnet import QNets

_VALUES_PER_PROGRAM = 2048
_EPSILON = tl.constexpr(1e-5)  # of the layer norm, as in QNets.score


def run_network(nets: QNets, x: Tensor) -> Tensor:
    """Return the output of q-nets without their inner-product skip; ``cuda.can_fuse_layers`` says which ones.

    Args:
        nets: The q-nets of Q queries.
        x: Inputs of the first layer in the dtype of the hidden layers, (Q, n, D), or (1, n, D) for all queries.

    Returns:
        (Q, n) float32.
    """
    last = len(nets.biases) - 1
    for layer, bias in enumerate(nets.biases):
        y = torch.bmm(x.expand(len(nets), -1, -1), nets.weights[layer])  # (Q, n, H)
        x = finish_layer(y, bias, x if nets.spec.has_residual(layer) else None, nets.weights[-1] if layer == last else None)
    return x


def finish_layer(y: Tensor, bias: Tensor, residual: Tensor | None, output: Tensor | None) -> Tensor:
    """Add the bias, apply ReLU and layer norm, and add the residual.

    The result is NaN for rows whose variance overflows, as in :meth:`QNets.score`.

    Args:
        y: Products with the weights of a layer, (Q, n, H).
        bias: (Q, H).
        residual: (Q, n, H) or (1, n, H); None for none.
        output: Weights of the output layer, (Q, H, 1), after the last hidden layer; None after the others.

    Returns:
        (Q, n, H) in the dtype of y. With ``output``, the products with it, (Q, n) float32.
    """
    n_queries, n, width = y.shape
    out = torch.empty_like(y) if output is None else torch.empty(n_queries, n, dtype=torch.float32, device=y.device)
    columns = triton.next_power_of_2(width)
    rows = max(1, _VALUES_PER_PROGRAM // columns)
    with torch.cuda.device_of(y):
        _finish_layer[(triton.cdiv(n_queries * n, rows),)](
            y.contiguous(),
            bias.contiguous(),
            y if residual is None else residual.contiguous(),
            y if output is None else output.contiguous(),
            out,
            n_queries * n,
            n,
            1 if residual is None else len(residual) * n,
            width,
            has_residual=residual is not None,
            is_last=output is not None,
            rows=rows,
            columns=columns,
        )
    return out


@triton.jit(do_not_specialize=["n_rows", "rows_per_net", "residual_rows"])  # else each length compiles it again
def _finish_layer(  # type: ignore[no-untyped-def]
    y,
    bias,
    residual,
    output,
    out,
    n_rows,
    rows_per_net,
    residual_rows,
    width,
    has_residual: tl.constexpr,
    is_last: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    row = (tl.program_id(0) * rows + tl.arange(0, rows))[:, None]
    column = tl.arange(0, columns)[None, :]
    inside = (row < n_rows) & (column < width)
    place = row.to(tl.int64) * width + column
    of_net = (row // rows_per_net).to(tl.int64) * width + column
    value = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + of_net, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(value < 0.0, 0.0, value)  # keeps NaN
    mean = tl.sum(value, axis=1, keep_dims=True) / width
    centred = tl.where(inside, value - mean, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / width + _EPSILON)
    value = tl.where(factor == 0.0, float("nan"), centred * factor)
    if has_residual:
        shared = (row % residual_rows).to(tl.int64) * width + column
        value += tl.load(residual + shared, mask=inside, other=0.0).to(tl.float32)
    if is_last:
        weight = tl.load(output + of_net, mask=inside, other=0.0).to(tl.float32)
        score = tl.sum(tl.where(inside, value * weight, 0.0), axis=1)
        number = tl.program_id(0) * rows + tl.arange(0, rows)
        tl.store(out + number, score, mask=number < n_rows)
    else:
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
