"""The configuration of dual encoders: old keys, unknown keys, and options that replace those of a checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from golden_checkpoints import copy_tokenizer

from pyterrier_hypencoder import Hypencoder
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.checkpoint_config import DualEncoderConfig
from pyterrier_hypencoder.encoders.dense_start import from_dense

NAME = "tiny_6l_cls_shared"


def test_old_key_head_start_is_readable_and_written_as_head_init(bert, tmp_path):
    model = from_dense(str(bert), hidden=[8], pooling="mean")
    with torch.no_grad():
        for parameter in model.query_encoder.weight_hyper_projection[-1].parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))  # otherwise the q-nets would be zero
    checkpoint.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["query_encoder_kwargs"]["head_start"] = config["query_encoder_kwargs"].pop("head_init")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "checksums.json").unlink()

    loaded, _ = checkpoint.load(str(tmp_path))
    ids, mask = torch.tensor([[2, 7, 9, 3]]), torch.ones(1, 4, dtype=torch.long)
    vectors = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded.query_encoder(ids, mask).score(vectors), model.query_encoder(ids, mask).score(vectors)
        )
    assert loaded.config.head_init == loaded.query_encoder.head_init == "dense"
    checkpoint.save(loaded, tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())["query_encoder_kwargs"]
    assert written["head_init"] == "dense" and "head_start" not in written


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [({}, "released"), ({"head_start": "dense"}, "dense"), ({"head_start": "released", "head_init": "dense"}, "dense")],
)
def test_head_init_has_a_default_and_takes_precedence_over_the_old_key(kwargs, expected):
    given = {"query_encoder_kwargs": dict(kwargs)}
    config = DualEncoderConfig.from_dict(given)
    assert config.head_init == expected
    assert "head_start" not in config.to_dict()["query_encoder_kwargs"]
    assert given == {"query_encoder_kwargs": kwargs}  # reading does not change its input


def test_unknown_architecture_name_is_recognised_by_its_query_encoder(golden):
    given = json.loads((golden / NAME / "config.json").read_text())
    config = DualEncoderConfig.from_dict(given | {"architectures": ["MatryoshkaHypencoderDualEncoder"]})
    assert config.architecture == "HypencoderDualEncoder"


def test_qnet_options_override_the_checkpoint(golden, sentences, topics, tmp_path):
    edited = tmp_path / "edited"
    checkpoint.save(checkpoint.load(str(golden / NAME))[0], edited)
    config = json.loads((edited / "config.json").read_text())
    config["query_encoder_kwargs"]["converter_kwargs"]["do_residual"] = False
    (edited / "config.json").write_text(json.dumps(config))
    (edited / "checksums.json").unlink()
    copy_tokenizer(edited)
    overridden = Hypencoder(golden / NAME, device="cpu", qnet={"do_residual": False})
    models = [overridden, Hypencoder(edited, device="cpu"), Hypencoder(golden / NAME, device="cpu")]
    assert models[0].qnet_spec == models[1].qnet_spec != models[2].qnet_spec
    vectors = torch.from_numpy(models[2].encode_docs(sentences[:5]))
    by_option, by_file, plain = (model.encode_queries(list(topics["query"])).score(vectors) for model in models)
    torch.testing.assert_close(by_option, by_file)
    assert (by_option - plain).abs().max() > 1e-3
    assert overridden.record()["options"] == {"qnet": {"do_residual": False}}


def test_overridden_qnet_options_are_saved(golden, tmp_path):
    checkpoint.save(checkpoint.load(str(golden / NAME), qnet={"do_residual": False})[0], tmp_path)
    assert Hypencoder(tmp_path).qnet_spec == Hypencoder(golden / NAME, qnet={"do_residual": False}).qnet_spec


@pytest.mark.parametrize("qnet", [{"vector_dimensions": [24, 1]}, {"inner_product_skip": True}, {"residual": False}])
def test_unknown_qnet_options_are_refused(golden, qnet):
    with pytest.raises(ValueError, match=rf"qnet has unknown options: {next(iter(qnet))}\. Known options are .*do_residual"):
        Hypencoder(golden / NAME, qnet=qnet).qnet_spec  # noqa: B018
