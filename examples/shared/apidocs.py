"""Makes a small test collection from the documentation of installed Python libraries.

Nothing is downloaded: the documents are the documentation strings of Python's standard library and of a few
libraries that PyTerrier and PyTorch always bring along. A document is the documentation of one function, class or
method without its summary and signatures; the topics are such summaries, and a topic's relevant documents are those
it was taken from. So the task is to find a function by a short description of it, among all else that was written
about it and about thousands of others.

* Documented is what can be reached by public names from a list of modules. A document is called
  ``__module__.__qualname__``, or by the first public name that leads to it where that name is private
  (``scipy.linalg._basic.solve``) or leads elsewhere.
* The summary is the first sentence after any signatures. Topics are its words without punctuation. Summaries with
  formulas or code, and those of too few or too many words or documents, make no topics.
* Very short documents are left out, and so are those that begin like another.

The collection depends on the platform and on the versions of Python and of the libraries, and on nothing else.

Example::

    python examples/shared/apidocs.py apidocs-collection
"""

import argparse
import hashlib
import importlib
import inspect
import json
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

NUM_TOPICS = 500
TOPIC_WORDS = range(5, 26)
MAX_RELEVANT = 10
MIN_WORDS = 15
#: Documents that share this many first words are near-duplicates.
KEY_WORDS = 25

#: The third-party libraries whose documentation is used; their documentation is of no use to train on.
LIBRARIES = ("numpy", "pandas", "scipy", "torch")

#: Modules of the standard library that can be imported without any side effect, those that others build on first.
STDLIB_MODULES = """
    builtins io abc argparse array ast asyncio base64 bdb binascii bisect bz2 calendar cmath cmd code codecs codeop
    collections collections.abc colorsys compileall concurrent.futures configparser contextlib contextvars copy copyreg
    csv ctypes dataclasses datetime decimal difflib dis doctest email.charset email.contentmanager email.generator
    email.header email.headerregistry email.message email.parser email.policy email.utils enum faulthandler filecmp
    fileinput fnmatch fractions ftplib functools gc getopt getpass gettext glob graphlib gzip hashlib heapq hmac html
    html.parser http http.client http.cookiejar http.cookies http.server imaplib importlib importlib.abc
    importlib.machinery importlib.metadata importlib.resources importlib.util inspect ipaddress itertools json
    keyword linecache locale logging logging.config logging.handlers lzma mailbox marshal math mimetypes mmap
    modulefinder multiprocessing multiprocessing.connection multiprocessing.managers multiprocessing.pool
    multiprocessing.shared_memory netrc numbers operator optparse os os.path pathlib pdb pickle pickletools pkgutil
    platform plistlib poplib pprint profile pstats py_compile pyclbr pydoc queue quopri random re reprlib runpy sched
    secrets select selectors shelve shlex shutil signal smtplib socket socketserver sqlite3 ssl stat statistics string
    stringprep struct subprocess symtable sys sysconfig tabnanny tarfile tempfile textwrap threading time timeit token
    tokenize tomllib trace traceback tracemalloc types typing unicodedata unittest unittest.mock urllib.error
    urllib.parse urllib.request urllib.response urllib.robotparser uuid venv warnings wave weakref webbrowser
    wsgiref.handlers wsgiref.headers wsgiref.simple_server wsgiref.util wsgiref.validate xml.dom xml.dom.minidom
    xml.dom.pulldom xml.etree.ElementTree xml.sax xml.sax.handler xml.sax.saxutils xml.sax.xmlreader xmlrpc.client
    xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
""".split()

