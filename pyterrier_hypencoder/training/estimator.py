"""The estimator: training as a stage of a PyTerrier pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from ..encoders.base import Encoder
from ..encoders.columns import TextField, list_text_fields
from ..encoders.loading import load_encoder
from .data import RowSampler, TrainingRows
from .mining import digest, mine
from .trainer import HypencoderTrainer
from .validation import Validation


class HypencoderEstimator(pt.Estimator):
    """Trains a model on topics and judgements, then re-ranks with it.

    As the last stage of a pipeline, ``(bm25 % 100 >> get_text >> estimator).fit(topics, qrels, val_topics, val_qrels)``, it
    learns from the candidates that the stages before it found: relevant ones against the others. Alone, given ``docs`` and a
    ``retriever``, it learns from topics, relevant documents, and what the retriever finds besides them. Validation goes the
    same way: candidates are re-ranked, or ``docs`` indexed and searched.

    Args:
        trainer: the trainer; training rows are written into its ``output_dir``.
        docs: documents with docno and text; see :func:`pyterrier_hypencoder.training.mining.mine`. None takes the texts of the
            candidates, so that relevant documents which were not found are not learnt from.
        retriever: pipeline that finds negatives for topics that bring no candidates.
        teacher: pipeline that scores candidates, for distillation.
        negatives: negatives of a topic that are written, and at most sampled.
        sampled: negatives that are sampled for a row.
        measures: of ir_measures; the first one chooses the best checkpoint.
        text_field: the field with a document's text, or several.
        resume: go on from the last checkpoint in ``output_dir``.
    """

    def __init__(
        self,
        trainer: HypencoderTrainer,
        *,
        docs: Any = None,
        retriever: Any = None,
        teacher: Any = None,
        negatives: int = 100,
        sampled: int = 8,
        measures: Sequence[Any] = ("nDCG@10",),
        text_field: TextField = "text",
        resume: bool = False,
    ) -> None:
        super().__init__()
        self.trainer = trainer
        self.docs = docs
        self.retriever = retriever
        self.teacher = teacher
        self.negatives = negatives
        self.sampled = sampled
        self.measures = measures
        self.text_field = text_field
        self.resume = resume
        self._model: Encoder | None = None

    @property
    def model(self) -> Encoder:
        """The trained model, to index with for example.

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        if self._model is None:
            raise RuntimeError("expected a trained model, found none yet; call fit(topics, qrels, ...) first")
        return self._model

    def fit(
        self,
        topics_or_res_tr: pd.DataFrame,
        qrels_tr: pd.DataFrame,
        topics_or_res_va: pd.DataFrame | None = None,
        qrels_va: pd.DataFrame | None = None,
    ) -> HypencoderEstimator:
        """Trains; with validation topics and judgements the best checkpoint is kept, else the last.

        Args:
            topics_or_res_tr: qid and query, perhaps with candidates: docno and text.
            qrels_tr: qid, docno, label.
            topics_or_res_va: the same to validate on, every ``eval_steps`` of the trainer's arguments, or ten times in all.
            qrels_va: its judgements.

        Returns:
            Itself.

        Raises:
            ValueError: where documents or a retriever are missing; and as the trainer's ``fit``.
        """
        rows = self._rows(topics_or_res_tr, qrels_tr)
        validate = None
        if topics_or_res_va is not None and qrels_va is not None:
            validate = Validation(
                topics_or_res_va,
                qrels_va,
                self.docs,
                measures=self.measures,
                text_field=self.text_field,
                options=self.trainer.encoder_options,
            )
        best = None if validate is None else str(validate.measures[0])
        folder = self.trainer.fit(rows, validate=validate, best=best, resume=self.resume)
        self._model = load_encoder(str(folder), **self.trainer.encoder_options)
        return self

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Scores and ranks documents by their text with the trained model; needs qid, query, docno and text."""
        return self.model.text_scorer(text_field=self.text_field)(inp)

    def _rows(self, given: pd.DataFrame, qrels: pd.DataFrame) -> TrainingRows:
        topics, docs, retriever, name = given, self.docs, self.retriever, "rows"
        if "docno" in given.columns:
            name += (
                f"-{digest(given[[c for c in given.columns if c in ('qid', 'docno', *list_text_fields(self.text_field))]])}"
            )
            topics = given[["qid", "query"]].drop_duplicates("qid")
            retriever = pt.Transformer.from_df(given)
            docs = given.drop_duplicates("docno") if docs is None else docs
        elif docs is None or retriever is None:
            raise ValueError(
                "expected candidates (docno and text) beside the topics, or an estimator with docs and a retriever, found "
                "neither; put it behind a pipeline that retrieves, or pass docs=... and retriever=..."
            )
        path = mine(
            topics,
            qrels,
            docs,
            retriever,
            path=Path(self.trainer.output_dir) / f"{name}.jsonl.gz",
            negatives=self.negatives,
            teacher=self.teacher,
            text_field=self.text_field,
        )
        sampler = RowSampler(positive="type", negatives=self.sampled, require_scores=self.teacher is not None)
        return TrainingRows(path, sampler, on_too_few_items="skip")
