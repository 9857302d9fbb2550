"""Option names: errors that name the right option."""

from __future__ import annotations

import inspect

import pytest

from pyterrier_hypencoder import (
    BiEncoder,
    Hypencoder,
    HypencoderIndex,
    HypencoderIndexer,
    HypencoderRetriever,
    HypencoderScorer,
    HypencoderTrainer,
)
from pyterrier_hypencoder.options import check_option_names


@pytest.mark.parametrize(
    ("make", "wrong", "right"),
    [
        (HypencoderRetriever, "k", "num_results"),
        (HypencoderRetriever, "top_k", "num_results"),
        (HypencoderRetriever, "algoritm", "algorithm"),
        (HypencoderRetriever, "exclude", "excluded_docnos"),
        (HypencoderRetriever, "num_result", "num_results"),
        (HypencoderIndexer, "k", "graph_k"),
        (HypencoderIndexer, "overwrite", "mode"),
        (HypencoderIndexer, "precision", "dtype"),
        (HypencoderScorer, "batchsize", "batch_size"),
        (HypencoderTrainer, "lr", "learning_rate"),
        (HypencoderTrainer, "num_train_epochs", "epochs"),
        (BiEncoder, "prefix", "query_prefix"),
        (Hypencoder, "max_length", "doc_max_length"),
    ],
)
def test_unknown_option_names_the_right_one(make, wrong, right):
    with pytest.raises(TypeError, match=f"^{make.__name__} has no option '{wrong}'. Did you mean {right}\\?$"):
        make(**{wrong: 5})


def test_unknown_option_that_is_like_none_lists_all():
    with pytest.raises(TypeError, match="HypencoderScorer has no option 'zzz'. Its options are index, model, text_field, "):
        HypencoderScorer(zzz=1)


def test_factories_name_the_right_option():
    index = HypencoderIndex.example()
    with pytest.raises(TypeError, match="HypencoderRetriever has no option 'k'. Did you mean num_results?"):
        index.retriever(k=10)
    with pytest.raises(TypeError, match="HypencoderIndexer has no option 'fp16'. Did you mean dtype?"):
        index.indexer(fp16=True)
    with pytest.raises(TypeError, match="VectorFeedback has no option 'fb_docs'. Did you mean k?"):
        index.prf(fb_docs=3)
    with pytest.raises(TypeError, match="LadrProactive has no option 'num_result'. Did you mean num_results?"):
        index.ladr_proactive(num_result=3)


def test_decorated_constructor_keeps_its_signature_and_checks_arguments():
    class Thing:
        @check_option_names
        def __init__(self, size: int, *, colour: str = "red") -> None:
            """Make a thing."""
            self.size = size

    assert str(inspect.signature(Thing)) == "(size: 'int', *, colour: 'str' = 'red') -> 'None'"
    assert Thing.__init__.__doc__ == "Make a thing." and Thing(3).size == 3
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Thing()
