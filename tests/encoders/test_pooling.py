"""Pooling: token vectors to one vector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_checkpoints import make_bi_encoder

from pyterrier_hypencoder.encoders.pooling import POOLINGS, pool


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_bi_encoder_pools_the_transformers_output(bert, sentences, pooling, normalize):
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(str(bert))(sentences[:5], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(str(bert)).eval()(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
    expected = []
    for states, mask in zip(hidden.last_hidden_state, tokens["attention_mask"], strict=True):
        states = states[mask.bool()]
        vector = {"cls": states[0], "mean": states.mean(0), "max": states.max(0).values, "last": states[-1]}[pooling]
        expected.append(vector / vector.norm() if normalize else vector)
    found = make_bi_encoder(bert, pooling=pooling, normalize=normalize).encode_docs(sentences[:5])
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-5)


def test_unknown_pooling_names_the_known_ones():
    with pytest.raises(ValueError, match="cls"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "sum")
