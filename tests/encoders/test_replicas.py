"""Several devices: they share the batches of documents, and change no vector."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import torch
from golden_checkpoints import make_bi_encoder

from pyterrier_hypencoder import Hypencoder
from pyterrier_hypencoder.encoders.base import Encoder
from pyterrier_hypencoder.encoders.replicas import Replicas, resolve_devices


@pytest.mark.parametrize("devices", [["cpu", "cpu"], ("cpu",), ["cpu"] * 3], ids=str)
def test_several_devices_give_the_same_vectors_and_qnets(golden, model, sentences, devices):
    several = Hypencoder(golden / "tiny_6l_cls_shared", device=devices, doc_max_length=64, batch_size=7)
    one = Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", doc_max_length=64, batch_size=7)
    np.testing.assert_array_equal(several.encode_docs(sentences), one.encode_docs(sentences))
    assert several.encode_queries(["a"]).flatten().equal(one.encode_queries(["a"]).flatten())
    assert pickle.loads(pickle.dumps(several)) == several and several.fingerprint == one.fingerprint
    assert several.text_scorer().device == "cpu"


def test_batches_run_on_all_devices_at_once(bert, sentences, monkeypatch):
    together = threading.Barrier(2, timeout=20)
    run = Encoder._run

    def run_and_wait(self, *args):
        together.wait()  # passes only if two batches run at the same time
        return run(self, *args)

    monkeypatch.setattr(Encoder, "_run", run_and_wait)
    encoder = make_bi_encoder(bert, batch_size=10)
    encoder.device = ["cpu", "cpu"]
    assert encoder.encode_docs(sentences[:40]).shape == (40, 24)


def test_replicas_are_one_copy_per_device():
    network = torch.nn.Linear(2, 2)
    devices = [torch.device("cpu"), torch.device("meta"), torch.device("cpu"), torch.device("meta")]
    networks = Replicas(network, devices).networks
    assert networks[0] is networks[2] is network and networks[1] is networks[3] is not network
    assert networks[1].weight.device.type == "meta"


def test_replicas_pass_errors_on(bert):
    replicas = Replicas(torch.nn.Linear(2, 2), resolve_devices(["cpu", "cpu"]))
    with pytest.raises(ZeroDivisionError):
        list(replicas.map(lambda network, batch: 1 / batch, [1, 0, 1]))


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ([], "at least one device"),
        (["cpu", "tpu"], "got 'tpu'"),
        (["cpu", 1], "got the item 1"),
        (["cuda:99"], "not available"),
    ],
)
def test_invalid_devices_are_refused(bert, device, message):
    encoder = make_bi_encoder(bert)
    encoder.device = device
    with pytest.raises(ValueError, match=message):
        encoder.encode_docs(["a"])
