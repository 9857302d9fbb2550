"""The networks: text encoder, hyper-head and dual encoders, with the parameter names of the released checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..options import check_choice
from ..qnet import QNets, QNetSpec
from .checkpoint_config import DualEncoderConfig
from .pooling import POOLINGS, pool

HEAD_INITS = ("released", "dense")
_RELEASED_WIDTH = 768  # the released initialisation uses this width for every model


def make_query_projection(width: int) -> nn.Linear:
    """Make the linear layer of ``p + W p + b``, which changes query vectors p. It is zero before training.

    With it, the query side of a dense model can learn while the transformer and all existing indexes stay valid. It is not
    in the paper.
    """
    projection = nn.Linear(width, width)
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


def _finish_vectors(vectors: Tensor, normalize: bool, projection: nn.Linear | None) -> Tensor:
    """Normalise pooled vectors to length 1 and apply the projection, if the encoder has them."""
    vectors = F.normalize(vectors, dim=-1) if normalize else vectors
    return vectors if projection is None else vectors + projection(vectors)


def _encode_tokens(transformer: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the token vectors of texts, (B, T, h)."""
    output = transformer(input_ids=input_ids, attention_mask=attention_mask)
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        raise ValueError(
            f"{type(transformer).__name__} is not supported, because it returns no token vectors (last_hidden_state). Use a "
            "text encoder such as BERT."
        )
    return hidden


