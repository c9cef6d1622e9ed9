"""HTML from template files: what is escaped, what is refused, how a template's layout becomes a page's."""

from __future__ import annotations

import re
import subprocess
import sys
import traceback
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest

from gemma_ops.prepare import check_html
from gemma_ops.prepare.check_result import CheckResult
from gemma_ops.prepare.row_findings import RowFinding
from gemma_ops.prepare.row_view import RowView
from gemma_ops.serving import page as serving_page
from gemma_ops.serving.lanes import LaneSummary
from gemma_ops.words.markup import Templates, escape, join_lines, trusted

PACKAGE = Path(__file__).parents[2] / "gemma_ops"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"' & \x00"
TAG = re.compile(r"<(?:div|p|table|td|tr|th|section|span|details|ul|li|dl|dt|h[1-6]|small|pre|body|mark|img)[ >]")


class Page(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.handlers = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def filled(tmp_path, source, **values):
    (tmp_path / "a.html").write_text(f"{{% macro it({', '.join(values)}) %}}{source}{{% endmacro %}}")
    return Templates(tmp_path, helpers={"loud": str.upper}).fill("a.html", "it", **values)


def test_text_is_escaped_and_html_is_not(tmp_path):
    assert filled(tmp_path, '<b title="{{ x }}">{{ x }}</b>', x="\"'<&>") == (
        '<b title="&quot;&#x27;&lt;&amp;&gt;">&quot;&#x27;&lt;&amp;&gt;</b>'
    )
    assert filled(tmp_path, "{{ x }}{{ loud('<') }}", x=trusted("<i>")) == "<i>&lt;"
    assert filled(tmp_path, "{{ x }}", x=7) == "7"
    inner = filled(tmp_path, "<p>{{ x }}</p>", x="<")
    assert filled(tmp_path, "{{ x }}", x=inner) == "<p>&lt;</p>"
    assert filled(tmp_path, "{{ x }}", x=f"{inner}") == "&lt;p&gt;&amp;lt;&lt;/p&gt;"


def test_characters_that_nobody_sees_are_made_visible_and_joiners_are_kept():
    assert escape("a\x00\x1b\u202eb\n\tc") == "a\ufffd\ufffd\ufffdb\n\tc"
    family, farsi = "\U0001f468\u200d\U0001f469", "می\u200cخواهم"
    assert escape(family) == family
    assert escape(farsi) == farsi


def test_names_and_parameters_that_nobody_gave_are_refused(tmp_path):
    with pytest.raises(jinja2.UndefinedError):
        filled(tmp_path, "{{ y }}", x=1)
    with pytest.raises(jinja2.UndefinedError):
        filled(tmp_path, "{{ x.nothing }}", x="text")
    with pytest.raises(TypeError):
        Templates(tmp_path).fill("a.html", "it", x=1, z=2)
    with pytest.raises(jinja2.TemplateNotFound):
        Templates(tmp_path).fill("b.html", "it")


@pytest.mark.parametrize(
    ("source", "page"),
    [
        ("<ul>\n  <li>a</li>\n</ul>", "<ul><li>a</li></ul>"),
        ("<p>\n  a row\n  of words\n</p>", "<p>a row of words</p>"),
        ("<p>{{ x }}\n  {{ x }} and\n  more</p>", "<p>11 and more</p>"),
        ("<p>a</p>\n\n  <p>b</p>", "<p>a</p>\n<p>b</p>"),
        ("<p>{{ loud(\n  'a'\n) }}</p>\n{# two\n lines #}", "<p>A</p>"),
        ("a{{ ' ' }}\n  {% if x %}b{% endif %}", "a b"),
    ],
)
def test_layout_is_for_the_reader_of_the_file(tmp_path, source, page):
    assert filled(tmp_path, source, x=1) == page


def test_errors_name_the_line_of_the_file(tmp_path):
    source = "<p>\n  one\n  two\n\n  {{ x.\n    nothing }}</p>"
    assert join_lines(source).count("\n") == source.count("\n")
    with pytest.raises(jinja2.UndefinedError) as caught:
        filled(tmp_path, source, x=1)
    last = traceback.extract_tb(caught.value.__traceback__)
    assert any(frame.filename == str(tmp_path / "a.html") and frame.lineno == 5 for frame in last)


def test_folders_are_asked_in_order_and_files_taken_as_they_are(tmp_path):
    for name in ("own", "shared"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.css").write_text(f"a {{\n  {name}\n}}\n")
    (tmp_path / "shared" / "a.html").write_text("{% macro it() %}{{ verbatim('own.css') }}{% endmacro %}")
    shared = Templates(tmp_path / "shared")
    both = Templates(tmp_path / "own", *shared.folders)
    assert both.fill("a.html", "it") == "a {\n  own\n}\n"
    assert type(both.page("a.html", "it")) is str


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("templates/*.html")), ids=lambda path: path.name)
def test_templates_trust_nothing_by_themselves(path):
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape", source)
    assert not re.search(r"=\{\{", source), "an attribute without quotes isn't safe"
    assert max(map(len, source.splitlines())) <= 120
    found = Templates(path.parent, *{other.parent for other in PACKAGE.rglob("templates/*.html")})._environment
    found.compile(found.loader.get_source(found, path.name)[0])


