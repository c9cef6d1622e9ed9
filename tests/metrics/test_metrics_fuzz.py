"""Metrics against slow references on random input, and numbers in every spelling: a wrong answer never scores."""

from __future__ import annotations

import itertools
import json
import random
import re
import unicodedata
from fractions import Fraction
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from gemma_ops.errors import DataError
from gemma_ops.metrics import AnyMetric
from gemma_ops.metrics.metric import ScoredRow, normalize, score_words
from gemma_ops.metrics.numbers import final_number
from gemma_ops.metrics.numerals import numbers_in

ROUNDS = 400
ALPHABET = 'aAbB é e\u0301ß .,!-_ 12 한국 हि ภา 日本 \n\t{}[]":'


def made(options, rows):
    options = {"id": options} if isinstance(options, str) else options
    return TypeAdapter(AnyMetric).validate_python(options).scorer(Path(), rows)


def scored(options, reference, answer, **fields):
    row = ScoredRow("r", ({"role": "user", "content": "?"},), reference, **fields)
    scorer = made(options, [row])
    return scorer.score(answer, row).values[scorer.key]


def text(draw, most=12):
    return "".join(draw.choice(ALPHABET) for _ in range(draw.randrange(most)))


def value(draw, depth=0):
    kinds = [1, 2.0, 2.5, True, False, None, "x", "é", ""]
    if depth < 2 and draw.random() < 0.5:
        if draw.random() < 0.5:
            return {draw.choice("abc"): value(draw, depth + 1) for _ in range(draw.randrange(3))}
        return [value(draw, depth + 1) for _ in range(draw.randrange(3))]
    return draw.choice(kinds)


def slow_normal(text, steps):
    for step in steps:
        if step == "strip":
            while text[:1].isspace():
                text = text[1:]
            while text[-1:].isspace():
                text = text[:-1]
        elif step == "casefold":
            text = "".join(letter.casefold() for letter in text)
        elif step == "spaces":
            text = re.sub(r"\s+", " ", text).strip()
        elif step == "punctuation":
            text = "".join(letter for letter in text if unicodedata.category(letter)[0] != "P")
        elif step == "accents":
            text = unicodedata.normalize(
                "NFC", "".join(x for x in unicodedata.normalize("NFD", text) if unicodedata.combining(x) == 0)
            )
        elif step == "nfc":
            text = unicodedata.normalize("NFC", text)
        elif step == "nfkc":
            text = unicodedata.normalize("NFKC", text)
    return text


def test_exact_match_and_contains():
    draw = random.Random(1)
    steps = ["strip", "casefold", "spaces", "punctuation", "accents", "nfc", "nfkc"]
    hits = 0
    for _ in range(ROUNDS):
        chosen = draw.sample(steps, draw.randrange(4))
        gold = text(draw)
        answer = draw.choice([gold, gold.upper(), f" {gold}!", unicodedata.normalize("NFD", gold), text(draw)])
        want, got = slow_normal(gold, chosen), slow_normal(answer, chosen)
        assert normalize(answer, chosen) == got
        assert scored({"id": "exact_match", "normalize": chosen}, gold, answer) == (want == got)
        inside = any(got[i : i + len(want)] == want for i in range(len(got) + 1))
        assert scored({"id": "contains", "normalize": chosen}, gold, answer) == inside
        hits += want == got
    assert 50 < hits < ROUNDS - 50


def test_unicode_forms_change_nothing_else():
    for form in ("nfc", "nfkc"):
        assert normalize(" A b.  C!\n", (form,)) == " A b.  C!\n"
    assert scored({"id": "exact_match"}, "caf\u00e9", "cafe\u0301") == 0
    assert scored({"id": "exact_match", "normalize": ["nfc"]}, "caf\u00e9", "cafe\u0301") == 1
    assert scored({"id": "exact_match", "normalize": ["nfc"]}, "2", "²") == 0
    assert scored({"id": "exact_match", "normalize": ["nfkc"]}, "2", "²") == 1
    assert normalize("한국", ("accents",)) == "한국"


