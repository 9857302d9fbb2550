"""Split docstrings into a summary and the remaining text."""

import re

_CALL = re.compile(r"[A-Za-z_][\w.]*\(")
#: Rest of the line after a call, if the call is a signature: a result type, a description, or nothing.
_AFTER_SIGNATURE = re.compile(r"\s*(?:[-=]+>.*?)?(?:\.\s+|\s--?\s+|:\s+|:?\s*$)")
_DIRECTIVE = re.compile(r"^\s*\.\. (?:[\w:-]+::|_).*$", re.MULTILINE)
_UNDERLINE = re.compile(r"^\s*([-=~^*#+])\1{2,}\s*$", re.MULTILINE)
#: Output of an example. Some libraries print random numbers there, which differ at each import.
_OUTPUT = re.compile(r"^(\s*>>>.*(?:\n\s*\.\.\. .*)*)(?:\n(?!\s*>>>)[ \t]*\S.*)+", re.MULTILINE)
_ROLE = re.compile(r":[\w:]+:`~?([^`]+?)(?:\s+<[^`>]*>)?`")
#: A set of strings as Python prints it. Its order differs from one process to the next.
_SET = re.compile(r"\{('\w+'(?:, '\w+')+)\}")
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)\.(?=\s+[^a-z\s])")
_NO_QUERY = re.compile(
    r"[\\=<>^{}|]|\*\*"  # a formula or code
    r"|^[A-Za-z_][\w.]*\("  # a call in a sentence or a grammar
    r"|^\w+:|^Parameters\b|^See\b"  # a section or a reference
    r"|\balias\b|\bdeprecated\b|\bequivalent to\b"  # describes the name, or another function
    r"|[:,]$",  # the beginning of a list
    re.IGNORECASE,
)


def split_docstring(docstring: str) -> tuple[str, str]:
    """Split a docstring into its summary and the remaining text.

    The summary is the first sentence of the first paragraph after any signatures.

    Args:
        docstring: Docstring without indentation.

    Returns:
        The summary and the text, both on one line. The summary is empty if the docstring starts with a directive, such as
        a deprecation notice.
    """
    docstring = _remove_signatures(docstring)
    if docstring.startswith(".. "):
        return "", _remove_markup(docstring)
    first, *rest = (_remove_markup(part) for part in re.split(r"\n\s*\n", docstring, maxsplit=1))
    end = match.end() if (match := _SENTENCE_END.search(first)) else len(first)
    return first[:end], " ".join([first[end:], *rest]).strip()


def make_query(summary: str) -> str:
    """Return the words of a summary, without anything that a query parser takes for an operator.

    The query is empty if the summary contains formulas or code, or does not describe the function.
    """
    return "" if _NO_QUERY.search(summary) else " ".join(list_words(summary))


def list_words(text: str) -> list[str]:
    """Return the words of a text, without punctuation."""
    return re.findall(r"[^\W_]+", text)


def _remove_signatures(docstring: str) -> str:
    """Remove the signatures at the beginning of a docstring."""
    while call := _CALL.match(docstring):
        line, _, rest = docstring[_find_closing_bracket(docstring, call.end() - 1) :].partition("\n")
        after = _AFTER_SIGNATURE.match(line)
        if after is None:  # a sentence that starts with a call
            break
        docstring = f"{line[after.end() :]}\n{rest}".lstrip()
    return docstring.removeprefix("--\n").lstrip()


def _find_closing_bracket(text: str, start: int) -> int:
    """Return the position after the bracket that closes the one at ``start``, or the length of the text."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i + 1
    return len(text)


def _remove_markup(text: str) -> str:
    """Remove line breaks, frequent markup, and text that differs from one process to the next."""
    for pattern in (_OUTPUT, _ROLE):
        text = pattern.sub(r"\1", text)
    for pattern in (_DIRECTIVE, _UNDERLINE):
        text = pattern.sub("", text)
    text = " ".join(text.replace("`", "").replace("\\ ", "").split())
    return _SET.sub(lambda match: "{" + ", ".join(sorted(match[1].split(", "))) + "}", text)