class TextEncoder(nn.Module):
    """Encode a text as one vector: documents, and both sides of a bi-encoder.

    Args:
        transformer: Any Hugging Face encoder.
        pooling: See :func:`pyterrier_hypencoder.encoders.pooling.pool`.
        normalize: If True, vectors are scaled to length 1.
        pool_padding: See :func:`pyterrier_hypencoder.encoders.pooling.pool`.
        projection: See :func:`make_query_projection`; None for no projection.
        layers: Layers after the pooling.
        size: Number of dimensions after the last layer; None for the width of the transformer.
        truncate_dim: Number of dimensions to keep; None for all.
        num_skipped: Number of tokens at the start that the pooling leaves out.

    Raises:
        ValueError: If the pooling is unknown.
    """

    transformer: Any

    def __init__(
        self,
        transformer: nn.Module,
        pooling: str = "cls",
        *,
        normalize: bool = False,
        pool_padding: bool = False,
        projection: nn.Linear | None = None,
        layers: Sequence[nn.Module] = (),
        size: int | None = None,
        truncate_dim: int | None = None,
        num_skipped: int = 0,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, POOLINGS)
        self.transformer = transformer
        self.pooling = pooling
        self.normalize = normalize
        self.pool_padding = pool_padding
        self.projection = projection
        self.layers = nn.ModuleList(layers)
        self.size = size
        self.truncate_dim = truncate_dim
        self.num_skipped = num_skipped

    @property
    def vec_size(self) -> int:
        """Number of dimensions of the vectors, D."""
        size = self.transformer.config.hidden_size if self.size is None else self.size
        return size if self.truncate_dim is None else min(size, self.truncate_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode tokens (B, T) as vectors (B, D). Token types are never passed, as in the released code."""
        hidden = _encode_tokens(self.transformer, input_ids, attention_mask)
        vectors = pool(
            hidden, attention_mask, self.pooling, pool_padding=self.pool_padding, num_skipped=self.num_skipped
        ).float()
        for layer in self.layers:
            vectors = layer(vectors)
        return _finish_vectors(vectors[:, : self.truncate_dim], self.normalize, self.projection)


class HyperEncoder(nn.Module):
    """Turn a query into a q-net with a transformer and a hyper-head (paper, sections 3.2 and 3.3).

    Attention is scaled as in the released code, not as in the paper's equation 3: by the square root of the output width of
    the q-net's layer. This width is 1 for biases and for the output layer.

    ``head_init="dense"`` is ours, for q-nets that start from a dense model. It scales attention by the input width, and the
    output layer of the q-net starts at zero. With ``inner_product_skip``, the first scores are then the inner products with
    the encoder's query vector.

    Args:
        transformer: Any Hugging Face encoder.
        spec: Architecture of the q-nets.
        hidden_size: Width of the transformer's output, h.
        embedding_representation: Pooling of :meth:`pool_queries`, ``cls`` or ``mean``; None if the model has no query vector.
        normalize: If True, the query vector is scaled to length 1.
        head_init: ``released`` or ``dense``.
        pool_padding: See :func:`pyterrier_hypencoder.encoders.pooling.pool`.
        projection: Projection of the query vector; see :func:`make_query_projection`.

    Raises:
        ValueError: If the options contradict each other.
    """

    transformer: Any
    weight_hyper_projection: Any
    bias_hyper_projection: Any
    key_projections: Any
    value_projections: Any

    def __init__(
        self,
        transformer: nn.Module,
        spec: QNetSpec,
        hidden_size: int,
        *,
        embedding_representation: str | None = None,
        normalize: bool = False,
        head_init: str = "released",
        pool_padding: bool = False,
        projection: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        check_choice("head_init", head_init, HEAD_INITS)
        if spec.inner_product_skip and embedding_representation is None:
            raise ValueError("inner_product_skip needs embedding_representation ('cls' or 'mean'), got None.")
        if spec.inner_product_skip and spec.input_dim != hidden_size:
            raise ValueError(
                f"inner_product_skip needs query vectors with the {spec.input_dim} dimensions of the document vectors, but "
                f"the query encoder has {hidden_size}."
            )
        self.embedding_representation = embedding_representation
        self.normalize = normalize
        self.head_init = head_init
        self.pool_padding = pool_padding
        self.projection = projection
        self.transformer = transformer
        self.spec = spec
        shapes, sizes = spec.weight_shapes, spec.bias_sizes
        self.hyper_base_matrices = nn.ParameterList(torch.zeros(1, o, i) for i, o in shapes)
        self.hyper_base_vectors = nn.ParameterList(torch.zeros(1, d) for d in sizes)
        self.weight_query_embeddings = nn.ParameterList(torch.zeros(1, o, i) for i, o in shapes)
        self.bias_query_embeddings = nn.ParameterList(torch.zeros(1, 1, d) for d in sizes)
        self.weight_hyper_projection = nn.ModuleList(nn.Linear(i, i) for i, _ in shapes)
        self.bias_hyper_projection = nn.ModuleList(nn.Linear(d, d) for d in sizes)
        widths = [i for i, _ in shapes] + sizes
        self.key_projections = nn.ModuleList(nn.Linear(hidden_size, w) for w in widths)
        self.value_projections = nn.ModuleList(nn.Linear(hidden_size, w) for w in widths)
        self.reset_head()

    @torch.no_grad()
    def reset_head(self) -> None:
        """Initialise the head like the released code, which keeps PyTorch's defaults for the other linear layers."""
        std = 10 if self.head_init == "released" else 1
        for base, query in zip(self.hyper_base_matrices, self.weight_query_embeddings, strict=True):
            base.normal_(0, math.sqrt(2 / _RELEASED_WIDTH))
            query.normal_(0, std)
        for query in self.bias_query_embeddings:
            query.normal_(0, std)
        for projection in self.weight_hyper_projection:
            nn.init.normal_(projection.weight, 0, 1 / _RELEASED_WIDTH**2)
            nn.init.zeros_(projection.bias)
        # The released code only resets the first L + 1 of the 2L + 1 biases, and its checkpoints started from that.
        for k in range(len(self.hyper_base_matrices)):
            nn.init.zeros_(self.key_projections[k].bias)
            nn.init.zeros_(self.value_projections[k].bias)
        if self.head_init == "dense":  # the network starts as zero, and all other parts can learn from the first step
            last = self.weight_hyper_projection[-1]
            for parameter in (self.hyper_base_matrices[-1], last.weight, last.bias):
                nn.init.zeros_(parameter)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> QNets:
        """Turn the tokens of Q queries, (Q, T), into their q-nets. Only padding is masked."""
        return self.generate_qnets(self.encode_tokens(input_ids, attention_mask), attention_mask)

    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the token vectors of the queries, (Q, T, h)."""
        return _encode_tokens(self.transformer, input_ids, attention_mask)

    def pool_queries(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return one vector per query, (Q, h), pooled as ``embedding_representation`` says.

        Args:
            hidden: Token vectors, (Q, T, h).
            mask: 1 for tokens and 0 for padding, (Q, T).

        Raises:
            ValueError: If the configuration has no ``embedding_representation``.
        """
        if self.embedding_representation is None:
            raise ValueError("query_encoder_kwargs has no embedding_representation; set it to 'cls' or 'mean'.")
        vectors = pool(hidden, mask, self.embedding_representation, pool_padding=self.pool_padding).float()
        return _finish_vectors(vectors, self.normalize, self.projection)

    def generate_qnets(self, hidden: Tensor, mask: Tensor) -> QNets:
        """Generate the q-nets of queries from their token vectors.

        Args:
            hidden: Token vectors, (Q, T, h).
            mask: 1 for tokens and 0 for padding, (Q, T).
        """
        n = len(self.hyper_base_matrices)
        weights = [
            self._generate(
                hidden, mask, self.weight_query_embeddings[k], k, self.weight_hyper_projection[k], self.hyper_base_matrices[k]
            ).transpose(1, 2)  # (Q, out, in) -> (Q, in, out)
            for k in range(n)
        ]
        biases = [
            self._generate(
                hidden, mask, self.bias_query_embeddings[j], n + j, self.bias_hyper_projection[j], self.hyper_base_vectors[j]
            ).squeeze(1)
            for j in range(n - 1)
        ]
        query_vectors = self.pool_queries(hidden, mask) if self.spec.inner_product_skip else None
        return QNets(self.spec, weights, biases, query_vectors)

    def _generate(self, hidden: Tensor, mask: Tensor, query: Tensor, k: int, projection: nn.Module, base: Tensor) -> Tensor:
        """Generate one weight or bias, (Q, out, in): attention, ReLU, layer norm, projection, base (equations 2 to 5)."""
        context = F.scaled_dot_product_attention(
            query.expand(len(hidden), -1, -1),
            self.key_projections[k](hidden),
            self.value_projections[k](hidden),
            attn_mask=mask.bool().unsqueeze(1),
            scale=1 / math.sqrt(query.shape[1 if self.head_init == "released" else 2]),
        )
        return projection(F.layer_norm(F.relu(context), context.shape[-1:])) + base


class HypencoderDualEncoder(nn.Module):
    """A :class:`HyperEncoder` for queries and a :class:`TextEncoder` for documents, as in the released models.

    Args:
        config: The configuration.
        query_transformer: Transformer of the query encoder.
        passage_transformer: Transformer of the document encoder; the same object if the encoders share it.
        pool_padding: See :func:`pyterrier_hypencoder.encoders.pooling.pool`.

    Raises:
        ValueError: If the backbone does not fit the configuration.
    """

    query_encoder: Any

    def __init__(
        self,
        config: DualEncoderConfig,
        query_transformer: nn.Module,
        passage_transformer: nn.Module,
        *,
        pool_padding: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.query_encoder = self._make_query_encoder(query_transformer, pool_padding)
        self.passage_encoder = TextEncoder(
            passage_transformer, config.pooling, normalize=config.normalize, pool_padding=pool_padding
        )

    def _make_query_encoder(self, transformer: Any, pool_padding: bool) -> nn.Module:
        kwargs = self.config.query_encoder_kwargs
        hidden_size = transformer.config.hidden_size
        declared = kwargs.get("base_encoder_output_dim", hidden_size)
        if declared != hidden_size:
            raise ValueError(
                f"base_encoder_output_dim is {declared}, but the backbone {kwargs.get('model_name_or_path')!r} has width "
                f"{hidden_size}. Use the backbone that the checkpoint was trained with."
            )
        return HyperEncoder(
            transformer,
            self.config.qnet_spec,
            hidden_size,
            embedding_representation=kwargs.get("embedding_representation"),
            normalize=self.config.normalize,
            head_init=self.config.head_init,
            pool_padding=pool_padding,
            projection=self._make_projection(transformer),
        )

    def _make_projection(self, transformer: Any) -> nn.Linear | None:
        has_projection = self.config.query_encoder_kwargs.get("query_projection", False)
        return make_query_projection(transformer.config.hidden_size) if has_projection else None


class TextDualEncoder(HypencoderDualEncoder):
    """A :class:`TextEncoder` for queries and for documents: the paper's bi-encoder baseline, BE-Base."""

    def _make_query_encoder(self, transformer: Any, pool_padding: bool) -> nn.Module:
        pooling = self.config.query_encoder_kwargs.get("pooling_type") or "cls"
        return TextEncoder(
            transformer,
            pooling,
            normalize=self.config.normalize,
            pool_padding=pool_padding,
            projection=self._make_projection(transformer),
        )
