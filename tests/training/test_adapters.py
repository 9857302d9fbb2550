"""LoRA adapters: they are trained, saved merged, and resumed."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny_training import assert_equal_weights, list_changed, make_batch, make_rows, make_trainer, read_weights, train

from pyterrier_hypencoder import Hypencoder
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.training.collator import Collator

pytest.importorskip("peft")

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]}
OPTIONS = {
    "lora": LORA,
    "losses": ["listwise_ce"],
    "batch_size": 4,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "arguments": {"save_steps": 2},
}


def test_lora_trains_adapters_saves_a_plain_model_and_resumes(untrained, checkpoint_dir, rows_file, tmp_path):
    out = tmp_path / "out"
    trainer = make_trainer(out, untrained, **OPTIONS)
    folder = trainer.fit(make_rows(rows_file), Collator(trainer.tokenizer))
    before, after = read_weights(checkpoint_dir), read_weights(folder)
    changed = {name for name in list_changed(before, after) if "transformer." in name}
    assert before.keys() == after.keys()
    assert changed and all(name.endswith((".query.weight", ".value.weight")) for name in changed)
    assert any("passage_encoder" in name for name in changed)

    batch = make_batch(rows_file)
    with torch.inference_mode():
        expected = trainer.objective.eval().encoder.passage_encoder(batch["item_ids"], batch["item_mask"])
        loaded, _ = checkpoint.load(str(folder))
        found = loaded.passage_encoder(batch["item_ids"], batch["item_mask"])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    for name in ("checkpoint-4", "model"):  # as after a crash between steps 2 and 4
        shutil.rmtree(out / name)
    assert_equal_weights(after, read_weights(train(out, rows_file, untrained, resume=True, **OPTIONS)))
    with pytest.raises(ValueError, match=r"another model or run: .*lora\.r=2 \(now 4\)"):
        train(out, rows_file, untrained, resume=True, **OPTIONS | {"lora": LORA | {"r": 4}, "max_steps": 9})


def test_resume_with_other_frozen_weights_raises(untrained, checkpoint_dir, tokenizer, rows_file, tmp_path):
    train(tmp_path / "out", rows_file, untrained, **OPTIONS | {"max_steps": 1})
    other, _ = checkpoint.load(str(checkpoint_dir))
    torch.nn.init.zeros_(other.query_encoder.transformer.embeddings.word_embeddings.weight)
    checkpoint.save(other, tmp_path / "other", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="another model or run: .*frozen_weights="):
        train(tmp_path / "out", rows_file, Hypencoder(tmp_path / "other", device="cpu"), resume=True, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "lora must give adapters that can be merged .*got use_dora"),
        ({"modules_to_save": ["dense"]}, "got modules_to_save"),
    ],
)
def test_adapters_that_cannot_be_merged_raise(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, lora=LORA | options)


def test_model_with_adapters_cannot_be_trained_again(checkpoint_dir, tmp_path):
    encoder, _ = checkpoint.load(str(checkpoint_dir))
    make_trainer(tmp_path, encoder, lora=LORA)
    with pytest.raises(ValueError, match="Load its checkpoint"):
        make_trainer(tmp_path, encoder)
