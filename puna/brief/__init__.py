"""The state of the Llama ecosystem on one dated page, generated from the data of the package.

    collect(...)   all that the page is made of, on a day
    page(...)      sections, tables and cells
    markdown, html, plain

Pure: reads data files, fetches nothing. No figure is written in code or templates: a test walks both.
"""

from puna.brief.document import Page, html, markdown, plain
from puna.brief.facts import Facts, collect
from puna.brief.page import page

__all__ = ["Facts", "Page", "collect", "html", "markdown", "page", "plain"]