def test_regex_takes_the_group_that_caught():
    draw = random.Random(2)
    branches = [r"is (\w)\b", r"\((\w)\)", r"=(\w)", r"<(\w)>(\w)"]
    spell = ["it is {}", "so ({})", "x={}", "<{}>z", "nothing of {}", "({}) and is {}"]
    for _ in range(ROUNDS):
        chosen = draw.sample(branches, draw.randrange(1, 4))

        def last(said, chosen=chosen):
            """Each branch alone, the match that begins last, and of branches that begin there the first."""
            found = [
                (match.start(), -order, next(group for group in match.groups() if group is not None))
                for order, branch in enumerate(chosen)
                for match in re.finditer(branch, said)
            ]
            return max(found)[2] if found else None

        gold = draw.choice(spell).replace("{}", draw.choice("ABC"))
        answer = draw.choice(spell).replace("{}", draw.choice("ABC"))
        wanted, here = last(gold), last(answer)
        want = (here is not None and here == (wanted or gold)) or (here is None and wanted is None and answer == gold)
        got = scored({"id": "regex", "pattern": "|".join(chosen), "normalize": []}, gold, answer)
        assert got == want, (chosen, gold, answer)


def test_a_group_that_took_no_part_catches_nothing():
    assert scored({"id": "regex", "pattern": r"answer(?: is (\w))?"}, "answer is A", "answer") == 0
    assert scored({"id": "regex", "pattern": r"answer(?: is (\w))?"}, "answer", "answer, no letter") == 0
    assert scored({"id": "regex", "pattern": r"a(b)|c(d)|e(f)"}, "cd", "x ef") == 0
    assert scored({"id": "regex", "pattern": r"a(b)|c(b)|e(f)"}, "b", "x cb") == 1


def spelled(draw, number):
    """One number in one of many spellings, all of which mean it whatever the decimal sign is."""
    sign = "-" if number < 0 else ""
    whole, rest = divmod(abs(number), 1)
    whole = int(whole)
    plain = f"{whole:,}".split(",")
    groups = [mark.join(plain) for mark in (" ", "\u202f", "\u00a0", "'", "\u2019", "_")] + [str(whole)]
    grouped = draw.choice(groups)
    if len(plain) > 2:
        grouped = draw.choice([grouped, ",".join(plain), ".".join(plain)])
    digits = ""
    if rest:
        shown = f"{float(rest):.6f}".rstrip("0")[2:]
        assert Fraction(int(shown), 10 ** len(shown)) == rest
        mark = "," if "." in grouped else "." if "," in grouped else draw.choice(".,")
        # A comma or point with three digits after it could be a group.
        mark_ok = len(shown) != 3 or "," in grouped or "." in grouped or (len(str(whole)) > 3 and grouped == str(whole))
        digits = (mark if mark_ok or mark == "." else ".") + shown
    body = sign + draw.choice(["", "", "$", "€"]) + grouped + digits
    if draw.random() < 0.2:
        body = body.translate({48 + n: 0x0966 + n for n in range(10)})
    if draw.random() < 0.2:
        body = body.replace("-", "\u2212")
    return draw.choice(["{}", "It is {}.", "= {} km", "a 7, then {}", "#### {}"]).format(body)


def test_a_number_in_any_spelling_is_that_number_and_no_other():
    draw = random.Random(3)
    for _ in range(4 * ROUNDS):
        number = Fraction(draw.randrange(-(10 ** draw.randrange(1, 9)), 10 ** draw.randrange(1, 9)))
        number += draw.choice([0, Fraction(1, 2), Fraction(3, 4), Fraction(7, 1000), Fraction(1, 10)])
        answer = spelled(draw, number)
        assert final_number(answer) == number, (answer, number)
        other = number + draw.choice([1, -1, 10, 1000, Fraction(1, 4)])
        assert scored("numeric", spelled(draw, other), answer) == 0
        assert scored("numeric", spelled(draw, number), answer) == 1


