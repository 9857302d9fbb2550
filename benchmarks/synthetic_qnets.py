"""Make q-nets without a model: random ones, and combinations of several query vectors."""

import torch
from torch import Tensor

from pyterrier_hypencoder import QNets, QNetSpec

COMBINATIONS = ("or2", "or4", "and2", "xor2")


def make_random_qnets(n_queries: int, vec_size: int, n_layers: int) -> QNets:
    """Make untrained q-nets (He initialization) with the residuals and layer norms of the released models.

    Args:
        n_queries: Number of q-nets, Q.
        vec_size: Dimensions of the document vectors, D, and width of the hidden layers.
        n_layers: Number of hidden layers.
    """
    spec = QNetSpec((*[vec_size] * (n_layers + 1), 1))
    weights = [torch.randn(n_queries, i, o) * (2 / i) ** 0.5 for i, o in spec.weight_shapes]
    return QNets(spec, weights, [torch.zeros(n_queries, size) for size in spec.bias_sizes])


def make_combined_qnets(combination: str, vectors: Tensor) -> QNets:
    """Make q-nets that combine inner products with several query vectors.

    ==========  ==========================================
    ``or2``     maximum of the first two inner products
    ``or4``     maximum of all four
    ``and2``    minimum of the first two
    ``xor2``    absolute difference of the first two
    ==========  ==========================================

    Args:
        combination: One of :data:`COMBINATIONS`.
        vectors: Query vectors, (Q, 4, D).
    """
    a, b, c, d = vectors.unbind(1)
    first, *others = {  # for example max(a, b) = relu(a - b) + relu(b) - relu(-b)
        "or2": ([a - b, b, -b], [[1.0], [1.0], [-1.0]]),
        "and2": ([a - b, a, -a], [[-1.0], [1.0], [-1.0]]),
        "xor2": ([a - b, b - a], [[1.0], [1.0]]),
        "or4": (
            [a - b, b, -b, c - d, d, -d],
            [[1.0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0], [-1.0, 1.0, -1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]],
            [[1.0], [1.0], [-1.0]],
        ),
    }[combination]
    n_queries, _, vec_size = vectors.shape
    weights = [torch.stack(first, dim=2), *(torch.tensor(rows).expand(n_queries, -1, -1) for rows in others)]
    sizes = [weight.shape[2] for weight in weights]
    spec = QNetSpec((vec_size, *sizes), do_layer_norm=False, do_residual=False)
    return QNets(spec, weights, [torch.zeros(n_queries, size) for size in sizes[:-1]])
