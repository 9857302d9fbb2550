"""Build a small test collection from the documentation of installed Python libraries.

Nothing is downloaded. The documents are the docstrings of Python's standard library and of a few libraries that PyTerrier
and PyTorch depend on. A document is the docstring of one function, class or method without its summary and signatures. The
topics are such summaries, and the relevant documents of a topic are those that the summary was taken from. The task is to
find a function by a short description.

* The objects are those that can be reached by public names from a list of modules. The docno is
  ``__module__.__qualname__``. If that name is private (``scipy.linalg._basic.solve``) or belongs to another object, the
  docno is the first public name that leads to the object.
* The summary is the first sentence after any signatures. A topic contains its words without punctuation. Summaries with
  formulas or code make no topics. Neither do summaries with too few or too many words or relevant documents.
* Very short documents are left out, and so are documents that begin like an earlier one.

The collection depends on the platform and on the versions of Python and of the libraries, and on nothing else.
"""

import hashlib
import importlib
import inspect
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from shared.collection import Collection
from shared.docstrings import list_words, make_query, split_docstring

NUM_TOPICS = 500
TOPIC_WORDS = range(5, 26)
MAX_RELEVANT = 10
MIN_DOC_WORDS = 15
#: Two documents are near-duplicates if their first 25 words are equal.
DUPLICATE_WORDS = 25

#: Third-party libraries whose documentation is used. No model should be trained on it.
LIBRARIES = ("numpy", "pandas", "scipy", "torch")

#: Modules of the standard library that can be imported without side effects, in the order of import.
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

#: Functions that notebooks and test runners replace by their own.
REPLACED_BY_TOOLS = {
    *("builtins.input", "sys.breakpointhook", "sys.displayhook", "sys.excepthook", "sys.unraisablehook"),
    *("threading.excepthook", "warnings.showwarning"),
}


def build_collection() -> Collection:
    """Build the collection.

    Qids are hashes of the query, and the topics with the lowest qids are chosen. Therefore the topics hardly change from one
    version of a library to the next.

    Returns:
        The collection, with documents and topics sorted by identifier.

    Raises:
        ImportError: If a library is not installed.
        RuntimeError: If there are fewer than ``NUM_TOPICS`` topics.
    """
    docs = read_docs()
    queries: dict[str, str] = {}
    relevant: dict[str, list[str]] = defaultdict(list)
    for docno, (summary, _) in docs.items():
        query = make_query(summary)
        qid = "q" + hashlib.sha256(query.lower().encode()).hexdigest()[:12]
        queries.setdefault(qid, query)
        relevant[qid].append(docno)
    qids = sorted(qid for qid in queries if _is_topic(queries[qid], [docs[docno][1] for docno in relevant[qid]]))
    if len(qids) < NUM_TOPICS:
        raise RuntimeError(
            f"Only {len(qids)} of {NUM_TOPICS} topics could be built from {len(docs)} docstrings. Run Python without -OO, "
            "which removes docstrings."
        )
    qids = qids[:NUM_TOPICS]
    records = [{"docno": docno, "text": text} for docno, (_, text) in docs.items()]
    topics = pd.DataFrame({"qid": qids, "query": [queries[qid] for qid in qids]})
    judgements = [(qid, docno, 1) for qid in qids for docno in relevant[qid]]
    qrels = pd.DataFrame(judgements, columns=["qid", "docno", "label"])
    return Collection("documentation of installed libraries", lambda: iter(records), topics, qrels)


def _is_topic(query: str, texts: list[str]) -> bool:
    """Return True if a query has few relevant documents and none of them contains it verbatim."""
    return (
        len(query.split()) in TOPIC_WORDS
        and len(texts) <= MAX_RELEVANT
        and not any(f" {query.lower()} " in f" {' '.join(list_words(text)).lower()} " for text in texts)
    )