#: Public modules of the third-party libraries.
LIBRARY_MODULES = """
    numpy numpy.char numpy.ctypeslib numpy.dtypes numpy.exceptions numpy.fft numpy.lib numpy.lib.array_utils
    numpy.lib.format numpy.lib.mixins numpy.lib.npyio numpy.lib.scimath numpy.lib.stride_tricks numpy.linalg numpy.ma
    numpy.polynomial numpy.polynomial.chebyshev numpy.polynomial.hermite numpy.polynomial.hermite_e
    numpy.polynomial.laguerre numpy.polynomial.legendre numpy.polynomial.polynomial numpy.random numpy.rec numpy.strings
    numpy.testing
    pandas pandas.api.extensions pandas.api.indexers pandas.api.interchange pandas.api.types pandas.api.typing
    pandas.arrays pandas.errors pandas.io.formats.style pandas.plotting pandas.testing pandas.tseries.frequencies
    pandas.tseries.holiday pandas.tseries.offsets
    scipy scipy.cluster.hierarchy scipy.cluster.vq scipy.constants scipy.datasets scipy.differentiate scipy.fft
    scipy.fftpack scipy.integrate scipy.interpolate scipy.io scipy.linalg scipy.linalg.interpolative scipy.ndimage
    scipy.optimize scipy.signal scipy.signal.windows scipy.sparse scipy.sparse.csgraph scipy.sparse.linalg scipy.spatial
    scipy.spatial.distance scipy.spatial.transform scipy.special scipy.stats scipy.stats.contingency
    scipy.stats.distributions scipy.stats.mstats scipy.stats.qmc scipy.stats.sampling
    torch torch.amp torch.autograd torch.autograd.functional torch.cuda torch.distributions torch.fft torch.fx
    torch.func torch.futures torch.hub torch.jit torch.library torch.linalg torch.multiprocessing torch.nested torch.nn
    torch.nn.functional torch.nn.init torch.nn.parameter torch.nn.utils torch.nn.utils.parametrizations
    torch.nn.utils.parametrize torch.nn.utils.prune torch.nn.utils.rnn torch.optim torch.optim.lr_scheduler
    torch.optim.swa_utils torch.overrides torch.package torch.profiler torch.random torch.signal.windows torch.sparse
    torch.special torch.testing torch.utils.benchmark torch.utils.checkpoint torch.utils.data torch.utils.dlpack
""".split()

#: What notebooks, test runners and the like put functions of their own in place of.
REPLACED = {
    *("builtins.input", "sys.breakpointhook", "sys.displayhook", "sys.excepthook", "sys.unraisablehook"),
    *("threading.excepthook", "warnings.showwarning"),
}

