"""Readers: every kind of file, every fault with its line, and constant memory however large the line."""

from __future__ import annotations

import io
import json
import random
import time
import tracemalloc

import pytest

from gemma_ops.config import DataConfig
from gemma_ops.data.line_reader import read_lines
from gemma_ops.data.row_files import read_rows, source_files
from gemma_ops.errors import DataError, ServiceError


def rows(path, **settings):
    return list(read_rows(path, DataConfig(**settings)))


def values(path, **settings):
    return [row.value for row in rows(path, **settings)]


def faults(path, **settings):
    return [(row.line, row.code) for row in rows(path, **settings) if row.value is None]


def test_lines_are_the_same_as_a_plain_split_whatever_the_buffer():
    draw = random.Random(1)
    for _ in range(30):
        parts = [bytes(draw.choices(b"ab \xff", k=draw.choice([0, 1, 5, 40]))) for _ in range(draw.randrange(1, 30))]
        data = b"\n".join(parts)
        expected = data.split(b"\n")[:-1] + ([data.split(b"\n")[-1]] if data.split(b"\n")[-1] else [])
        found = list(read_lines(io.BytesIO(data), cap=20))
        assert [line.number for line in found] == list(range(1, len(expected) + 1))
        assert [line.length for line in found] == [len(line) for line in expected]
        assert [line.skipped for line in found] == [len(line) > 20 for line in expected]
        assert [line.data for line in found if not line.skipped] == [line for line in expected if len(line) <= 20]


def test_windows_breaks_are_no_part_of_a_line():
    assert [line.data for line in read_lines(io.BytesIO(b"a\r\nb\r\r\n\r\nc"), cap=20)] == [b"a", b"b\r", b"", b"c"]


def test_json_lines_with_mark_windows_breaks_and_empty_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": "\xc3\xa4"}')
    assert [(row.line, row.value) for row in rows(path)] == [(1, {"a": 1}), (4, {"a": "ä"})]


def test_bad_lines_are_told_with_line_and_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    good = b'{"a": 1}\n'
    path.write_bytes(good * 6 + b'{"a": \n' + b"[1]\n" + b'{"a": "\xff"}\n' + b'{"a": NaN}\n' + good)
    found = rows(path)
    assert len(found) == 11
    assert faults(path) == [(7, "bad_json"), (8, "not_an_object"), (9, "not_utf8"), (10, "bad_json")]
    assert found[6].reason.startswith("not JSON: ")
    assert found[6].excerpt == '{"a": '
    assert "0xff at position 8" in found[8].reason


class Stream(io.RawIOBase):
    """Bytes made as they are read: a head, a long middle of one byte, a tail."""

    def __init__(self, head, middle, tail):
        self.parts = [head, middle, tail]

    def readable(self):
        return True

    def read(self, size=-1):
        while self.parts:
            part = self.parts[0]
            if isinstance(part, int):
                self.parts[0] = part - size
                if part > 0:
                    return b"x" * min(size, part)
                self.parts.pop(0)
            else:
                return self.parts.pop(0)
        return b""


def test_a_two_gigabyte_line_is_skipped_quickly_and_without_memory():
    stream = Stream(b'{"a": 1}\n{"b": "', 2 << 30, b'"}\n{"a": 2}\n')
    tracemalloc.start()
    started = time.process_time()
    found = list(read_lines(stream, cap=16_000_000))
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(line.number, line.length, line.skipped) for line in found] == [
        (1, 8, False),
        (2, (2 << 30) + 9, True),
        (3, 8, False),
    ]
    assert found[1].excerpt().startswith('{"b": "xxx')
    assert len(found[1].data) <= 2000
    assert peak < 40e6
    assert seconds < 30