def test_pages_are_written_in_templates_and_only_drawings_in_python():
    """A module that says HTML itself would escape by hand; only drawings do, and each says `trusted`."""
    sources = [(path.name, path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    assert {name for name, text in sources if TAG.search(text)} == {"faults.py"}
    trusting = {name for name, text in sources if re.search(r"trusted\(|Markup\(", text)}
    assert trusting <= {
        "markup.py", "figures.py", "svg.py", "scatter.py", "palette.py", "breakeven_html.py",  # drawings
        "check_html.py", "report_samples.py", "report_routing.py",  # a line break, and what joins parts
    }  # fmt: skip


def test_jinja_is_loaded_by_the_first_page_only():
    code = (
        "import sys\n"
        "from gemma_ops.words import figures as markup, palette, svg\n"
        "assert 'jinja2' not in sys.modules\n"
        "markup.chip('tuned')\n"
        "assert 'jinja2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _harmless(text):
    page = Page(text)
    assert not page.handlers
    assert "img" not in page.tags
    assert "alert(1)&lt;/script&gt;" in text
    return page.tags.count("script")


def test_a_rows_text_reaches_the_page_of_data_check_as_text():
    found = RowFinding("code" + EVIL, "warning", "r", "f:1" + EVIL, "what" + EVIL, "fix" + EVIL)
    tokens = [(EVIL, False), ("yes\n" + EVIL, True)]
    row = RowView("id" + EVIL, "f:1" + EVIL, tokens, [found], rejected=tokens, more=[tokens])
    lengths = {part: {"p50": 1, "p95": 2, "max": 3} for part in ("prompt", "completion", "row")}
    result = CheckResult(
        "layout" + EVIL, 1, False, [row], {found.code: 1}, {found.code: found},
        {**lengths, "tokens": 5, "tokens_with_loss": 2}, 0, 512,
        template=("told" + EVIL,), thinned=("thin" + EVIL,), refusals=((EVIL, EVIL),),
    )  # fmt: skip
    text = check_html.check_page(result)
    assert _harmless(text) == 0
    assert text.count("alert(1)") == 18
    assert "<span class=loss>yes<i>⏎</i>\n&lt;script" in text


def test_what_a_server_knows_reaches_its_page_as_text():
    facts = SimpleNamespace(
        model="m" + EVIL, source="s" + EVIL, version="3" + EVIL, format="q" + EVIL, engine="e" + EVIL,
        digest="d" + EVIL, canary="c" + EVIL, verdict="v" + EVIL, gates=["g" + EVIL], label=("m", "3", "q"),
    )  # fmt: skip
    tally = SimpleNamespace(requests=Counter(), seconds_sum=0.0, reply_tokens=1, thought_tokens=2)
    service = SimpleNamespace(
        facts=facts, tally=tally, began=0.0, slots=SimpleNamespace(running=0, waiting=0),
        model=SimpleNamespace(thinks=True, engine=SimpleNamespace(slots=2, context=4096)),
    )  # fmt: skip
    deployment = SimpleNamespace(
        current=service, services=[service], challenger=None, share=0.0, trouble={"4": "why" + EVIL},
        tallies={("m", "3" + EVIL, "q" + EVIL): tally},
    )  # fmt: skip
    lanes = LaneSummary("p" + EVIL, (("l" + EVIL, "1", "2", "3", "4"),))
    text = serving_page.render_page(deployment, "http://h" + EVIL, keys=True, lanes=lanes)
    assert _harmless(text) == 1, "its own script, and no other"
    for name in ("m", "s", "3", "q", "e", "d", "c", "v", "g", "why", "p", "l", "http://h"):
        assert f"{name}&lt;script&gt;" in text