def test_groups_of_other_systems_and_fractions():
    draw = random.Random(4)
    for _ in range(ROUNDS):
        number = draw.randrange(10**5, 10**12)
        head, tail = str(number)[:-3], str(number)[-3:]
        lakh = ",".join([*(head[max(0, i - 2) : i] for i in range(len(head), 0, -2))][::-1]) + "," + tail
        assert final_number(f"₹{lakh}") == number
        digits = str(number)
        myriad = ",".join([*(digits[max(0, i - 4) : i] for i in range(len(digits), 0, -4))][::-1])
        assert final_number(myriad) == number
        top, bottom = draw.randrange(1, 40), draw.randrange(2, 40)
        whole = draw.randrange(1, 9)
        for said in (
            f"{top}/{bottom}",
            f"{top} / {bottom}",
            rf"\frac{{{top}}}{{{bottom}}}",
            rf"\dfrac{{{top}}}{{{bottom}}}",
        ):
            assert final_number(said) == Fraction(top, bottom)
            assert scored("numeric", f"{top}/{bottom}", f"so {said}.") == 1
            assert scored("numeric", f"{top + 1}/{bottom}", said) == 0
            assert scored("numeric", str(bottom), said) == (Fraction(top, bottom) == bottom)
        if top < bottom:
            assert final_number(f"{whole} {top}/{bottom}") == whole + Fraction(top, bottom)


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("1.234,56 €", Fraction(123456, 100)), ("1,5", Fraction(3, 2)), ("1,234", 1234),
        ("1.234", Fraction(1234, 1000)),
        ("12:30", None), ("2026-11-29", None), ("29/11/2026", None), ("3-4", None), ("1.2.3", None),
        ("192.168.0.1", None),
        ("1,2,3", None), ("1, 2, 3", 3), ("0x1F", None), ("2√3", None), ("3π", None), (r"\sqrt{3}", None),
        (r"2\pi", None),
        ("1 / 0", None), ("1e400", None), ("10^6", 10**6), ("1.5 × 10^6", 1_500_000),
        (r"2 \times 10^{-3}", Fraction(2, 1000)),
        ("3 million", 3_000_000), ("12k", 12_000), ("12kg", 12), ("1.5 crore", 15_000_000), ("½", Fraction(1, 2)),
        ("1½", Fraction(3, 2)), ("١٢٫٥", Fraction(25, 2)), ("16-3=13", 13), ("-.5", Fraction(-1, 2)), ("$-5", -5),
        ("a-5", 5),
    ],
)  # fmt: skip
def test_a_run_of_digits_is_read_whole_or_not_at_all(said, number):
    assert final_number(said) == number
    for piece in re.findall(r"\d+", said):
        if number is None or Fraction(int(piece)) != number:
            assert scored("numeric", piece, f"The answer is {said}") in (0, None)


def test_names_hold_no_numbers():
    assert list(numbers_in("H2O and v2 and _3")) == []


def test_the_decimal_sign_can_be_said():
    assert scored({"id": "numeric", "decimal": "comma"}, "1.234", "1234") == 1
    assert scored({"id": "numeric", "decimal": "comma"}, "1,234", "1234") == 0
    assert scored({"id": "numeric", "decimal": "comma"}, "0,5", "1/2") == 1


@pytest.mark.parametrize("reference", ["12:30", "2√3", "1.2.3", "2026-11-29", "about 0x1F"])
def test_a_reference_that_cannot_be_read_is_refused_with_its_row(reference):
    with pytest.raises(DataError, match="row r: the reference"):
        scored("numeric", reference, "1")


def slow_words(said):
    """By clusters: a letter or digit with the marks behind it, joined while no script without spaces is in between."""
    found, last = [], False
    for cluster in re.findall(
        r"[^\W_][\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*|[\W_]",
        unicodedata.normalize("NFC", said.lower()),
    ):
        letter = cluster[0]
        if not letter.isalnum():
            last = False
            continue
        alone = "\u0e00" <= letter <= "\u0eff" or "\u3400" <= letter <= "\u9fff" or "\u3040" <= letter <= "\u30ff"
        if last and not alone:
            found[-1] += cluster
        else:
            found.append(cluster)
        last = not alone
    return found


def test_words_and_length_in_many_scripts():
    draw = random.Random(5)
    for _ in range(ROUNDS):
        said = text(draw, 30)
        assert score_words(said) == slow_words(said), said
        least, most = sorted((draw.randrange(1, 6), draw.randrange(1, 9)))
        assert scored({"id": "length", "min": least, "max": most}, None, said) == (
            least <= len(slow_words(said)) <= most
        )
        count = len(said.strip())
        assert scored({"id": "length", "unit": "characters", "min": least, "max": most}, None, said) == (
            least <= count <= most
        )


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ("हिन्दी भाषा", 2),
        ("한국어 단어 두개", 3),
        ("שָׁלוֹם עולם", 2),
        ("e\u0301te\u0301 caf\u00e9", 2),
        ("தமிழ் மொழி", 2),
        ("نمی‌خواهم", 1),
        ("日本語", 3),
    ],
)
def test_words_keep_their_marks(said, count):
    assert len(score_words(said)) == count
    assert scored("rouge_l", said, said) == 1


def slow_lcs(first, second):
    best = 0
    for size in range(len(first), 0, -1):
        for chosen in itertools.combinations(first, size):
            rest = iter(second)
            if all(any(word == other for other in rest) for word in chosen):
                return size
    return best


