"""Q-nets: the small neural networks that queries become, and their fp32 reference score.

Every way to score a document agrees with :meth:`QNets.score`. Faster ones are in :mod:`pyterrier_hypencoder.scoring`.

The whole package uses these letters for shapes: Q queries, N documents, D dimensions of a document vector, H hidden width,
T tokens, L hidden layers, K results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .options import check_choice, check_fields, list_items

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,  # the exact form with erf, like the released code
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.01),
}
_ACTIVATION_ALIASES = {"leakyrelu": "leaky_relu"}  # spelling in the Matryoshka fork's checkpoints


@dataclass(frozen=True)
class QNetSpec:
    """Architecture that all q-nets of a model share (paper, section 3.4 and equation 6).

    Args:
        vector_dimensions: Widths of the layers from the document vector to the score: ``(D, H, ..., H, 1)``. ``(D, 1)`` has no
            hidden layer; it is the query vector of a bi-encoder.
        activation_type: One of ``relu``, ``tanh``, ``sigmoid``, ``gelu``, ``leaky_relu``.
        do_dropout: If True, hidden layers drop inputs during training.
        dropout_prob: Probability that an input is dropped.
        do_layer_norm: If True, hidden layers normalise their output, without learnable parameters.
        do_residual: If True, hidden layers add their input to their output.
        do_residual_on_last: The same option for the last hidden layer. None takes the value of ``do_residual``.
        layer_norm_before_residual: If True, the layer norm comes before the residual is added.
        inner_product_skip: If True, the score is ``skip_scale * <p, x> + skip_gate * net(x)`` with one vector p per query.
            The paper and the released models do not have this.
        skip_scale: Factor of the inner product.
        skip_gate: Factor of the network beside the inner product.
        normalize_input: If True, the network sees ``sqrt(D) * x / |x|`` instead of x. The inner product still sees x.
        narrowed: If True, the q-nets are the first units of wider ones (see :meth:`QNets.narrow`). A residual then adds the
            first units of a wider input.

    Raises:
        ValueError: If the options contradict each other or the dimensions do not fit.

    Example:
        >>> from pyterrier_hypencoder import QNetSpec
        >>> spec = QNetSpec((768, 768, 768, 1))
        >>> spec.hidden_layers, spec.size
        (2, 1181952)
        >>> QNetSpec((768, 1)).is_linear
        True
    """

    vector_dimensions: tuple[int, ...]
    activation_type: str = "relu"
    do_dropout: bool = False
    dropout_prob: float = 0.1
    do_layer_norm: bool = True
    do_residual: bool = True
    do_residual_on_last: bool | None = False
    layer_norm_before_residual: bool = True
    inner_product_skip: bool = False
    skip_scale: float = 1.0
    skip_gate: float = 1.0
    normalize_input: bool = False
    narrowed: bool = False

    def __post_init__(self) -> None:
        dims = tuple(map(int, list_items("vector_dimensions", self.vector_dimensions, int | np.integer, "integers")))
        object.__setattr__(self, "vector_dimensions", dims)
        check_fields(self)
        object.__setattr__(self, "activation_type", _ACTIVATION_ALIASES.get(self.activation_type, self.activation_type))
        if len(dims) < 2 or min(dims) < 1 or dims[-1] != 1:
            raise ValueError(
                f"vector_dimensions must be at least two positive widths, the last one must be 1, got {list(dims)}."
            )
        check_choice("activation_type", self.activation_type, sorted(ACTIVATIONS))
        if not 0 <= self.dropout_prob <= 1:
            raise ValueError(f"dropout_prob must be between 0 and 1, got {self.dropout_prob}.")
        if self.do_residual_on_last and not self.do_residual:
            raise ValueError("do_residual_on_last=True requires do_residual=True, got False. Set both or neither.")
        for layer in range(self.hidden_layers):
            fits = dims[layer] == dims[layer + 1] or (self.narrowed and dims[layer] > dims[layer + 1])
            if self.has_residual(layer) and not fits:
                raise ValueError(
                    f"A residual requires layers of equal width, got {dims[layer]} -> {dims[layer + 1]} at hidden layer "
                    f"{layer}. Set do_residual=False or change vector_dimensions {list(dims)}."
                )

    @classmethod
    def from_config(cls, converter_kwargs: dict[str, Any]) -> QNetSpec:
        """Read the ``converter_kwargs`` of a checkpoint's configuration.

        Args:
            converter_kwargs: The parsed options. Missing options take the released defaults; unknown ones are ignored.

        Raises:
            ValueError: If ``vector_dimensions`` is missing or an option does not fit.
        """
        if "vector_dimensions" not in converter_kwargs:
            raise ValueError(f"converter_kwargs must contain vector_dimensions, got only {sorted(converter_kwargs)}.")
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in converter_kwargs.items() if key in known})

    @property
    def input_dim(self) -> int:
        """Number of dimensions of the document vectors, D."""
        return self.vector_dimensions[0]

    @property
    def hidden_layers(self) -> int:
        """Number of hidden layers, L."""
        return len(self.vector_dimensions) - 2

    @property
    def is_linear(self) -> bool:
        """True if the score is an inner product with one vector per query."""
        return self.hidden_layers == 0 and not self.inner_product_skip and not self.normalize_input

    @property
    def weight_shapes(self) -> list[tuple[int, int]]:
        """Shapes ``(in, out)`` of the L + 1 weight matrices."""
        return list(zip(self.vector_dimensions[:-1], self.vector_dimensions[1:], strict=True))

    @property
    def bias_sizes(self) -> list[int]:
        """Sizes of the L biases. The output layer has none."""
        return list(self.vector_dimensions[1:-1])

    @property
    def size(self) -> int:
        """Number of values in one flattened q-net."""
        size = sum(i * o for i, o in self.weight_shapes) + sum(self.bias_sizes)
        return size + (self.input_dim if self.inner_product_skip else 0)

    def has_residual(self, layer: int) -> bool:
        """Return True if a hidden layer adds its input to its output.

        Args:
            layer: Number of the hidden layer, from 0.
        """
        if layer == self.hidden_layers - 1:
            return self.do_residual if self.do_residual_on_last is None else self.do_residual_on_last
        return self.do_residual


class QNets:
    """Weights of Q q-nets that share one architecture.

    Args:
        spec: The architecture.
        weights: L + 1 tensors of shape (Q, in, out).
        biases: L tensors of shape (Q, out).
        query_vectors: (Q, D) vectors of the inner-product skip. Only for architectures that have one.

    Raises:
        ValueError: If the shapes of the tensors do not fit the architecture.

    Example:
        >>> import torch
        >>> from pyterrier_hypencoder import QNets
        >>> qnets = QNets.linear(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))  # two query vectors
        >>> qnets.score(torch.tensor([[3.0, 4.0], [5.0, 6.0]]))  # two document vectors
        tensor([[ 3.,  5.],
                [ 8., 12.]])
    """

    def __init__(
        self,
        spec: QNetSpec,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        query_vectors: Tensor | None = None,
    ) -> None:
        self.spec = spec
        self.weights = list(weights)
        self.biases = list(biases)
        self.query_vectors = query_vectors
        q = len(self.weights[0]) if self.weights else 0
        expected = [(q, i, o) for i, o in self.spec.weight_shapes] + [(q, d) for d in self.spec.bias_sizes]
        if self.spec.inner_product_skip:
            expected.append((q, self.spec.input_dim))
        found = [tuple(t.shape) for t in self._list_tensors()]
        if found != expected:
            raise ValueError(f"Q-nets {self.spec.vector_dimensions} must have tensors of shapes {expected}, got {found}.")

    def _list_tensors(self) -> list[Tensor]:
        skip = [] if self.query_vectors is None else [self.query_vectors]
        return [*self.weights, *self.biases, *skip]

    def _map(self, function: Callable[[Tensor], Tensor]) -> QNets:
        skip = None if self.query_vectors is None else function(self.query_vectors)
        return QNets(self.spec, [function(w) for w in self.weights], [function(b) for b in self.biases], skip)

    def __len__(self) -> int:
        return len(self.weights[0])

    def __repr__(self) -> str:
        dims = "-".join(map(str, self.spec.vector_dimensions))
        return f"QNets({len(self)} x {dims}, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.weights[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights. :meth:`score` computes in this precision."""
        return self.weights[0].dtype

    @classmethod
    def linear(cls, query_vectors: Tensor) -> QNets:
        """Build q-nets without hidden layers, whose score is the inner product.

        Args:
            query_vectors: (Q, D) query vectors of a bi-encoder.

        Raises:
            ValueError: If the tensor does not have two dimensions.
        """
        if query_vectors.ndim != 2:
            raise ValueError(f"query_vectors must have shape (Q, D), got {tuple(query_vectors.shape)}.")
        return cls(QNetSpec((query_vectors.shape[1], 1)), [query_vectors.unsqueeze(-1)], [])

    @staticmethod
    def cat(parts: Sequence[QNets]) -> QNets:
        """Concatenate q-nets of one architecture.

        Raises:
            ValueError: If there are no parts, or their architectures differ.
        """
        if not parts:
            raise ValueError("QNets.cat requires at least one QNets, got none.")
        spec = parts[0].spec
        if any(part.spec != spec for part in parts):
            raise ValueError(f"QNets.cat requires one architecture, got {sorted({str(p.spec) for p in parts})}.")
        weights = [torch.cat(ws) for ws in zip(*(p.weights for p in parts), strict=True)]
        biases = [torch.cat(bs) for bs in zip(*(p.biases for p in parts), strict=True)]
        skip = torch.cat([p.query_vectors for p in parts if p.query_vectors is not None]) if spec.inner_product_skip else None
        return QNets(spec, weights, biases, skip)

    def select(self, queries: slice | Sequence[int] | Tensor) -> QNets:
        """Return the q-nets of some queries, in the given order.

        Args:
            queries: Slice or positions of the queries.
        """
        index = queries if isinstance(queries, slice) else torch.as_tensor(queries, dtype=torch.long, device=self.device)
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> QNets:
        """Return the q-nets on another device or in another dtype."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def flatten(self) -> Tensor:
        """Return all values of each q-net in one row: W0, b0, W1, b1, ..., WL, then the vector of the skip.

        Returns:
            (Q, ``spec.size``) tensor.
        """
        rows: list[Tensor] = []
        for layer, weight in enumerate(self.weights):
            rows.append(weight.flatten(1))
            if layer < len(self.biases):
                rows.append(self.biases[layer])
        if self.query_vectors is not None:
            rows.append(self.query_vectors)
        return torch.cat(rows, dim=1)

    @classmethod
    def unflatten(cls, flat: Tensor, spec: QNetSpec) -> QNets:
        """Build q-nets from the rows that :meth:`flatten` returns.

        Args:
            flat: (Q, ``spec.size``) tensor.
            spec: The architecture.

        Raises:
            ValueError: If the tensor does not have this shape.
        """
        if flat.ndim != 2 or flat.shape[1] != spec.size:
            raise ValueError(f"Flattened q-nets must have shape (Q, {spec.size}), got {tuple(flat.shape)}.")
        weights, biases, start = [], [], 0
        for layer, (i, o) in enumerate(spec.weight_shapes):
            weights.append(flat[:, start : start + i * o].unflatten(1, (i, o)))
            start += i * o
            if layer < spec.hidden_layers:
                biases.append(flat[:, start : start + o])
                start += o
        return cls(spec, weights, biases, flat[:, start:] if spec.inner_product_skip else None)

    def narrow(self, width: int) -> QNets:
        """Return the Matryoshka sub-networks that use the first ``width`` units of every hidden layer (arXiv 2607.17457).

        Document vectors, and the vectors of an inner-product skip, keep all their dimensions. A unit keeps the residual that
        it has in the whole network. The published code of that paper omits residuals; to reproduce it, set
        ``do_residual=False`` in the checkpoint's configuration.

        Args:
            width: Number of units to keep, from 1 to the width of the widest hidden layer.

        Raises:
            ValueError: If the width is out of range.
        """
        hidden = self.spec.bias_sizes
        if not hidden:
            return self
        if not 1 <= width <= max(hidden):
            raise ValueError(f"width must be between 1 and {max(hidden)}, the widest hidden layer, got {width}.")
        dims = (self.spec.input_dim, *(min(h, width) for h in hidden), 1)
        spec = dataclasses.replace(self.spec, vector_dimensions=dims, narrowed=True)
        weights = [w[:, :i, :o] for w, (i, o) in zip(self.weights, spec.weight_shapes, strict=True)]
        biases = [b[:, :o] for b, o in zip(self.biases, spec.bias_sizes, strict=True)]
        return QNets(spec, weights, biases, self.query_vectors)

    def score(self, vectors: Tensor, *, training: bool = False) -> Tensor:
        """Score documents with every q-net; this is the reference for all back-ends.

        The score is computed in the dtype of the weights, which is float32 for the q-nets of an encoder. It matches the
        released code: the activation comes before the layer norm, and the output layer has neither bias nor activation.
        The score is NaN if a normalisation overflows, because torch would return zeros for it.

        Args:
            vectors: (N, D) documents that all queries share, or (Q, N, D) with separate documents for each query.
            training: If True, dropout is active if the architecture has it.

        Returns:
            (Q, N) scores.

        Raises:
            ValueError: If the shape of the vectors does not fit.
        """
        self.check_vectors(vectors)
        vectors = vectors.to(self.device)
        score = self._run_network(vectors.to(dtype=self.dtype), training)
        if self.query_vectors is None:
            return score
        pattern = "qd,nd->qn" if vectors.ndim == 2 else "qd,qnd->qn"
        inner = torch.einsum(pattern, self.query_vectors, vectors.to(self.query_vectors.dtype))
        return self.spec.skip_scale * inner + self.spec.skip_gate * score

    def check_vectors(self, vectors: Tensor) -> None:
        """Raise ValueError if the shape of document vectors does not fit; see :meth:`score`."""
        if vectors.ndim not in (2, 3) or vectors.shape[-1] != self.spec.input_dim:
            raise ValueError(
                f"Document vectors must have shape (N, {self.spec.input_dim}) or (Q, N, {self.spec.input_dim}), got "
                f"{tuple(vectors.shape)}. Use vectors of the model that made the q-nets."
            )
        if vectors.ndim == 3 and len(vectors) != len(self):
            raise ValueError(f"Document vectors (Q, N, D) must have Q = {len(self)}, one group per query, got {len(vectors)}.")

    def _run_network(self, x: Tensor, training: bool) -> Tensor:  # x: (N, D) or (Q, N, D)
        spec = self.spec
        overflow = x.new_zeros(())  # becomes NaN for documents whose norm or variance overflows: (Q, N, 1)
        if spec.normalize_input:
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            x = math.sqrt(spec.input_dim) * (x / norm.clamp(min=1e-12))
            overflow = overflow + 0 * norm.detach()
        activation = ACTIVATIONS[spec.activation_type]
        for layer, bias in enumerate(self.biases):
            y = F.dropout(x, spec.dropout_prob, training=training and spec.do_dropout)
            y = activation(_multiply(y, self.weights[layer]) + bias.unsqueeze(1))  # (Q, N, H)
            if spec.do_layer_norm and spec.layer_norm_before_residual:
                y, overflow = _normalise_layer(y, overflow)
            if spec.has_residual(layer):
                y = y + x[..., : y.shape[-1]]  # x is wider than y only for narrowed q-nets
            if spec.do_layer_norm and not spec.layer_norm_before_residual:
                y, overflow = _normalise_layer(y, overflow)
            x = y
        score = _multiply(x.to(self.weights[-1].dtype), self.weights[-1])  # (Q, N, 1)
        return (score + overflow if overflow.ndim else score).squeeze(-1)  # (Q, N)


def _normalise_layer(x: Tensor, overflow: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer norm of x, and ``overflow`` with NaN where the variance of x is too large for its dtype."""
    y, _, factor = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
    return y, torch.addcdiv(overflow, x.new_zeros(()), factor)  # adds 0 / factor, so NaN for factor 0


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Return (Q, N, O), the product of (N, I) or (Q, N, I) inputs with (Q, I, O) weights."""
    return torch.einsum("ni,qio->qno" if x.ndim == 2 else "qni,qio->qno", x, weight)
