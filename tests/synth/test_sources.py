"""Documents as they lie in files: what is read, where every character stands, who may see it."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from gemma_ops.config import SynthConfig
from gemma_ops.errors import DataError
from gemma_ops.synth import quotations
from gemma_ops.synth.material import read_seeds
from gemma_ops.synth.plan_requests import gather
from gemma_ops.synth.sections import split
from gemma_ops.synth.sources import ingest
from tests.helpers.company import document, write_documents

PAGE = """<!doctype html>
<html><head><title>Desk &amp; badge</title><meta name="privacy" content="paid"><meta name="license" content="CC0-1.0">
<style>p { color: red }</style></head><body>
<nav><a href="/">Home</a></nav>
<h1>Badge &ndash; rules</h1><p>A badge is <b>valid</b>   for
ten&nbsp;days &amp; never longer, whatever the visitor says about it at the desk.</p>
<script>var secret = "not text";</script>
<h2>Lost badges</h2><ul><li>Report a lost badge at the desk before noon on the same day.</li><li>Pay 4&#8364;.</li></ul>
</body></html>
"""


def one(path, text, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (found,) = ingest(path, settings.get("privacy", "any")).documents
    return found


def source_of(found, span, text):
    return " ".join(text[slice(*span)].split())


def test_markdown_sections_end_at_headings_and_know_their_place_in_the_file(tmp_path):
    text = (
        "---\nprivacy: paid\nlicense: MIT\n---\nIntroduction of a dozen words, so that it stands alone here as a "
        "section.\n\n"
        "# Leave #\n\nTwelve words about leave that everybody who works here should know today.\n\n"
        "## How to ask\n\n" + "Ask your manager in writing. " * 5 + "\n\n```\n# not a heading\n```\n\n"
        "Underlined\n----------\n\nAnother twelve words about something else that stands under an underlined heading.\n"
    )
    found = one(tmp_path / "a.md", text)
    sections = split(found, 500)
    assert [section.heading for section in sections] == ["", "Leave", "Leave > How to ask", "Leave > Underlined"]
    assert (found.privacy, found.license) == ("paid", "MIT")
    assert all(text[slice(*section.span)] == section.text for section in sections)
    assert "privacy" not in sections[0].text
    assert "# not a heading" in sections[2].text
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_span_counts_characters_of_the_file_whatever_its_line_ends_and_letters(tmp_path):
    path = tmp_path / "a.md"
    path.write_bytes(
        "\ufeff# Größe 😀\r\n\r\nDie Größe des Zimmers ist zwölf Meter, und das steht so im Vertrag, den alle "
        "kennen.\r\n".encode()
    )
    (found,) = ingest(path, "any").documents
    (section,) = split(found, 500)
    span = quotations.find_quotation(section, "Die  Größe des\nZimmers")
    assert path.read_bytes().decode("utf-8-sig")[slice(*span)] == "Die Größe des Zimmers"


def test_a_quotation_from_a_page_is_found_between_its_tags(tmp_path):
    found = one(tmp_path / "a.html", PAGE)
    sections = split(found, 500)
    assert [section.heading for section in sections] == ["Badge – rules", "Badge – rules > Lost badges"]
    assert (found.privacy, found.license, found.reading.facts["title"]) == ("paid", "CC0-1.0", "Desk & badge")
    text = found.reading.text
    assert "A badge is valid for ten days & never longer" in " ".join(text.split())
    assert "color" not in text
    assert "secret" not in text
    start, end = quotations.find_quotation(sections[0], "A badge is valid for ten days & never longer")
    assert PAGE[start:end].startswith("A badge is <b>valid</b>")
    assert PAGE[start:end].endswith("never longer")
    start, end = quotations.find_quotation(sections[1], "at the desk before noon")
    assert PAGE[start:end] == "at the desk before noon"


def test_every_line_of_json_lines_is_a_document_that_may_be_stricter_than_the_configuration(tmp_path):
    rows = [
        {"text": "Nobody may know this.", "privacy": "local_only"},
        {"text": "Everybody may.", "privacy": "any", "license": "CC0-1.0"},
        {"text": "No class is stated."},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [item.privacy for item in ingest(path, "paid").documents] == ["local_only", "paid", "paid"]
    assert [item.name for item in ingest(path, "any").documents] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert [item.privacy for item in ingest(path, "local_only").documents] == ["local_only"] * 3


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("a.md", "---\nprivacy: secret\n---\nText.", "a.md: the privacy class 'secret' is unknown"),
        ("a.md", "---\nprivacy: [\n---\nText.", "a.md: the front matter is not YAML"),
        ("a.jsonl", '{"title": "no text"}\n', "a.jsonl:1 has no text"),
        ("a.jsonl", "{broken\n", "a.jsonl:1 can't be read"),
        ("a.jsonl", '{"text": "fine"}\n{"text": "half \\ud83d of it"}\n', "a.jsonl:2 is no Unicode text"),
        ("a.jsonl", '{"text": "fine", "license": "\\udc00"}\n', "a.jsonl:1 is no Unicode text"),
        ("a.md", "  \n", "are empty"),
        ("a.docx", "x", "no documents in"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=told.replace("(", r"\(")):
        ingest(tmp_path, "any")


def test_bytes_that_are_not_utf8_are_refused_by_their_position(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8: byte 0xe9 at position 4"):
        ingest(tmp_path, "any")


def test_a_folder_is_read_in_order_and_other_files_are_named(tmp_path):
    write_documents(tmp_path / "docs", 3)
    (tmp_path / "docs" / "deeper").mkdir()
    (tmp_path / "docs" / "deeper" / "b.txt").write_text("Something in plain text.")
    (tmp_path / "docs" / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "docs" / ".hidden.md").write_text("Not this.")
    found = ingest(tmp_path / "docs", "any")
    assert [item.name for item in found.documents] == [
        "00-parking-permit.md", "01-gym-locker.md", "02-travel-card.md", "deeper/b.txt",
    ]  # fmt: skip
    assert found.unread == ("photo.png",)


def test_copies_of_a_document_are_one_group(tmp_path):
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text(document(1))
    (tmp_path / "c.md").write_text(document(1).replace("\n", "\r\n"))
    first, second, third = ingest(tmp_path, "any").documents
    assert first.group == second.group == third.group
    assert first.sha256 != third.sha256


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_of_copies_the_strictest_stays_and_its_class_holds(tmp_path, order):
    """A document that is to stay here must not go out because a copy of it lies elsewhere without that word."""
    lax, strict = (f"{letter}.md" for letter in order)
    (tmp_path / lax).write_text(document(1))
    (tmp_path / strict).write_text("---\nprivacy: local_only\n---\n" + document(1))
    (tmp_path / "c.md").write_text("---\nprivacy: paid\n---\n" + document(1))
    settings = SynthConfig(count={"document_qa": 2}, privacy="any")
    pool = gather(settings, documents=tmp_path, seeds=None, tools=None)
    assert {(section.document.name, section.document.privacy) for section in pool.sections} == {(strict, "local_only")}


@pytest.mark.parametrize("strict", [0, 1, 2])
def test_of_copies_of_a_seed_the_strictest_class_holds(tmp_path, strict):
    """The third is a copy in all that a teacher is shown: the last exchange."""
    talk = [{"role": "user", "content": "What does Ann earn?"}, {"role": "assistant", "content": "5000 a month."}]
    rows = [{"messages": talk}, {"messages": talk}, {"messages": [{"role": "system", "content": "Be brief."}, *talk]}]
    rows[strict]["privacy"] = "local_only"
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(seed.place, seed.privacy) for seed in read_seeds(path, "any")] == [
        (f"seeds.jsonl:{strict + 1}", "local_only")
    ]


def test_long_parts_are_cut_at_paragraphs_then_sentences_and_nothing_is_lost(tmp_path):
    draw = random.Random(3)
    words = [f"w{number}" for number in range(900)]
    text = ""
    for number, word in enumerate(words, 1):
        text += word + ("." if number % 11 == 0 else "") + ("\n\n" if number % 60 == 0 else " ")
    text += " ".join(f"v{draw.random()}" for _ in range(5))
    sections = split(one(tmp_path / "a.txt", text), 100)
    assert max(len(section.text.split()) for section in sections) <= 100
    assert all(
        section.text.endswith(".") or "v0" in section.text or section.text.split()[-1] in words for section in sections
    )
    joined = " ".join(section.text for section in sections)
    assert joined.split() == text.split()


def test_the_text_of_a_pdf_is_read(tmp_path):
    pytest.importorskip("pypdf")
    stream = b"BT /F1 12 Tf 72 700 Td (A badge is valid for ten days and never longer.) Tj ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R "
            b">> >> >>"
        ),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, places = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    body += b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        table,
        len(body),
    )
    (tmp_path / "a.pdf").write_bytes(body)
    (found,) = ingest(tmp_path, "any").documents
    assert found.reading.text.strip() == "A badge is valid for ten days and never longer."
    (tmp_path / "a.pdf").write_bytes(body[:60])
    with pytest.raises(DataError, match=r"a\.pdf can't be read as PDF"):
        ingest(tmp_path, "any")