def test_a_long_line_of_a_file_is_rejected_and_reading_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n{"b": "')
        file.seek(100_000_000, io.SEEK_CUR)  # a hole: nothing is on disk
        file.write(b'"}\n{"a": 2}\n')
    found = rows(path)
    assert [row.value for row in found] == [{"a": 1}, None, {"a": 2}]
    assert (found[1].line, found[1].code, found[1].file) == (2, "line_too_long", "a.jsonl")
    assert "100.0 MB long, above data.max_line_mb (16)" in found[1].reason
    assert found[1].excerpt.startswith('{"b": "')
    assert len(found[1].excerpt) < 5000


def test_max_line_mb_is_the_limit(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": "x" * 3000}) + "\n")
    assert faults(path, max_line_mb=0.001) == [(1, "line_too_long")]
    assert faults(path, max_line_mb=0.004) == []


@pytest.mark.parametrize("indent", [None, 1])
def test_json_arrays_are_read_element_by_element(tmp_path, indent):
    path = tmp_path / "a.json"
    body = [{"n": number, "text": "ä" * number} for number in range(700)]
    path.write_text(json.dumps(body, indent=indent, ensure_ascii=False))
    assert values(path) == body
    found = rows(path)
    assert [row.line for row in found[:3]] == ([1, 1, 1] if indent is None else [2, 6, 10])


def test_json_faults(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n {"a": 2},\n {"a": }, {"a": 3}]')
    assert faults(path) == [(3, "bad_json")]
    assert values(path)[:2] == [{"a": 1}, {"a": 2}]
    path.write_text('[{"a": 1}, {"a": 2}')
    assert values(path) == [{"a": 1}, {"a": 2}, None]
    assert "not closed" in rows(path)[-1].reason
    path.write_text('[{"a": 1}, 3]')
    assert faults(path) == [(1, "not_an_object")]
    path.write_text('[{"a": "' + "x" * 300_000 + '"}]')
    assert "longer than data.max_line_mb" in rows(path, max_line_mb=0.1)[0].reason
    assert len(values(path)[0]["a"]) == 300_000


def test_json_objects_that_hold_rows_or_are_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"version": 1,\n "data": [{"a": 1}, {"a": 2}]}')
    assert values(path) == [{"a": 1}, {"a": 2}]
    row = {"messages": [{"role": "user", "content": "x"}]}
    path.write_text(json.dumps(row, indent=1))
    assert values(path) == [row]
    path.write_text('{"a": 1}\n{"a": 2}\n')  # JSON Lines under another name
    assert values(path) == [{"a": 1}, {"a": 2}]


def test_csv_with_quotes_breaks_and_semicolons(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\r\n"one, two",a\r\n"line\nbreak ""q""",b\r\n\r\nplain,c\r\n')
    found = rows(path)
    assert [row.value for row in found] == [
        {"text": "one, two", "label": "a"},
        {"text": 'line\nbreak "q"', "label": "b"},
        {"text": "plain", "label": "c"},
    ]
    assert [row.line for row in found] == [2, 3, 6]
    path.write_text("text;label\nx;1,5\n")
    assert values(path) == [{"text": "x", "label": "1,5"}]
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\na,b\tc\n")
    assert values(path) == [{"text": "a,b", "label": "c"}]


def test_csv_faults_cost_one_row_each(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\nfew\nmany,a,b\n"bad\xff",x\n"never closed,x\ngood,y\n"odd"quote,z\nlast,w\n')
    assert faults(path) == [(2, "ragged"), (3, "ragged"), (4, "not_utf8"), (5, "bad_csv"), (7, "bad_csv")]
    assert [value["label"] for value in values(path) if value] == ["y", "w"]


def test_csv_gives_up_a_record_above_the_limit(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"open ' + "x" * 900 + "\n" + "row,a\n" * 40)
    found = rows(path, max_line_mb=0.001)
    assert (found[0].line, found[0].code) == (2, "line_too_long")
    assert "is a quote never closed?" in found[0].reason
    assert [row.value for row in found[1:]] == [{"text": "row", "label": "a"}] * 40


@pytest.mark.parametrize(
    "header, problem", [("", "no header"), ("a,b,a\n1,2,3\n", "'a' twice"), ("a,,b\n1,2,3\n", "empty column name")]
)
def test_csv_headers_that_cannot_work(tmp_path, header, problem):
    path = tmp_path / "a.csv"
    path.write_text(header)
    with pytest.raises(DataError, match=problem):
        rows(path)


def test_parquet_in_batches(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    body = [{"n": number, "m": [{"role": "user", "content": str(number)}]} for number in range(1500)]
    parquet.write_table(pa.Table.from_pylist(body), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == body
    assert rows(tmp_path / "a.parquet")[1499].line == 1500
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        rows(tmp_path / "b.parquet")


def test_datasets_folders(tmp_path):
    import datasets

    body = [{"text": str(number)} for number in range(5)]
    plain = datasets.Dataset.from_list(body)
    plain.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": plain, "test": plain.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert values(tmp_path / "one") == body
    assert values(tmp_path / "two") == body
    assert values(tmp_path / "two", split="test") == body[:1]
    with pytest.raises(DataError, match="no split valid; it has train, test"):
        rows(tmp_path / "two", split="valid")


def test_the_hub_offline_says_so(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ServiceError, match="the Hub data set some/thing can't be reached") as error:
        rows(None, hub="some/thing")
    assert "save_to_disk" in error.value.fix


def test_folders_prefer_train_and_leave_tests_out(tmp_path):
    for name in ("b.jsonl", "a.csv", "test.jsonl", "valid-1.json", "notes.md", ".hidden.jsonl", "dev.tsv"):
        (tmp_path / name).write_text("")
    assert [path.name for path in source_files(tmp_path)] == ["a.csv", "b.jsonl"]
    for name in ("train.jsonl", "train-2.jsonl"):
        (tmp_path / name).write_text("")
    assert [path.name for path in source_files(tmp_path)] == ["train-2.jsonl", "train.jsonl"]


def test_sources_that_are_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        rows(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="no data files"):
        rows(tmp_path)
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(DataError, match="no known file type"):
        rows(tmp_path / "a.docx")
    with pytest.raises(DataError, match="no data to read"):
        rows(None)
