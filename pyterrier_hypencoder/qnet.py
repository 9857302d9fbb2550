"""Q-nets: the small neural networks that a query becomes, and their reference evaluation.

Everything that scores a document agrees with :meth:`QNets.score`; faster ways of evaluating the same networks live in
:mod:`pyterrier_hypencoder.scoring`.

Shape letters used throughout the package: Q queries, N documents, D dimensions of a document vector, H width of a
hidden layer, T tokens, L hidden layers, K results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,  # the exact form with erf, as in the released code
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.01),
}
_ACTIVATION_ALIASES = {"leakyrelu": "leaky_relu"}  # the spelling of the Matryoshka fork's checkpoints


@dataclass(frozen=True)
class QNetSpec:
    """The architecture that all q-nets of a model share (paper, section 3.4 and equation 6).

    Args:
        vector_dimensions: widths of the layers from the document vector to the score, so ``(D, H, ..., H, 1)``. ``(D, 1)``
            has no hidden layer: the query vector of a bi-encoder.
        activation_type: one of ``relu``, ``tanh``, ``sigmoid``, ``gelu``, ``leaky_relu``.
        do_dropout: whether hidden layers drop inputs while training.
        dropout_prob: probability of a dropped input.
        do_layer_norm: whether hidden layers normalise their output (no learnable parameters).
        do_residual: whether hidden layers add their input to their output.
        do_residual_on_last: the same for the last hidden layer; None means "as ``do_residual``".
        layer_norm_before_residual: whether the layer norm comes before the residual is added.
        inner_product_skip: whether the score is ``skip_scale * <p, x> + skip_gate * net(x)`` with a vector p per query.
            Not in the paper; released models do without.
        skip_scale: the factor of the inner product.
        skip_gate: the factor of the network beside the inner product.
        normalize_input: whether the network (not the inner product) sees ``sqrt(D) * x / |x|`` instead of x.
        narrowed: whether the q-nets are the first units of wider ones (:meth:`QNets.narrow`); a residual then adds the first
            units of a layer's wider input.

    Raises:
        ValueError: where the options contradict each other or the dimensions do not fit.
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
        dims = tuple(int(d) for d in self.vector_dimensions)
        object.__setattr__(self, "vector_dimensions", dims)
        activation = _ACTIVATION_ALIASES.get(self.activation_type, self.activation_type)
        object.__setattr__(self, "activation_type", activation)
        if len(dims) < 2 or min(dims) < 1 or dims[-1] != 1:
            raise ValueError(
                "vector_dimensions: expected at least an input and an output width, all positive and the last one 1, "
                f"found {list(dims)}"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation_type: expected one of {sorted(ACTIVATIONS)}, found {activation!r}")
        if self.do_residual_on_last and not self.do_residual:
            raise ValueError("do_residual_on_last=True needs do_residual=True; set both, or neither")
        for layer in range(self.hidden_layers):
            fits = dims[layer] == dims[layer + 1] or (self.narrowed and dims[layer] > dims[layer + 1])
            if self.has_residual(layer) and not fits:
                raise ValueError(
                    f"a residual needs layers of equal width, found {dims[layer]} -> {dims[layer + 1]} at hidden layer "
                    f"{layer}; set do_residual=False or change vector_dimensions {list(dims)}"
                )

    @classmethod
    def from_config(cls, converter_kwargs: dict[str, Any]) -> QNetSpec:
        """Reads the ``converter_kwargs`` of a checkpoint's configuration; missing keys take the released defaults.

        Raises:
            ValueError: where ``vector_dimensions`` is missing or an option does not fit.
        """
        if "vector_dimensions" not in converter_kwargs:
            raise ValueError(f"converter_kwargs: expected vector_dimensions, found only {sorted(converter_kwargs)}")
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in converter_kwargs.items() if key in known})

    @property
    def input_dim(self) -> int:
        """Dimensions of the document vectors that the q-nets take."""
        return self.vector_dimensions[0]

    @property
    def hidden_layers(self) -> int:
        """Number of hidden layers, L."""
        return len(self.vector_dimensions) - 2

    @property
    def is_linear(self) -> bool:
        """Whether the score is an inner product with one vector per query."""
        return self.hidden_layers == 0 and not self.inner_product_skip and not self.normalize_input

    @property
    def weight_shapes(self) -> list[tuple[int, int]]:
        """The ``(in, out)`` shape of every weight matrix; L + 1 of them."""
        return list(zip(self.vector_dimensions[:-1], self.vector_dimensions[1:], strict=True))

    @property
    def bias_sizes(self) -> list[int]:
        """The size of every bias; L of them, as the output layer has none."""
        return list(self.vector_dimensions[1:-1])

    @property
    def size(self) -> int:
        """Numbers in one flattened q-net."""
        size = sum(i * o for i, o in self.weight_shapes) + sum(self.bias_sizes)
        return size + (self.input_dim if self.inner_product_skip else 0)

    def has_residual(self, layer: int) -> bool:
        """Whether hidden layer ``layer`` (from 0) adds its input to its output."""
        if layer == self.hidden_layers - 1:
            return self.do_residual if self.do_residual_on_last is None else self.do_residual_on_last
        return self.do_residual