def test_rouge_is_the_longest_common_subsequence():
    draw = random.Random(6)
    for _ in range(ROUNDS // 4):
        gold, answer = (
            " ".join(draw.choices(["ab", "हि", "한국", "c1", "é"], k=draw.randrange(1, 8))) for _ in range(2)
        )
        common, one, two = (
            slow_lcs(score_words(gold), score_words(answer)),
            len(score_words(gold)),
            len(score_words(answer)),
        )
        precision, recall = common / two, common / one
        want = 2 * precision * recall / (precision + recall) if common else 0.0
        assert scored("rouge_l", gold, answer) == pytest.approx(want)


def slow_chrf(gold, answer):
    """Popović 2015, as sacrebleu computes it: n-grams of characters without white space, orders that neither has left
    out."""
    gold, answer = re.sub(r"\s", "", gold), re.sub(r"\s", "", answer)
    total, orders = [0.0, 0.0], 0
    for size in range(1, 7):
        ours = [answer[i : i + size] for i in range(len(answer) - size + 1)]
        theirs = [gold[i : i + size] for i in range(len(gold) - size + 1)]
        if not ours or not theirs:
            continue
        shared = sum(min(ours.count(gram), theirs.count(gram)) for gram in set(ours))
        total[0] += shared / len(ours)
        total[1] += shared / len(theirs)
        orders += 1
    if not orders or not total[0] + total[1]:
        return 0.0
    precision, recall = total[0] / orders, total[1] / orders
    return 5 * precision * recall / (4 * precision + recall)


def test_chrf_is_the_f_score_of_character_n_grams():
    draw = random.Random(7)
    for _ in range(ROUNDS // 2):
        gold = "".join(draw.choices("abc de", k=draw.randrange(3, 15)))
        answer = draw.choice([gold, gold[1:], "".join(draw.choices("abc de", k=draw.randrange(3, 15)))])
        if not gold.strip() or not answer.strip():
            continue
        assert scored("chrf", gold, answer) == pytest.approx(slow_chrf(gold, answer), abs=1e-6), (gold, answer)


def same(one, two):
    """Equality of JSON values, where 1 is 1.0 and True is neither."""
    if isinstance(one, bool) or isinstance(two, bool) or one is None or two is None:
        return one is two
    if isinstance(one, int | float) and isinstance(two, int | float):
        return float(one) == float(two)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


def flat(value, path=()):
    if isinstance(value, dict) and value:
        return [pair for key, item in value.items() for pair in flat(item, (*path, key))]
    if isinstance(value, list) and value:
        return [pair for index, item in enumerate(value) for pair in flat(item, (*path, index))]
    return [(path, value)]


def test_json_metrics():
    draw = random.Random(8)
    for _ in range(ROUNDS):
        gold = {draw.choice("abc"): value(draw) for _ in range(3)}
        other = draw.choice([gold, {**gold, draw.choice("abcd"): value(draw)}, value(draw)])
        answer = draw.choice([json.dumps(other), json.dumps(other, indent=2), json.dumps(other)[:-1], "nonsense"])
        try:
            found = json.loads(answer)
            readable = True
        except ValueError:
            found, readable = None, False
        assert scored("json_valid", None, answer) == readable
        right = [isinstance(found, dict) and key in found and same(found[key], gold[key]) for key in gold]
        assert scored("json_field_accuracy", gold, answer) == pytest.approx(sum(right) / len(right))
        assert scored({"id": "exact_match", "normalize": ["json"]}, gold, answer) == (readable and same(found, gold))
        if not readable:
            assert scored("json_field_f1", gold, answer) == 0
            continue
        ours, theirs = flat(found), flat(gold)
        left = list(theirs)
        shared = 0
        for path, item in ours:
            hit = next((pair for pair in left if pair[0] == path and same(pair[1], item)), None)
            if hit:
                left.remove(hit)
                shared += 1
        assert scored("json_field_f1", gold, answer) == pytest.approx(2 * shared / (len(ours) + len(theirs)))


def test_choice_accuracy():
    draw = random.Random(9)
    for _ in range(ROUNDS):
        labels = draw.sample(["Yes", "no", "May be", "é"], 3)
        gold = draw.choice(labels)
        answer = draw.choice([gold, gold.upper(), f" {gold} ", draw.choice(labels), "else", ""])
        spell = lambda said: said.strip().casefold()  # noqa: E731
        assert scored({"id": "choice_accuracy", "choices": labels}, gold, answer) == (spell(answer) == spell(gold))
