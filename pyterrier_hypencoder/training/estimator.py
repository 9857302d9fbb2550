"""Training as a stage of a PyTerrier pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from ..encoders.base import Encoder
from ..encoders.columns import TextField, list_text_fields
from ..encoders.loading import load_encoder
from .mining import digest_frame, mine
from .row_sampler import RowSampler
from .trainer import HypencoderTrainer
from .training_rows import TrainingRows
from .validation import Validation


class HypencoderEstimator(pt.Estimator):
    """Train a model on topics and judgements, then re-rank with it.

    There are two ways to use it. Validation works like training: it re-ranks candidates, or indexes and searches ``docs``.

    - As the last stage of a pipeline, ``(bm25 % 100 >> get_text >> estimator).fit(topics, qrels, val_topics, val_qrels)``:
      it learns to tell the relevant candidates of the earlier stages from the others.
    - Alone, with ``docs`` and a ``retriever``: it learns to tell relevant documents from the other results of the retriever.

    Args:
        trainer: Trainer of the model. Training rows are written into its ``output_dir``.
        docs: Documents with docno and text; see :func:`pyterrier_hypencoder.training.mining.mine`. None uses the texts of the
            candidates. Relevant documents that are not among the candidates are then not used.
        retriever: Pipeline that finds negatives for topics without candidates.
        teacher: Pipeline that scores candidates, for distillation.
        negatives_per_query: Maximum number of negatives to write per topic.
        negatives_per_row: Number of negatives to draw whenever a topic is used.
        measures: Measures of ir_measures, or their names. The first one chooses the best checkpoint.
        text_field: Field with the text of a document, or a list of fields.
        resume: If True, continue from the last checkpoint in ``output_dir``.

    Raises:
        TypeError: If ``docs`` are neither documents nor a dataset.

    Example:
        >>> from pyterrier_hypencoder import BiEncoder, HypencoderEstimator, HypencoderTrainer
        >>> trainer = HypencoderTrainer(
        ...     BiEncoder("sentence-transformers/all-MiniLM-L6-v2"), "new-model", losses=["listwise_ce"], scale=20
        ... )
        >>> estimator = HypencoderEstimator(trainer, negatives_per_row=4)
        >>> pipeline = bm25 % 100 >> get_text >> estimator  # doctest: +SKIP
        >>> pipeline.fit(topics, qrels, val_topics, val_qrels)  # doctest: +SKIP
    """

    def __init__(
        self,
        trainer: HypencoderTrainer,
        *,
        docs: Any = None,
        retriever: Any = None,
        teacher: Any = None,
        negatives_per_query: int = 100,
        negatives_per_row: int = 8,
        measures: Sequence[Any] = ("nDCG@10",),
        text_field: TextField = "text",
        resume: bool = False,
    ) -> None:
        super().__init__()
        self.trainer = trainer
        if callable(docs) or isinstance(docs, str | Path):
            raise TypeError(f"docs must be documents or a dataset, got {docs!r:.80}. Pass a list, a generator or a dataset.")
        self.docs = list(docs) if isinstance(docs, Iterator) else docs  # mining and every validation read them
        self.retriever = retriever
        self.teacher = teacher
        self.negatives_per_query = negatives_per_query
        self.negatives_per_row = negatives_per_row
        self.measures = measures
        self.text_field = text_field
        self.resume = resume
        self._model: Encoder | None = None

    def __repr__(self) -> str:
        return f"HypencoderEstimator({self.trainer!r})"

    @property
    def model(self) -> Encoder:
        """Trained model, for example to index with.

        Raises:
            ValueError: If :meth:`fit` was not called.
        """
        if self._model is None:
            raise ValueError("The estimator is not trained yet. Call fit(topics, qrels, ...) first.")
        return self._model

    def fit(
        self,
        topics_or_res_tr: pd.DataFrame,
        qrels_tr: pd.DataFrame,
        topics_or_res_va: pd.DataFrame | None = None,
        qrels_va: pd.DataFrame | None = None,
    ) -> HypencoderEstimator:
        """Train the model, and keep the best checkpoint by validation, or the last one without validation.

        Args:
            topics_or_res_tr: Training topics with qid and query, or their candidates with docno and text as well.
            qrels_tr: Training judgements with qid, docno and label.
            topics_or_res_va: Validation topics or candidates. They are measured every ``eval_steps`` of the trainer's
                arguments, or ten times in the run.
            qrels_va: Validation judgements.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If there are no candidates and ``docs`` or ``retriever`` is missing.
        """
        rows = self._write_rows(topics_or_res_tr, qrels_tr)
        validate = None
        if topics_or_res_va is not None and qrels_va is not None:
            validate = Validation(
                topics_or_res_va,
                qrels_va,
                self.docs,
                measures=self.measures,
                text_field=self.text_field,
                options=self.trainer.encoder_options,
                verbose=self.trainer.verbose,
            )
        best = None if validate is None else str(validate.measures[0])
        folder = self.trainer.fit(rows, validate=validate, best=best, resume=self.resume)
        self._model = load_encoder(str(folder), **self.trainer.encoder_options)
        return self

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score and rank documents by their text with the trained model.

        Args:
            inp: Frame with qid, query, docno and text.

        Raises:
            ValueError: If :meth:`fit` was not called.
        """
        return self.model.text_scorer(text_field=self.text_field)(inp)

    def transform_inputs(self) -> list[list[str]]:
        """Return the columns of candidates with their texts."""
        return [["qid", "docno", "query", *list_text_fields(self.text_field)]]

    def transform_outputs(self, input_columns: list[str]) -> list[str]:
        """Return the columns of re-ranked candidates, which are known before the training."""
        pt.validate.columns(input_columns, includes=self.transform_inputs()[0])
        return [*input_columns, *(name for name in ("score", "rank") if name not in input_columns)]

    def subtransformers(self) -> dict[str, Any]:
        """Return nothing, because the retriever and the teacher take part in the training only."""
        return {}

    def _write_rows(self, given: pd.DataFrame, qrels: pd.DataFrame) -> TrainingRows:
        """Mine training rows from candidates, or from topics with the retriever."""
        topics, docs, retriever, name = given, self.docs, self.retriever, "rows"
        if "docno" in given.columns:
            used = [c for c in given.columns if c in ("qid", "docno", *list_text_fields(self.text_field))]
            name += f"-{digest_frame(given[used])}"  # other candidates get another file
            topics = given[["qid", "query"]].drop_duplicates("qid")
            retriever = pt.Transformer.from_df(given)
            docs = given.drop_duplicates("docno") if docs is None else docs
        elif docs is None or retriever is None:
            raise ValueError(
                "The estimator needs candidates (docno and text) beside the topics, or docs and a retriever. Put it behind a "
                "pipeline that retrieves, or pass docs=... and retriever=..."
            )
        path = mine(
            topics,
            qrels,
            docs,
            retriever,
            path=Path(self.trainer.output_dir) / f"{name}.jsonl.gz",
            negatives_per_query=self.negatives_per_query,
            teacher=self.teacher,
            text_field=self.text_field,
        )
        sampler = RowSampler(
            positive="type", negatives_per_row=self.negatives_per_row, require_scores=self.teacher is not None
        )
        return TrainingRows(path, sampler, on_too_few_items="skip")
