"""Check fresh scores: NaN and infinity have no place in a ranking, so they are errors."""

from __future__ import annotations

from torch import Tensor

from ..qnet import QNets


class NonFiniteScoreError(ValueError):
    """Raised for a score that is NaN or infinite.

    Attributes:
        query: Position of the query in the batch.
        docid: Docid of the document, or its position if it has no docid.
        vector_is_finite: If False, the vector of the document contains NaN or infinity. If True, the q-net is at fault.

    Example:
        >>> print(NonFiniteScoreError(query=0, docid=7, vector_is_finite=True).explain("'q1'", "'d7'"))
        The score of document 'd7' for query 'q1' is NaN or infinite, because the q-net contains NaN, infinity or too large \
values. Check the model.
    """

    def __init__(self, query: int, docid: int, vector_is_finite: bool) -> None:
        self.query = query
        self.docid = docid
        self.vector_is_finite = vector_is_finite
        super().__init__(self.explain(str(query), str(docid)))

    def __reduce__(self) -> tuple[type, tuple[int, int, bool]]:
        return type(self), (self.query, self.docid, self.vector_is_finite)

    def explain(self, query: str, document: str, qnets: QNets | None = None) -> str:
        """Return the error message.

        Args:
            query: Name of the query.
            document: Name of the document.
            qnets: The q-nets of the batch, which tell a damaged q-net from one with too large values; None if unknown.
        """
        if not self.vector_is_finite:
            cause = "the vector of the document contains NaN or infinity. Encode the document again"
        elif qnets is None:
            cause = "the q-net contains NaN, infinity or too large values. Check the model"
        elif bool(qnets.select([self.query]).flatten().isfinite().all()):
            cause = "the values of the q-net or of the vector are too large for float32. Scale them down"
        else:
            cause = "the q-net of the query contains NaN or infinity. Check the weights of the model, or query_vec"
        return f"The score of document {document} for query {query} is NaN or infinite, because {cause}."


def check_finite(scores: Tensor, vectors: Tensor, docids: Tensor | None = None, queries: Tensor | None = None) -> None:
    """Check that all fresh scores are finite.

    The sum of all scores is finite if they are, unless it overflows. So it is the only cost of the usual case.

    Args:
        scores: Scores of documents that all queries share, (Q, n), or of one query per document, (n,).
        vectors: The vectors that were scored, (n, D).
        docids: Docids of the documents, (n,); None for their positions.
        queries: The query of every document, (n,), if the scores have one dimension.

    Raises:
        NonFiniteScoreError: If a score is NaN or infinite. The first document with a damaged vector is named, if there is one.
    """
    if bool(scores.sum().isfinite()):
        return
    places = (~scores.isfinite()).nonzero().cpu()
    if not len(places):
        return  # the sum overflowed
    rows = places[:, -1]
    damaged = (~vectors[rows.to(vectors.device)].isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    first = damaged[0] if damaged else 0
    row = int(rows[first])
    query = int(places[first, 0]) if queries is None else int(queries[row])
    raise NonFiniteScoreError(query, row if docids is None else int(docids[row]), not damaged)
