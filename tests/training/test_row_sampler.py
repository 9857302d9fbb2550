"""Sample positives and negatives from rows."""

from __future__ import annotations

from collections import Counter

import pytest
from example_rows import drop_key, make_row, sample, write_rows

from pyterrier_hypencoder.training.row_sampler import RowSampler, TooFewItemsError
from pyterrier_hypencoder.training.training_rows import TrainingRows


@pytest.mark.parametrize(
    ("options", "positives"),
    [
        ({"positive": "first"}, {0}),
        ({"positive": "type"}, {0, 1}),
        ({"positive": "type", "positive_type": "negative", "negatives_per_row": 2}, set(range(2, 12))),
        ({"positive": "score_above", "threshold": -2.5}, {0, 1, 2, 3}),
        ({"positive": "top"}, {3}),
    ],
)
def test_sample_has_one_positive_first_and_no_document_twice(options, positives):
    row, seen = make_row(7), Counter()
    for seed in range(200):
        sampled = sample(row, seed, **options)
        numbers = [int(name.removeprefix("q7d")) for name in sampled["item_ids"]]
        assert numbers[0] in positives and not positives & set(numbers[1:])
        assert len(set(numbers)) == len(numbers) == 1 + options.get("negatives_per_row", 8)
        assert sampled["items"] == [f"document {i} of 7" for i in numbers]
        assert sampled["scores"] == [row["items"][i]["score"] for i in numbers]
        seen.update(numbers)
    assert set(seen) >= positives
    assert set(seen) == set(range(12))


def test_documents_listed_twice_are_sampled_once():
    row = make_row(0, items=5)
    row["items"] += [dict(row["items"][0]), dict(row["items"][2])]
    for seed in range(30):
        assert len(set(sample(row, seed, negatives_per_row=4)["item_ids"])) == 5
    with pytest.raises(TooFewItemsError, match="at least 5 items"):
        sample(row, negatives_per_row=5)


def test_content_option_chooses_text_or_tokens():
    row = make_row(0)
    assert sample(row, content="tokens")["query"] == [2, 5, 3]
    assert sample(row, content="text")["items"][0] == "document 0 of 0"
    assert sample(row, item_texts=False)["items"] is None
    empty = make_row(0, query={"content": ""})
    assert sample(empty)["query"] == "" and sample(empty)["query_id"] is None


@pytest.mark.parametrize("missing", ["tokenized_content", "content", "id", "type", "score"])
def test_optional_keys_can_be_missing(tmp_path, missing):
    path = write_rows(tmp_path / "rows.jsonl", [drop_key(make_row(n), missing) for n in range(3)])
    row = next(iter(TrainingRows(path, RowSampler(negatives_per_row=2), shuffle_buffer=0)))
    assert row["query"] == ([2, 5, 3] if missing == "content" else "query 0")
    assert row["items"][0] == ([2, 5, 5, 3] if missing == "content" else "document 0 of 0")
    assert (row["scores"] is None) == (missing == "score")
    assert row["item_ids"][0] == (None if missing == "id" else "q0d0")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"positive": "type", "positive_type": "gold"}, "none of the 12 items is a positive of type 'gold'"),
        ({"positive": "score_above", "threshold": 99.0}, "none of the 12 items is a positive with a score above 99.0"),
        ({"negatives_per_row": 12}, "negatives_per_row=12 needs at least 12 items besides the positive, got 11"),
    ],
)
def test_too_few_items_error_names_file_row_and_query(tmp_path, options, found):
    path = write_rows(tmp_path / "rows.jsonl", [make_row(5)])
    with pytest.raises(TooFewItemsError, match=f"rows.jsonl, row 1, query 'q5': {found}"):
        list(TrainingRows(path, RowSampler(**options)))


@pytest.mark.parametrize("options", [{"require_scores": True}, {"positive": "top"}, {"positive": "score_above"}])
def test_missing_scores_raise_if_they_are_needed(tmp_path, options):
    row = make_row(5)
    del row["items"][4]["score"]
    path = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match="row 1, query 'q5': item 4 has no teacher score") as caught:
        list(TrainingRows(path, RowSampler(**options), on_too_few_items="skip"))
    assert not isinstance(caught.value, TooFewItemsError)
    assert len(list(TrainingRows(path, RowSampler()))) == 1


@pytest.mark.parametrize("options", [{"positive": "last"}, {"content": "words"}, {"negatives_per_row": -1}])
def test_invalid_options_raise(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        RowSampler(**options)


@pytest.mark.parametrize("options", [{"positive_type": "gold"}, {"positive": "type", "threshold": 1.0}], ids=str)
def test_options_without_effect_are_refused(options):
    with pytest.raises(ValueError, match="has no effect with positive="):
        RowSampler(**options)


@pytest.mark.parametrize("threshold", [float("nan"), "1", None, True])
def test_threshold_must_be_a_number(threshold):
    with pytest.raises(ValueError, match="threshold must be a finite number"):
        RowSampler(positive="score_above", threshold=threshold)
