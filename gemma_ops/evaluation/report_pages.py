"""The templates of the evaluation's pages, over those that every page shares."""

from __future__ import annotations

from pathlib import Path

from gemma_ops.words.figures import PAGES
from gemma_ops.words.markup import Templates

REPORT = Templates(Path(__file__).parent / "templates", *PAGES.folders, helpers=PAGES.helpers)