class QNets:
    """The weights of Q q-nets of one architecture.

    Args:
        spec: the architecture.
        weights: L + 1 tensors of shape (Q, in, out).
        biases: L tensors of shape (Q, out).
        query_vectors: (Q, D), the vectors of the inner-product skip; only where the architecture has one.

    Raises:
        ValueError: where the tensors do not have the shapes that the architecture asks for.
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
        self._check_shapes()

    def _check_shapes(self) -> None:
        q = len(self.weights[0]) if self.weights else 0
        expected = [(q, i, o) for i, o in self.spec.weight_shapes] + [(q, d) for d in self.spec.bias_sizes]
        if self.spec.inner_product_skip:
            expected.append((q, self.spec.input_dim))
        found = [tuple(t.shape) for t in self._tensors()]
        if found != expected:
            raise ValueError(f"q-nets of {self.spec.vector_dimensions}: expected tensors {expected}, found {found}")

    def _tensors(self) -> list[Tensor]:
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
        """The device of the weights."""
        return self.weights[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; also the precision in which :meth:`score` computes."""
        return self.weights[0].dtype

    @classmethod
    def linear(cls, query_vectors: Tensor) -> QNets:
        """A bi-encoder's queries as q-nets without hidden layer: the score is the inner product.

        Args:
            query_vectors: (Q, D).
        """
        if query_vectors.ndim != 2:
            raise ValueError(f"query_vectors: expected shape (Q, D), found {tuple(query_vectors.shape)}")
        return cls(QNetSpec((query_vectors.shape[1], 1)), [query_vectors.unsqueeze(-1)], [])

    @staticmethod
    def cat(parts: Sequence[QNets]) -> QNets:
        """Joins q-nets of one architecture in order.

        Raises:
            ValueError: where there is nothing to join, or architectures differ.
        """
        if not parts:
            raise ValueError("expected at least one QNets to join, found none")
        spec = parts[0].spec
        if any(part.spec != spec for part in parts):
            raise ValueError(f"expected q-nets of one architecture, found {sorted({str(p.spec) for p in parts})}")
        weights = [torch.cat(ws) for ws in zip(*(p.weights for p in parts), strict=True)]
        biases = [torch.cat(bs) for bs in zip(*(p.biases for p in parts), strict=True)]
        skip = torch.cat([p.query_vectors for p in parts if p.query_vectors is not None]) if spec.inner_product_skip else None
        return QNets(spec, weights, biases, skip)

    def select(self, queries: slice | Sequence[int] | Tensor) -> QNets:
        """The q-nets of some queries, in the order asked for."""
        index = queries if isinstance(queries, slice) else torch.as_tensor(queries, dtype=torch.long, device=self.device)
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> QNets:
        """The same q-nets on another device or in another dtype."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def flatten(self) -> Tensor:
        """All numbers of every q-net in one row, (Q, ``spec.size``): W0, b0, W1, b1, ..., WL, then the skip's vector."""
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
        """The inverse of :meth:`flatten`.

        Args:
            flat: (Q, ``spec.size``).
            spec: the architecture.
        """
        if flat.ndim != 2 or flat.shape[1] != spec.size:
            raise ValueError(f"expected flattened q-nets of shape (Q, {spec.size}), found {tuple(flat.shape)}")
        weights, biases, start = [], [], 0
        for layer, (i, o) in enumerate(spec.weight_shapes):
            weights.append(flat[:, start : start + i * o].unflatten(1, (i, o)))
            start += i * o
            if layer < spec.hidden_layers:
                biases.append(flat[:, start : start + o])
                start += o
        return cls(spec, weights, biases, flat[:, start:] if spec.inner_product_skip else None)

    def narrow(self, width: int) -> QNets:
        """The Matryoshka sub-networks that use the first ``width`` units of every hidden layer.

        Document vectors, and the vectors of an inner-product skip, keep all their dimensions (arXiv 2607.17457). A residual
        adds to each unit what it added to it in the whole network; the published code of that paper computes its residuals
        and then leaves them out, which ``do_residual=False`` in a checkpoint's configuration reproduces.

        Raises:
            ValueError: where the width is not between 1 and that of the widest hidden layer.
        """
        hidden = self.spec.bias_sizes
        if not hidden:
            return self
        if not 1 <= width <= max(hidden):
            raise ValueError(f"width: expected 1 to {max(hidden)} units of the hidden layers, found {width}")
        dims = (self.spec.input_dim, *(min(h, width) for h in hidden), 1)
        spec = dataclasses.replace(self.spec, vector_dimensions=dims, narrowed=True)
        weights = [w[:, :i, :o] for w, (i, o) in zip(self.weights, spec.weight_shapes, strict=True)]
        biases = [b[:, :o] for b, o in zip(self.biases, spec.bias_sizes, strict=True)]
        return QNets(spec, weights, biases, self.query_vectors)

    def score(self, vectors: Tensor, *, training: bool = False) -> Tensor:
        """Scores documents: the reference that every other way of evaluating q-nets must agree with.

        Computes in the dtype of the weights, float32 as the encoders make them. Matches the released code (the
        activation comes before the layer norm, the output layer has neither bias nor activation).

        Args:
            vectors: (N, D), documents that all queries share, or (Q, N, D), a group of documents for each query.
            training: whether dropout is active, where the architecture has it.

        Returns:
            (Q, N) scores.

        Raises:
            ValueError: where the vectors' shape does not fit.
        """
        self._check_vectors(vectors)
        vectors = vectors.to(device=self.device, dtype=self.dtype)
        score = self._network(vectors, training)
        if self.query_vectors is None:
            return score
        inner = torch.einsum("qd,nd->qn" if vectors.ndim == 2 else "qd,qnd->qn", self.query_vectors, vectors)
        return self.spec.skip_scale * inner + self.spec.skip_gate * score

    def _check_vectors(self, vectors: Tensor) -> None:
        if vectors.ndim not in (2, 3) or vectors.shape[-1] != self.spec.input_dim:
            raise ValueError(
                f"expected document vectors of shape (N, {self.spec.input_dim}) or (Q, N, {self.spec.input_dim}), "
                f"found {tuple(vectors.shape)}; was the index built with another model?"
            )
        if vectors.ndim == 3 and len(vectors) != len(self):
            raise ValueError(f"expected a group of documents for each of {len(self)} queries, found {len(vectors)}")

    def _network(self, vectors: Tensor, training: bool) -> Tensor:
        spec = self.spec
        x = vectors
        if spec.normalize_input:
            x = math.sqrt(spec.input_dim) * F.normalize(x, dim=-1)
        activation = ACTIVATIONS[spec.activation_type]
        for layer, bias in enumerate(self.biases):
            y = F.dropout(x, spec.dropout_prob, training=training and spec.do_dropout)
            y = activation(_multiply(y, self.weights[layer]) + bias.unsqueeze(1))  # (Q, N, H)
            if spec.do_layer_norm and spec.layer_norm_before_residual:
                y = F.layer_norm(y, y.shape[-1:])
            if spec.has_residual(layer):
                y = y + x[..., : y.shape[-1]]  # all of x, but for narrowed q-nets
            if spec.do_layer_norm and not spec.layer_norm_before_residual:
                y = F.layer_norm(y, y.shape[-1:])
            x = y
        return _multiply(x, self.weights[-1]).squeeze(-1)


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """(N, I) or (Q, N, I) times (Q, I, O) -> (Q, N, O); documents that queries share are multiplied in one product."""
    return torch.einsum("ni,qio->qno" if x.ndim == 2 else "qni,qio->qno", x, weight)
