"""Detection of a text's language, by script and by its most common small words. A heuristic, with limits to know:

it knows ten languages in Latin letters and tells other scripts apart only as scripts (Russian from Greek, not from
Ukrainian); a text of fewer than eight words, or one of names, numbers and code, has no language; and then nothing is
said. It catches a teacher that falls back into English, not a stray foreign word.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

from gemma_ops.data.hashed_words import hash_words

_SMALL = {
    "en": "the of and to in is that it for you with on this are be or your can not have will from if what how do which",
    "de": "der die das und ist nicht sie ein eine zu den mit für auf im von wird werden sich dem des kann wenn "
    "wie auch",
    "fr": "le la les des et est une un dans pour que vous qui pas sur avec votre du au ce sont ou être plus comment",
    "es": "el la los las de en que un una es para con por no se su del al como más puede lo si qué cómo cuando",
    "it": "il la di che è un una per non con del della gli le si da sono come può nel più questo alla quando cosa",
    "pt": "os as de em que um uma é para com não se do da no na por como mais pode seu você quando ao dos",
    "nl": "de het een en van is dat niet op te voor met zijn je in als kan worden ook naar aan of hoe wat bij",
    "sv": "och att det är en ett som för inte med av till den om du kan har när eller vad hur från vi på",
    "pl": "na nie się jest że do jak po dla czy co od przez lub można jeśli są być oraz jego kiedy który tego",
    "tr": "ve bir bu için ile da de ne mi olarak daha çok gibi olan var değil nasıl ya en her veya kadar sonra",
}
_SETS = {name: frozenset(text.split()) for name, text in _SMALL.items()}
_WEIGHTS = {
    name: {word: 1 / sum(word in other for other in _SETS.values()) for word in small} for name, small in _SETS.items()
}
"""Weight of each small word, which counts for less the more languages share it."""
_SCRIPTS = ("CYRILLIC", "GREEK", "ARABIC", "HEBREW", "HIRAGANA", "KATAKANA", "CJK", "HANGUL", "DEVANAGARI", "THAI",
    "BENGALI", "TAMIL")  # fmt: skip
_FEWEST = 8


def language(text: str) -> str | None:
    """Return `en`, `de`, … for Latin letters, a script's name such as `cyrillic` for others; None when it can't be
    told."""
    scripts = Counter(_script(letter) for letter in text[:4000] if letter.isalpha())
    if not scripts:
        return None
    kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
    if kana > 0.05 * scripts.total():  # Japanese mixes kana with Chinese characters
        return "japanese"
    script, count = scripts.most_common(1)[0]
    if count < 0.6 * scripts.total() or count < 4:
        return None
    if script != "LATIN":
        return None if script == "OTHER" else script.lower()
    found = hash_words(text)[:2000]
    if len(found) < _FEWEST:
        return None
    hits = Counter({name: sum(small.get(word, 0.0) for word in found) for name, small in _WEIGHTS.items()})
    (best, most), (_, second) = hits.most_common(2)
    telling = len(_SETS[best].intersection(found))
    return best if telling >= 3 and most >= 0.08 * len(found) and most > 1.5 * second else None


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "")
    if name.startswith("LATIN"):
        return "LATIN"
    return next((script for script in _SCRIPTS if name.startswith(script)), "OTHER")