_CALL = re.compile(r"[A-Za-z_][\w.]*\(")
#: What follows a call where that is a signature: a result type, a description, or nothing.
_AFTER_CALL = re.compile(r"\s*(?:[-=]+>.*?)?(?:\.\s+|\s--?\s+|:\s+|:?\s*$)")
_DIRECTIVE = re.compile(r"^\s*\.\. (?:[\w:-]+::|_).*$", re.MULTILINE)
_UNDERLINE = re.compile(r"^\s*([-=~^*#+])\1{2,}\s*$", re.MULTILINE)
#: What an example prints; some libraries make it up on import, with random numbers.
_OUTPUT = re.compile(r"^(\s*>>>.*(?:\n\s*\.\.\. .*)*)(?:\n(?!\s*>>>)[ \t]*\S.*)+", re.MULTILINE)
_ROLE = re.compile(r":[\w:]+:`~?([^`]+?)(?:\s+<[^`>]*>)?`")
#: A set of strings, as Python shows it: in an order that differs from one process to the next.
_SET = re.compile(r"\{('\w+'(?:, '\w+')+)\}")
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)\.(?=\s+[^a-z\s])")
_NO_SUMMARY = re.compile(
    r"[\\=<>^{}|]|\*\*"  # a formula or code
    r"|^[A-Za-z_][\w.]*\("  # a call that is part of a sentence or of a grammar
    r"|^\w+:|^Parameters\b|^See\b"  # a section or a mere reference
    r"|\balias\b|\bdeprecated\b|\bequivalent to\b"  # about the other name rather than this function
    r"|[:,]$",  # the beginning of a list
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Collection:
    """A test collection.

    Attributes:
        docs: The documents, each with ``docno`` and ``text``, by ``docno``.
        topics: The topics: ``qid`` and ``query``, by ``qid``.
        qrels: The relevance judgements: ``qid``, ``docno`` and ``label``, which is always 1.
    """

    docs: list[dict[str, str]]
    topics: pd.DataFrame
    qrels: pd.DataFrame

    def write(self, folder: str | Path) -> None:
        """Writes ``docs.jsonl``, ``topics.tsv`` and, in TREC's format, ``qrels.txt``.

        Args:
            folder: Where to, created if need be.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = {
            "docs.jsonl": (json.dumps(doc) for doc in self.docs),
            "topics.tsv": (f"{t.qid}\t{t.query}" for t in self.topics.itertuples()),
            "qrels.txt": (f"{q.qid} 0 {q.docno} {q.label}" for q in self.qrels.itertuples()),
        }
        for name, content in lines.items():
            (folder / name).write_text("".join(f"{line}\n" for line in content), encoding="utf-8", newline="\n")


def _unwrap(obj: Any) -> Any:
    """Gives the function behind a static, class or bound method, and anything else as it is."""
    return getattr(obj, "__func__", obj)


def _is_documented(obj: Any) -> bool:
    """Tells functions and classes from other values, such as properties and instances."""
    return inspect.isclass(obj) or callable(obj) and (inspect.isroutine(obj) or isinstance(obj, np.ufunc))


def _owner(obj: Any) -> str | None:
    """Names the module in which an object says it was defined."""
    return getattr(obj, "__module__", None) or getattr(getattr(obj, "__objclass__", None), "__module__", None)


def _is_own(obj: Any) -> bool:
    """Leaves out what the libraries only imported from elsewhere."""
    top = (_owner(obj) or "builtins").split(".")[0]
    return top in sys.stdlib_module_names or top in LIBRARIES


def _is_defined_in(obj: Any, module: str) -> bool:
    """Tells whether an object belongs to a module, given that many modules hide the code of what they offer."""
    owner = _owner(obj) or "_"
    return f"{owner}.".startswith(f"{module}.") or _is_private(owner)


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


def _docno(obj: Any, path: str) -> str:
    """Names an object by its module and qualified name where these are public and lead to it, else by ``path``."""
    module, qualname = _owner(obj) or "", getattr(obj, "__qualname__", "")
    name = f"{module}.{qualname}"
    if _is_private(name):
        return path
    found = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return name if inspect.unwrap(_unwrap(found)) is inspect.unwrap(obj) else path


def _modules() -> Iterator[tuple[str, ModuleType]]:
    """Imports the listed modules, passing over those that this version or platform does not have."""
    for library in LIBRARIES:
        try:
            importlib.import_module(library)
        except ImportError as e:
            raise ImportError(f"The collection needs {', '.join(LIBRARIES)}. Try: pip install {library}") from e
    for name in STDLIB_MODULES + LIBRARY_MODULES:
        try:
            yield name, importlib.import_module(name)
        except ImportError:
            continue


def _public(path: str, namespace: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Gives the documented public names of a module or class, the short ones first."""
    for name in sorted(namespace, key=lambda name: (len(name), name)):
        obj = _unwrap(namespace[name])
        if not name.startswith("_") and _is_documented(obj) and _is_own(obj):
            yield f"{path}.{name}", obj


def _objects() -> Iterator[tuple[str, Any]]:
    """Gives the public functions, classes and methods, each under every public path by which it is reached."""
    # All modules are imported before any documentation is read, as some change the documentation of others.
    for module_name, module in list(_modules()):
        listed = getattr(module, "__all__", None)
        for path, obj in _public(module_name, {name: getattr(module, name, None) for name in listed or dir(module)}):
            if not listed and not _is_defined_in(obj, module_name):
                continue
            yield path, obj
            if inspect.isclass(obj):
                attributes = {name: value for base in reversed(obj.__mro__) for name, value in vars(base).items()}
                yield from ((p, method) for p, method in _public(path, attributes) if not inspect.isclass(method))


def _documentation() -> dict[str, str]:
    """Maps the docno of each object to its own documentation string."""
    found: dict[str, str] = {}
    seen: dict[int, Any] = {}  # holds the objects, so that no identity is used twice
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, obj in _objects():
            if id(obj) in seen or path in REPLACED:
                continue
            seen[id(obj)] = obj
            doc = getattr(obj, "__doc__", None)
            if isinstance(doc, str):
                found.setdefault(_docno(obj, path), inspect.cleandoc(doc))
    return found


def _closing(text: str, start: int) -> int:
    """Finds the end of the bracket that opens at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i + 1
    return len(text)


def _without_signatures(doc: str) -> str:
    """Drops the signatures that many documentation strings start with, of which there can be several."""
    while call := _CALL.match(doc):
        line, _, rest = doc[_closing(doc, call.end() - 1) :].partition("\n")
        after = _AFTER_CALL.match(line)
        if after is None:  # a sentence that starts with a call
            break
        doc = f"{line[after.end() :]}\n{rest}".lstrip()
    return doc.removeprefix("--\n").lstrip()


def _plain(text: str) -> str:
    """Removes line breaks, the most frequent markup, and what is not the same each time the library is imported."""
    for pattern in (_OUTPUT, _ROLE):
        text = pattern.sub(r"\1", text)
    for pattern in (_DIRECTIVE, _UNDERLINE):
        text = pattern.sub("", text)
    text = " ".join(text.replace("`", "").replace("\\ ", "").split())
    return _SET.sub(lambda match: "{" + ", ".join(sorted(match[1].split(", "))) + "}", text)


def split(doc: str) -> tuple[str, str]:
    """Splits a documentation string into its summary and the rest.

    The summary is the first sentence of the first paragraph after any signatures, or all of that paragraph if it is
    no more than one sentence. There is none where a directive comes first, such as a deprecation notice.
    """
    doc = _without_signatures(doc)
    if doc.startswith(".. "):
        return "", _plain(doc)
    first, *rest = (_plain(part) for part in re.split(r"\n\s*\n", doc, maxsplit=1))
    end = match.end() if (match := _SENTENCE_END.search(first)) else len(first)
    return first[:end], " ".join([first[end:], *rest]).strip()


def make_query(summary: str) -> str:
    """Turns a summary into plain words, which no query parser takes for operators."""
    return "" if _NO_SUMMARY.search(summary) else " ".join(_words(summary))


def _words(text: str) -> list[str]:
    """Gives the words of a text, without punctuation."""
    return re.findall(r"[^\W_]+", text)


def _documents() -> dict[str, tuple[str, str]]:
    """Maps docnos to summaries and texts, without the near-empty and the near-duplicate documents."""
    documents: dict[str, tuple[str, str]] = {}
    beginnings: set[tuple[str, ...]] = set()
    for docno, doc in sorted(_documentation().items()):
        summary, text = split(doc)
        words = text.lower().split()
        beginning = tuple(words[:KEY_WORDS])
        if len(words) >= MIN_WORDS and beginning not in beginnings:
            beginnings.add(beginning)
            documents[docno] = summary, text
    return documents


def _is_topic(query: str, texts: list[str]) -> bool:
    """Tells whether a query asks for a few documents, none of which has it verbatim."""
    return (
        len(query.split()) in TOPIC_WORDS
        and len(texts) <= MAX_RELEVANT
        and not any(f" {query.lower()} " in f" {' '.join(_words(text)).lower()} " for text in texts)
    )


def build() -> Collection:
    """Makes the collection.

    Returns:
        The documents, topics and relevance judgements. The topics' identifiers are hashes of their text, and the
        topics are those with the lowest ones, so that they hardly change from one version of a library to the next.

    Raises:
        ImportError: If a library is missing.
        RuntimeError: If the libraries' documentation makes too few topics.
    """
    documents = _documents()
    queries: dict[str, str] = {}
    relevant: dict[str, list[str]] = defaultdict(list)
    for docno, (summary, _) in documents.items():
        query = make_query(summary)
        qid = "q" + hashlib.sha256(query.lower().encode()).hexdigest()[:12]
        queries.setdefault(qid, query)
        relevant[qid].append(docno)
    qids = sorted(qid for qid in queries if _is_topic(queries[qid], [documents[docno][1] for docno in relevant[qid]]))
    if len(qids) < NUM_TOPICS:
        raise RuntimeError(
            f"Only {len(qids)} of {NUM_TOPICS} topics could be made from {len(documents)} documented functions and "
            "classes. Documentation strings are missing if Python runs with -OO."
        )
    qids = qids[:NUM_TOPICS]
    return Collection(
        docs=[{"docno": docno, "text": text} for docno, (_, text) in documents.items()],
        topics=pd.DataFrame({"qid": qids, "query": [queries[qid] for qid in qids]}),
        qrels=pd.DataFrame([(qid, docno, 1) for qid in qids for docno in relevant[qid]], columns=["qid", "docno", "label"]),
    )


def main() -> None:
    """Writes the collection to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Makes a test collection from the documentation of Python libraries.")
    parser.add_argument("folder", type=Path, help="where to write docs.jsonl, topics.tsv and qrels.txt")
    build().write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
