"""NumScored and NumRounds: the cost of a search as measures."""

from __future__ import annotations

import ir_measures
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier.measures import nDCG

from pyterrier_hypencoder import NumRounds, NumScored


@pytest.fixture(scope="module")
def qrels(topics):
    """Return one relevant document per query."""
    return pd.DataFrame({"qid": topics["qid"], "docno": "d001", "label": 1})


def test_num_scored_and_num_rounds_are_measures_of_an_experiment(index, model, topics, qrels):
    systems = [index.retriever(model, algorithm=name, return_stats=True) for name in ("exhaustive", "surrogate")]
    table = pt.Experiment(systems, topics, qrels, [nDCG @ 10, NumScored, NumRounds], names=["all", "some"])
    assert table["NumScored"].tolist()[0] == 120.0 and table["NumRounds"].tolist()[0] == 1.0
    assert table["NumScored"].tolist()[1] <= 240


def test_systems_without_statistics_have_nan_and_a_warning_that_names_the_option(index, model, topics, qrels):
    systems = [index.retriever(model), index.retriever(model, return_stats=True)]
    with pytest.warns(UserWarning, match="NumScored is NaN for a system without the column n_scored. .* return_stats=True"):
        table = pt.Experiment(systems, topics, qrels, [NumScored, NumRounds], names=["without", "with"], validate="ignore")
    assert table["NumScored"].isna().tolist() == [True, False]
    assert table["NumRounds"].isna().tolist() == [True, False]


def test_queries_without_results_cost_nothing(index, model, topics, qrels):
    """Two of five queries return something, so their costs count two fifths."""
    allowed = pd.Series([["d001", "d002"], [], [], ["d003"], []], dtype=object)
    system = index.retriever(model, return_stats=True, batch_size=1)
    table = pt.Experiment([system], topics.assign(allowed_docnos=allowed), qrels, [NumScored, NumRounds])
    assert table["NumScored"].tolist() == [3 / 5] and table["NumRounds"].tolist() == [2 / 5]


def test_measures_are_named_like_their_public_names():
    assert (str(NumScored), str(NumRounds)) == ("NumScored", "NumRounds")
    assert isinstance(NumScored, ir_measures.measures.Measure)