def read_docs() -> dict[str, tuple[str, str]]:
    """Map docnos to summaries and texts, without near-empty documents and near-duplicates."""
    docs: dict[str, tuple[str, str]] = {}
    beginnings: set[tuple[str, ...]] = set()
    for docno, docstring in sorted(read_docstrings().items()):
        summary, text = split_docstring(docstring)
        words = text.lower().split()
        beginning = tuple(words[:DUPLICATE_WORDS])
        if len(words) >= MIN_DOC_WORDS and beginning not in beginnings:
            beginnings.add(beginning)
            docs[docno] = summary, text
    return docs


def read_docstrings() -> dict[str, str]:
    """Map the docno of each object to its docstring."""
    found: dict[str, str] = {}
    seen: dict[int, Any] = {}  # keeps the objects alive, so no id is used twice
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, obj in _list_objects():
            if id(obj) in seen or path in REPLACED_BY_TOOLS:
                continue
            seen[id(obj)] = obj
            docstring = getattr(obj, "__doc__", None)
            if isinstance(docstring, str):
                found.setdefault(_make_docno(obj, path), inspect.cleandoc(docstring))
    return found


def _list_objects() -> Iterator[tuple[str, Any]]:
    """Yield public functions, classes and methods, each under every public path that leads to it."""
    # Import all modules before reading any docstring, because some modules change the docstrings of others.
    for module_name, module in list(_import_modules()):
        exported = getattr(module, "__all__", None)
        members = {name: getattr(module, name, None) for name in exported or dir(module)}
        for path, obj in _list_public(module_name, members):
            if not exported and not _is_defined_in(obj, module_name):
                continue
            yield path, obj
            if inspect.isclass(obj):
                attributes = {name: value for base in reversed(obj.__mro__) for name, value in vars(base).items()}
                yield from (item for item in _list_public(path, attributes) if not inspect.isclass(item[1]))


def _import_modules() -> Iterator[tuple[str, ModuleType]]:
    """Import the listed modules, except those that this version or platform does not have."""
    for library in LIBRARIES:
        try:
            importlib.import_module(library)
        except ImportError as err:
            raise ImportError(
                f"The apidocs collection needs {', '.join(LIBRARIES)}, but {library} cannot be imported. Try: "
                f"pip install {library}"
            ) from err
    for name in STDLIB_MODULES + LIBRARY_MODULES:
        try:
            yield name, importlib.import_module(name)
        except ImportError:
            continue


def _list_public(path: str, namespace: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the public functions and classes of a module or class, short names first."""
    for name in sorted(namespace, key=lambda name: (len(name), name)):
        obj = _get_function(namespace[name])
        if not name.startswith("_") and _is_function_or_class(obj) and _is_from_libraries(obj):
            yield f"{path}.{name}", obj


def _get_function(obj: Any) -> Any:
    """Return the function of a static, class or bound method, and any other object unchanged."""
    return getattr(obj, "__func__", obj)


def _is_function_or_class(obj: Any) -> bool:
    return inspect.isclass(obj) or callable(obj) and (inspect.isroutine(obj) or isinstance(obj, np.ufunc))


def _get_module_name(obj: Any) -> str | None:
    """Return the name of the module that an object says it was defined in."""
    return getattr(obj, "__module__", None) or getattr(getattr(obj, "__objclass__", None), "__module__", None)


def _is_from_libraries(obj: Any) -> bool:
    """Return True if an object was defined in the listed libraries, rather than imported there from elsewhere."""
    top = (_get_module_name(obj) or "builtins").split(".")[0]
    return top in sys.stdlib_module_names or top in LIBRARIES


def _is_defined_in(obj: Any, module: str) -> bool:
    """Return True if an object was defined in a module, or in any private module."""
    owner = _get_module_name(obj) or "_"
    return f"{owner}.".startswith(f"{module}.") or _is_private(owner)


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


def _make_docno(obj: Any, path: str) -> str:
    """Return the module and qualified name of an object if they are public and lead to it, else ``path``."""
    module, qualname = _get_module_name(obj) or "", getattr(obj, "__qualname__", "")
    name = f"{module}.{qualname}"
    if _is_private(name):
        return path
    found = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return name if inspect.unwrap(_get_function(found)) is inspect.unwrap(obj) else path
