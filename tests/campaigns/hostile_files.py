"""Files that were made to do harm: in an index, and in a checkpoint."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from indexes import edit_meta
from indexing import build, make_vectors
from small_checkpoints import encode, save

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.index.checksums import make_table

MARK = "code-ran"
"""Name of the file that code leaves in the working directory if it runs."""
TOPICS = pd.DataFrame({"qid": ["1"], "query_vec": [np.ones(8)], "docno": ["d1"]})
GRAPH_K = 5
_AUTO_MAP = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
_GIANT = 10 * 2**30

Damage = Callable[[Path], Any]


class Bomb:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(MARK),)


def _write(file: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def _make_giant(file: str, start: str = "{") -> Damage:
    """Make a file of 10 GiB that takes no space on the disk."""

    def damage(folder: Path) -> None:
        with open(folder / file, "wb") as out:
            out.write(start.encode())
            out.truncate(_GIANT)

    return damage


def _edit(file: str, *keys: Any, value: Any) -> Damage:
    """Set a value in a JSON file; the keys lead to it."""

    def damage(folder: Path) -> None:
        document = json.loads((folder / file).read_text())
        place = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / file).write_text(json.dumps(document))

    return damage


def _plant_code(*damages: Damage) -> Damage:
    """Put code beside the files, and do further damage."""

    def damage(folder: Path) -> None:
        code = (
            f"open({MARK!r}, 'w').write('x')\nfrom transformers import BertConfig as C, BertModel as M, BertTokenizerFast as T"
        )
        (folder / "evil.py").write_text(code)
        for further in damages:
            further(folder)

    return damage


# Indexes


def _make_sparse_index(folder: Path) -> None:
    """State a billion documents, with a vector file of the right size that has no content."""
    edit_meta(folder, doc_count=10**9, checksums="gone")
    with open(folder / "vecs.f2", "wb") as out:
        out.truncate(10**9 * 8 * 2)


def _name_model(folder: Path, **changes: Any) -> None:
    model = folder.parent / "model"
    save("sentence-transformers", model)
    _plant_code(_edit("config.json", "auto_map", value=_AUTO_MAP))(model)
    record = {"class": "BiEncoder", "name": str(model), "revision": None, "options": {}, "fingerprint": None}
    edit_meta(folder, model={**record, **changes})


def _pickle_docids(folder: Path) -> None:
    """Store a pickle in place of an array, with a checksum that matches."""
    np.save(folder / "inner_product.docids.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    facts = json.loads((folder / "inner_product.json").read_text())
    facts["checksums"] = make_table(folder, list(facts["checksums"]["files"]))
    (folder / "inner_product.json").write_text(json.dumps(facts))


def _edit_meta(**changes: Any) -> Damage:
    return lambda folder: edit_meta(folder, **changes)


def _edit_graph(**changes: Any) -> Damage:
    return lambda folder: edit_meta(folder / f"corpusgraph_k{GRAPH_K}", **changes)


INDEX_DAMAGES: dict[str, Damage] = {
    **{f"doc_count {n:.0e}": _edit_meta(doc_count=n) for n in (10**9, 10**18, 2**63, 10**40)},
    **{f"vec_size {n:.0e}": _edit_meta(vec_size=n) for n in (10**9, 2**62, 10**40)},
    **{f"graph k {n:.0e}": _edit_graph(k=n) for n in (10**9, 2**62, 10**40)},
    "a billion documents in a sparse file": _make_sparse_index,
    "dtype leads elsewhere": _edit_meta(dtype="f2/../../../../etc/passwd"),
    "checksums of other sizes": _edit_meta(checksums={"algorithm": "xxh3_64", "block_bytes": 0, "files": {}}),
    "checksums of nothing": _edit_meta(checksums={"algorithm": "xxh3_64", "block_bytes": 2**16, "files": []}),
    "giant metadata": _make_giant("pt_meta.json"),
    "deep metadata": _write("pt_meta.json", "[" * 10**6),
    "deep metadata, closed": _write("pt_meta.json", '{"a":' * 10**6 + "1" + "}" * 10**6),
    "number of a million digits": _write("pt_meta.json", '{"doc_count": ' + "9" * 10**6 + "}"),
    "giant docnos": _make_giant("docnos.npids", "x"),
    "giant checksums": _make_giant("checksums.vecs.f2.u8"),
    "giant graph": _make_giant(f"corpusgraph_k{GRAPH_K}/edges.u32.np"),
    "pickle as an array": _pickle_docids,
    "model with code": _name_model,
    "model with code that is trusted": lambda folder: _name_model(folder, options={"trust_remote_code": True}),
    "model of another class": lambda folder: _name_model(folder, **{"class": "os.system"}),
    "model with unknown options": lambda folder: _name_model(folder, options={"device": "cuda:0\0", "eval": "exit()"}),
    "model whose name is a list": lambda folder: _name_model(folder, name=["x"]),
}
"""Damages of an index, whose checksums were removed or computed again, because everybody can do that."""


def build_index(path: Path) -> None:
    """Build an index with a neighbour graph and an inner-product index."""
    build(path, make_vectors(200, 8), graph_k=GRAPH_K)
    HypencoderIndex(path).inner_product_index()


def use_index(path: Path) -> None:
    """Open and verify an index, search it in every way, and load its model."""
    index = HypencoderIndex(path, verify=True)
    queries = TOPICS[["qid", "query_vec"]]
    for options in ({}, {"algorithm": "graph", "graph_k": GRAPH_K, "initial_candidates": 9}, {"algorithm": "surrogate"}):
        index.retriever(num_results=5, device="cpu", **options)(queries)
    index.scorer(device="cpu")(TOPICS)
    if index.meta["model"] is not None:
        index.retriever(device="cpu").search("text")


# Checkpoints


def _write_safetensors(header: bytes, length: int | None = None) -> Damage:
    return _write("model.safetensors", struct.pack("<Q", len(header) if length is None else length) + header)


def _make_zip_bomb(folder: Path) -> None:
    """Store 512 MiB of zeros in a weight file of some hundred KB."""
    whole = io.BytesIO()
    torch.save({"embeddings.word_embeddings.weight": torch.zeros(2**27)}, whole)
    (folder / "model.safetensors").unlink()
    bomb = zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with zipfile.ZipFile(whole) as source, bomb:
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))


def _pickle_weights(protocol: int, **options: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with open(folder / "pytorch_model.bin", "wb") as out:
            if options:
                torch.save({"a": Bomb()}, out, **options)
            else:
                pickle.dump({"a": Bomb()}, out, protocol=protocol)

    return damage


def _name_shards(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
        index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": name.format(folder.parent)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def _trap_backbone(folder: Path) -> None:
    backbone = folder / "backbone"
    backbone.mkdir()
    _plant_code(_write("config.json", json.dumps({"model_type": "evil", "auto_map": _AUTO_MAP})))(backbone)
    document = json.loads((folder / "config.json").read_text())
    document.pop("backbone_configs", None)
    for side in ("query", "passage"):
        document[f"{side}_encoder_kwargs"]["model_name_or_path"] = str(backbone)
    (folder / "config.json").write_text(json.dumps(document))


_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings", "type_vocab_size")
DENSE_DAMAGES: dict[str, Damage] = {
    **{f"{key} {n:.0e}": _edit("config.json", key, value=n) for key in _SIZES for n in (10**6, 10**9, 10**40)},
    "a million layers and small sizes": lambda folder: [
        _edit("config.json", key, value=value)(folder)
        for key, value in {
            "num_hidden_layers": 10**6,
            "hidden_size": 1,
            "num_attention_heads": 1,
            "intermediate_size": 1,
        }.items()
    ],
    "code of the model": _plant_code(_edit("config.json", "auto_map", value=_AUTO_MAP)),
    "code of an unknown model": _plant_code(
        _edit("config.json", "auto_map", value=_AUTO_MAP), _edit("config.json", "model_type", value="evil")
    ),
    "code of the tokenizer": _plant_code(_edit("tokenizer_config.json", "auto_map", value=_AUTO_MAP)),
    "code of a module": _plant_code(_edit("modules.json", 0, "type", value="evil.M")),
    "module outside": _edit("modules.json", 1, "path", value="../.."),
    "module at an absolute path": _edit("modules.json", 1, "path", value="/etc"),
    "transformer outside": _edit("modules.json", 0, "path", value="../other"),
    "pickle, protocol 2": _pickle_weights(2),
    "pickle, protocol 4": _pickle_weights(4),
    "pickle in an archive": _pickle_weights(2, _use_new_zipfile_serialization=True),
    "pickle in the old format": _pickle_weights(2, _use_new_zipfile_serialization=False),
    "compressed zeros": _make_zip_bomb,
    "shard outside": _name_shards("../secret.safetensors"),
    "shard at an absolute path": _name_shards("{}/secret.safetensors"),
    "header of 2**60 bytes": _write_safetensors(b"{}", 2**60),
    "header of 90 MB": _write_safetensors(b"{}" + b" " * 90_000_000),
    "deep header": _write_safetensors(b"[" * 10**6),
    "shape of 2**62 numbers": _write_safetensors(
        b'{"embeddings.word_embeddings.weight": {"dtype": "F32", "shape": [4611686018427387904], "data_offsets": [0, 0]}}'
    ),
    "giant weights": _make_giant("model.safetensors"),
    "giant configuration": _make_giant("config.json"),
    "giant tokenizer": _make_giant("tokenizer.json"),
    "giant modules": _make_giant("modules.json", "["),
    "deep configuration": _write("config.json", '{"a":' * 10**6 + "1" + "}" * 10**6),
    "deep tokenizer": _write("tokenizer.json", '{"a":' * 10**6 + "1" + "}" * 10**6),
    "deep modules": _write("modules.json", "[" * 10**6),
    "token with a huge id": _edit("tokenizer.json", "model", "vocab", value={"[UNK]": 2**31, "[PAD]": 0}),
    "negative max_seq_length": _edit("sentence_bert_config.json", "max_seq_length", value=-1),
}
"""Damages of a folder in the layout of sentence-transformers."""

HYPENCODER_DAMAGES: dict[str, Damage] = {
    **{
        f"q-nets with {name}": _edit(
            "config.json", "query_encoder_kwargs", "converter_kwargs", "vector_dimensions", value=value
        )
        for name, value in {
            "wide layers": [24, 20_000, 20_000, 1],
            "a million layers": [24] * 10**6 + [1],
            "no layers": [],
            "negative sizes": [24, -1, 1],
            "huge sizes": [24, 10**40, 1],
        }.items()
    },
    "code of the backbone": _trap_backbone,
    "code in the stored configuration": _plant_code(
        _edit("config.json", "backbone_configs", "query", "auto_map", value=_AUTO_MAP),
        _edit("config.json", "backbone_configs", "query", "model_type", value="evil"),
    ),
    "giant checksums": _make_giant("checksums.json"),
}
"""Damages of a Hypencoder of this package, whose checksums were removed before."""


def prepare(kind: str, name: str, folder: Path) -> Callable[[], Any]:
    """Make a hostile folder, and return a function that uses it."""
    if kind == "index":
        path = folder / "x.hyp"
        build_index(path)
        INDEX_DAMAGES[name](path)
        return lambda: use_index(path)
    layout, damages = {
        "dense model": ("sentence-transformers", DENSE_DAMAGES),
        "Hypencoder": ("own Hypencoder", HYPENCODER_DAMAGES),
    }[kind]
    path = save(layout, folder / "model")
    (path / "checksums.json").unlink(missing_ok=True)
    damages[name](path)
    return lambda: encode(layout, path)


ALL = [
    *(("index", name) for name in INDEX_DAMAGES),
    *(("dense model", name) for name in DENSE_DAMAGES),
    *(("Hypencoder", name) for name in HYPENCODER_DAMAGES),
]
"""Kinds of folders and names of their damages."""
