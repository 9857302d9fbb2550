"""The networks: text encoder, hyper-head and the dual encoders, with the parameter names of the released checkpoints."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..qnet import QNets, QNetSpec

POOLINGS = ("cls", "mean", "max", "last")
HEAD_INITS = ("released", "dense")
_RELEASED_WIDTH = 768  # the released initialisation has it written in, whatever the model's width


@dataclass
class DualEncoderConfig:
    """The ``config.json`` of a dual encoder; every key may be absent, unknown ones are kept and written back.

    Args:
        architecture: ``HypencoderDualEncoder``, or ``TextDualEncoder`` for a bi-encoder such as BE-Base.
        query_encoder_kwargs: arguments of the query encoder.
        passage_encoder_kwargs: arguments of the document encoder.
        shared_encoder: whether both use one transformer.
        extra: every other key of the file.
    """

    architecture: str = "HypencoderDualEncoder"
    query_encoder_kwargs: dict[str, Any] = field(default_factory=dict)
    passage_encoder_kwargs: dict[str, Any] = field(default_factory=dict)
    shared_encoder: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> DualEncoderConfig:
        """Reads the parsed ``config.json``."""
        extra = copy.deepcopy(config)
        architecture = (extra.pop("architectures", None) or [cls.architecture])[0]
        query_encoder_kwargs = extra.pop("query_encoder_kwargs", None) or {}
        if architecture not in ARCHITECTURES:  # a fork's own name: what it makes of queries tells
            architecture = "HypencoderDualEncoder" if "converter_kwargs" in query_encoder_kwargs else "TextDualEncoder"
        return cls(
            architecture,
            query_encoder_kwargs,
            extra.pop("passage_encoder_kwargs", None) or {},
            bool(extra.pop("shared_encoder", False)),
            extra,
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as it is written to ``config.json``."""
        return {
            **self.extra,
            "architectures": [self.architecture],
            "query_encoder_kwargs": self.query_encoder_kwargs,
            "passage_encoder_kwargs": self.passage_encoder_kwargs,
            "shared_encoder": self.shared_encoder,
        }

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of the q-nets."""
        return QNetSpec.from_config(self.query_encoder_kwargs.get("converter_kwargs") or {})

    @property
    def head_init(self) -> str:
        """How the hyper-head begins: ``released`` or ``dense``; checkpoints of earlier versions call it ``head_start``."""
        kwargs = self.query_encoder_kwargs
        return kwargs.get("head_init", kwargs.get("head_start", "released"))

    @property
    def pooling(self) -> str:
        """How the document encoder pools; the released default is ``cls``."""
        return self.passage_encoder_kwargs.get("pooling_type") or "cls"

    @property
    def normalize(self) -> bool:
        """Whether document vectors, and the query vectors beside them, have length 1; not so in released models."""
        return bool(self.passage_encoder_kwargs.get("normalize", False))


def pool(hidden: Tensor, mask: Tensor, pooling: str, *, pool_padding: bool = False) -> Tensor:
    """One vector per text from the vectors of its tokens.

    Args:
        hidden: (B, T, D), the transformer's last hidden state.
        mask: (B, T), 1 for tokens and 0 for padding.
        pooling: ``cls`` (first token), ``mean``, ``max`` or ``last`` (token before the padding).
        pool_padding: sum over padding too when taking the mean, as the released code does; the vector then depends on
            how much padding its batch has.

    Returns:
        (B, D).

    Raises:
        ValueError: for an unknown pooling.
    """
    if pooling == "cls":
        return hidden[:, 0]
    attended = mask.unsqueeze(-1).bool()
    if pooling == "mean":
        total = (hidden if pool_padding else hidden.masked_fill(~attended, 0)).sum(1)
        return total / mask.sum(1, keepdim=True).clamp(min=1)
    if pooling == "max":
        return hidden.masked_fill(~attended, -torch.inf).amax(1)
    if pooling == "last":
        positions = torch.arange(mask.shape[1], device=mask.device)
        return hidden[torch.arange(len(hidden), device=mask.device), (mask * positions).argmax(1)]
    raise ValueError(f"pooling: expected one of {POOLINGS}, found {pooling!r}")


def linear_map(width: int) -> nn.Linear:
    """A linear map that an encoder adds to its vectors, W in p + W p + b; it is zero before it is trained.

    It lets the queries of a dense model learn while its transformer, and every index that it made, stay as they are. Not in
    the paper.
    """
    projection = nn.Linear(width, width)
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


def _finish(vectors: Tensor, normalize: bool, projection: nn.Linear | None) -> Tensor:
    """What follows pooling: length 1, then the linear map."""
    vectors = F.normalize(vectors, dim=-1) if normalize else vectors
    return vectors if projection is None else vectors + projection(vectors)


class TextEncoder(nn.Module):
    """A transformer that turns a text into one vector (documents; both sides of a bi-encoder).

    Args:
        transformer: any Hugging Face encoder.
        pooling: see :func:`pool`.
        normalize: whether vectors are scaled to length 1.
        pool_padding: see :func:`pool`.
        projection: see :func:`linear_map`.
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
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {POOLINGS}, found {pooling!r}")
        self.transformer = transformer
        self.pooling = pooling
        self.normalize = normalize
        self.pool_padding = pool_padding
        self.projection = projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encodes tokens (B, T) to vectors (B, D); token types are never given, as in the released code."""
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vectors = pool(hidden, attention_mask, self.pooling, pool_padding=self.pool_padding).float()
        return _finish(vectors, self.normalize, self.projection)


class HyperEncoder(nn.Module):
    """The Hypencoder: a transformer and a hyper-head that turn a query into a q-net (paper, sections 3.2 and 3.3).

    Departs from the paper's equation 3 as the released code does: attention is scaled by the square root of the output
    width of the q-net's layer, so by 1 for biases and the output layer. Two options of ours, for q-nets that start from
    what a dense model knows: ``head_init="dense"`` scales it by the input width and begins with an output layer that is
    zero, so that with ``inner_product_skip`` the first scores are those of the encoder's own pooled query vector.

    Args:
        transformer: any Hugging Face encoder.
        spec: architecture of the q-nets.
        hidden_size: width of the transformer's output, h.
        embedding_representation: how :meth:`embedding` pools, ``cls`` or ``mean``; None where the model has no such vector.
        normalize: whether that vector is scaled to length 1.
        head_init: ``released`` or ``dense``.
        pool_padding: see :func:`pool`.
        projection: of the vector of :meth:`embedding`; see :func:`linear_map`.
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
        if head_init not in HEAD_INITS:
            raise ValueError(f"head_init: expected one of {HEAD_INITS}, found {head_init!r}")
        if spec.inner_product_skip and embedding_representation is None:
            raise ValueError("inner_product_skip: expected embedding_representation to say how queries are pooled, found none")
        if spec.inner_product_skip and spec.input_dim != hidden_size:
            raise ValueError(
                f"inner_product_skip: expected query vectors as wide as the document vectors ({spec.input_dim}), found a "
                f"query encoder of width {hidden_size}"
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
        """The initialisation of the head; what the released code does not name keeps PyTorch's default for linear layers."""
        std = 10 if self.head_init == "released" else 1
        for base, query in zip(self.hyper_base_matrices, self.weight_query_embeddings, strict=True):
            base.normal_(0, math.sqrt(2 / _RELEASED_WIDTH))
            query.normal_(0, std)
        for query in self.bias_query_embeddings:
            query.normal_(0, std)
        for projection in self.weight_hyper_projection:
            nn.init.normal_(projection.weight, 0, 1 / _RELEASED_WIDTH**2)
            nn.init.zeros_(projection.bias)
        # Only the first L + 1 of the 2L + 1: an oversight of the released code that its checkpoints started from.
        for k in range(len(self.hyper_base_matrices)):
            nn.init.zeros_(self.key_projections[k].bias)
            nn.init.zeros_(self.value_projections[k].bias)
        if self.head_init == "dense":  # the network adds nothing yet, and every other part can learn at once
            last = self.weight_hyper_projection[-1]
            for parameter in (self.hyper_base_matrices[-1], last.weight, last.bias):
                nn.init.zeros_(parameter)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> QNets:
        """Turns Q queries, tokens of shape (Q, T), into their q-nets; only padding is masked."""
        return self.qnets(self.hidden(input_ids, attention_mask), attention_mask)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The vectors of the queries' tokens, (Q, T, h)."""
        return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def embedding(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """One vector per query (Q, h), pooled as the configuration's ``embedding_representation`` says.

        Raises:
            ValueError: where the configuration names none.
        """
        if self.embedding_representation is None:
            raise ValueError("embedding_representation: expected 'cls' or 'mean' in query_encoder_kwargs, found none")
        vectors = pool(hidden, mask, self.embedding_representation, pool_padding=self.pool_padding).float()
        return _finish(vectors, self.normalize, self.projection)

    def qnets(self, hidden: Tensor, mask: Tensor) -> QNets:
        """The q-nets of queries from their tokens' vectors.

        Args:
            hidden: (Q, T, h).
            mask: (Q, T).
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
        return QNets(self.spec, weights, biases, self.embedding(hidden, mask) if self.spec.inner_product_skip else None)

    def _generate(self, hidden: Tensor, mask: Tensor, query: Tensor, k: int, projection: nn.Module, base: Tensor) -> Tensor:
        """One weight or bias: attention, ReLU, layer norm, projection, base (equations 2 to 5); (Q, out, in)."""
        context = F.scaled_dot_product_attention(
            query.expand(len(hidden), -1, -1),
            self.key_projections[k](hidden),
            self.value_projections[k](hidden),
            attn_mask=mask.bool().unsqueeze(1),
            scale=1 / math.sqrt(query.shape[1 if self.head_init == "released" else 2]),
        )
        return projection(F.layer_norm(F.relu(context), context.shape[-1:])) + base


class HypencoderDualEncoder(nn.Module):
    """Query side a :class:`HyperEncoder`, document side a :class:`TextEncoder` (the released models).

    Args:
        config: the configuration.
        query_transformer: the query side's transformer.
        passage_transformer: the document side's; the same object where the encoder is shared.
        pool_padding: see :func:`pool`.
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
        self.query_encoder = self._query_encoder(query_transformer, pool_padding)
        self.passage_encoder = TextEncoder(
            passage_transformer, config.pooling, normalize=config.normalize, pool_padding=pool_padding
        )

    def _query_encoder(self, transformer: Any, pool_padding: bool) -> nn.Module:
        kwargs = self.config.query_encoder_kwargs
        hidden_size = transformer.config.hidden_size
        declared = kwargs.get("base_encoder_output_dim", hidden_size)
        if declared != hidden_size:
            raise ValueError(
                f"base_encoder_output_dim: expected the backbone's width {hidden_size}, found {declared}; is "
                f"{kwargs.get('model_name_or_path')!r} the backbone that the checkpoint was trained with?"
            )
        return HyperEncoder(
            transformer,
            self.config.qnet_spec,
            hidden_size,
            embedding_representation=kwargs.get("embedding_representation"),
            normalize=self.config.normalize,
            head_init=self.config.head_init,
            pool_padding=pool_padding,
            projection=self._projection(transformer),
        )

    def _projection(self, transformer: Any) -> nn.Linear | None:
        wanted = self.config.query_encoder_kwargs.get("query_projection", False)
        return linear_map(transformer.config.hidden_size) if wanted else None


class TextDualEncoder(HypencoderDualEncoder):
    """Both sides a :class:`TextEncoder`: the paper's bi-encoder baseline, BE-Base."""

    def _query_encoder(self, transformer: Any, pool_padding: bool) -> nn.Module:
        pooling = self.config.query_encoder_kwargs.get("pooling_type") or "cls"
        return TextEncoder(
            transformer,
            pooling,
            normalize=self.config.normalize,
            pool_padding=pool_padding,
            projection=self._projection(transformer),
        )


ARCHITECTURES: dict[str, type[HypencoderDualEncoder]] = {
    "HypencoderDualEncoder": HypencoderDualEncoder,
    "TextDualEncoder": TextDualEncoder,
}
