"""Local stand-ins for the directives that exist only on PyTerrier's site, so the pages build without its checkout.

=============  ==========================================  =============================================
Directive      On PyTerrier's site                         Here
=============  ==========================================  =============================================
``schematic``  Run the code and draw the last expression   The same
``how-to``     Show a section, list it on a how-to page    Show the section
``related``    Link to this section from an API entry      Check that the API entry exists, show nothing
``cite.dblp``  Fetch the reference from DBLP               Show a link to DBLP
=============  ==========================================  =============================================
"""

from __future__ import annotations

import pyterrier as pt
from docutils import nodes
from docutils.parsers.rst import directives
from run_code import run_code
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Schematic(SphinxDirective):
    """Draw the transformer that the code ends with; with ``:show_code:``, show the code below ``# FOLD`` too."""

    has_content = True
    option_spec = {"input_columns": directives.unchanged, "show_code": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Return the code and the drawing."""
        code = "\n".join(self.content)
        columns = self.options.get("input_columns")
        html = pt.schematic.draw(
            run_code(code, self.env.docname),
            input_columns=None if columns is None else [name.strip() for name in columns.split(",")],
        )
        shown: list[nodes.Node] = []
        if "show_code" in self.options:
            visible = code.rpartition("# FOLD\n")[2]
            shown.append(nodes.literal_block(visible, visible, language="python"))
        return [*shown, nodes.raw("", html, format="html")]


class HowTo(SphinxDirective):
    """Show a titled how-to section."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the title and the parsed content."""
        title, messages = self.state.inline_text(self.arguments[0], self.lineno)
        content = nodes.container(classes=["how-to"])
        self.state.nested_parse(self.content, self.content_offset, content)
        return [nodes.rubric("", "", *title), *messages, content]


class Related(SphinxDirective):
    """Show nothing, but report a name that the API pages do not document."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a reference without text, which Sphinx checks like any other."""
        reference = addnodes.pending_xref(
            "", nodes.inline(), refdomain="py", reftype="obj", reftarget=self.arguments[0], refexplicit=True, refwarn=True
        )
        self.set_source_info(reference)
        return [nodes.paragraph("", "", reference, classes=["related"])]


class CiteDblp(SphinxDirective):
    """Link to an entry of DBLP."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return an admonition with the link."""
        key = self.arguments[0]
        link = nodes.reference("", f"dblp:{key}", refuri=f"https://dblp.org/rec/{key}")
        return [nodes.admonition("", nodes.title("", "Citation"), nodes.paragraph("", "", link))]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("schematic", Schematic)
    app.add_directive("how-to", HowTo)
    app.add_directive("related", Related)
    app.add_directive("cite.dblp", CiteDblp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
