"""Measure encoding and training on a GPU with BERT-base and random weights; a part of ``gpu.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyterrier_hypencoder import QNetSpec
from pyterrier_hypencoder.encoders.networks import HyperEncoder, TextEncoder
from pyterrier_hypencoder.training.losses import margin_mse

QUERY_TOKENS, DOCUMENT_TOKENS = 12, 128


def make_transformer(sizes: Any) -> nn.Module:
    """Make BERT-base with random weights, or a tiny one."""
    from transformers import BertConfig, BertModel

    if not sizes.tiny:
        return BertModel(BertConfig(), add_pooling_layer=False)
    small = BertConfig(
        hidden_size=sizes.dimensions, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99
    )
    return BertModel(small, add_pooling_layer=False)


def make_tokens(rows: int, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Make random tokens and their mask, (B, T)."""
    tokens = torch.randint(1, 99, (rows, length), device=device)
    return tokens, torch.ones_like(tokens)


def make_encoders(sizes: Any, device: torch.device) -> tuple[HyperEncoder, TextEncoder]:
    """Make a query encoder with six-layer q-nets, and a document encoder."""
    spec = QNetSpec((*[sizes.dimensions] * (sizes.layers + 1), 1))
    queries = HyperEncoder(make_transformer(sizes), spec, sizes.dimensions)
    return queries.to(device), TextEncoder(make_transformer(sizes)).to(device)


def measure_encoding(clock: Any, sizes: Any) -> None:
    """Measure q-nets per second and documents per second, in fp32 and with bf16 autocast."""
    if clock.is_over("encoding", 15):
        return
    queries, documents = (encoder.eval() for encoder in make_encoders(sizes, clock.device))
    batches = [("queries", queries, QUERY_TOKENS, batch) for batch in (1, 32)]
    batches += [("documents", documents, DOCUMENT_TOKENS, 8 if sizes.tiny else 256)]
    for precision in ("fp32", "bf16"):
        for kind, encoder, length, batch in batches:
            tokens = make_tokens(batch, length, clock.device)
            with torch.inference_mode(), torch.autocast(clock.device.type, torch.bfloat16, enabled=precision == "bf16"):
                seconds = clock.measure(lambda encoder=encoder, tokens=tokens: encoder(*tokens), sizes.repeat)
            clock.add(
                "encoding", what=kind, precision=precision, batch=batch, tokens=length, ms_each=f"{1e3 * seconds / batch:.3f}"
            )


def measure_training(clock: Any, sizes: Any) -> None:
    """Measure training steps: 64 queries with 8 documents each, margin MSE, AdamW."""
    rows, items = (2, 3) if sizes.tiny else (64, 8)
    for precision in ("fp32", "bf16"):
        if clock.is_over(f"training in {precision}", 20):
            continue
        queries, documents = make_encoders(sizes, clock.device)
        optimizer = torch.optim.AdamW([*queries.parameters(), *documents.parameters()], 1e-5)
        query, document = make_tokens(rows, QUERY_TOKENS, clock.device), make_tokens(rows * items, 64, clock.device)
        teacher = torch.randn(rows, items, device=clock.device)

        def step() -> None:
            with torch.autocast(clock.device.type, torch.bfloat16, enabled=precision == "bf16"):  # noqa: B023
                qnets = queries(*query)  # noqa: B023
                vectors = documents(*document).unflatten(0, (rows, items))  # noqa: B023
                scores = qnets.score(vectors, training=True)
            margin_mse(scores.float(), teacher).backward()  # noqa: B023
            optimizer.step()  # noqa: B023
            optimizer.zero_grad()  # noqa: B023

        seconds = clock.measure(step, sizes.repeat)
        clock.add("training", precision=precision, queries=rows, documents_each=items, seconds_per_step=f"{seconds:.4f}")
