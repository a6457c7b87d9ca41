"""Guesses the language of a prompt: by script if that decides, else by the most common words of seven languages.

Knows nothing about routers. Only LANGUAGES are recognised; for any other, or too short a text, there is no guess.
"""

from __future__ import annotations

import re
from collections import Counter

_SCRIPTS: dict[str, str] = {
    "ja": "\u3040-\u30ff",
    "ko": "\uac00-\ud7af\u1100-\u11ff",
    "zh": "\u4e00-\u9fff\u3400-\u4dbf",
    "ru": "\u0400-\u04ff",
    "el": "\u0370-\u03ff",
    "he": "\u0590-\u05ff",
    "ar": "\u0600-\u06ff",
    "hi": "\u0900-\u097f",
    "th": "\u0e00-\u0e7f",
}

_STOP_WORDS: dict[str, str] = {
    "en": "the of and to in is that it for was on are with as be at this have from or by not but what which how who "
    "you your can do does i we they please",
    "de": "der die das und ist nicht ein eine zu den von mit sich auf für dem des im auch es an werden aus er hat "
    "wie was ich sie wir bitte wer wo",
    "fr": "le la les des et est un une du dans que qui pour pas sur au avec il elle ce cette sont nous vous je plus "
    "quel quelle comment où être",
    "es": "el los las y es un una del en que por para con no se su al lo como más pero qué cuál cómo dónde está son "
    "yo usted quién",
    "it": "il lo gli e è un una di che per non con del della sono si come più ma anche questo quale dove chi cosa "
    "nel alla",
    "pt": "o os as e é um uma de do da em que por para com não se mais como mas foi ao qual onde quem você são nos "
    "pelo",
    "nl": "de het een en van is dat niet in op te zijn met voor aan er ook wat hoe wie waar ik je wij maar om naar "
    "welke",
}

LANGUAGES = (*_STOP_WORDS, *_SCRIPTS)

_SCRIPT_PATTERNS = {language: re.compile(f"[{chars}]") for language, chars in _SCRIPTS.items()}
_WORD_SETS = {language: frozenset(words.split()) for language, words in _STOP_WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+")


def guess_language(text: str) -> str | None:
    """The language's two-letter code (one of LANGUAGES), or None when the text does not tell.

    A script decides if at least a third of the letters belong to it; Japanese is tried before Chinese, since it uses
    both scripts. Otherwise the language with the most common words wins; a tie or no such word gives no guess.
    """
    letters = sum(char.isalpha() for char in text)
    if letters == 0:
        return None
    for language, pattern in _SCRIPT_PATTERNS.items():
        count = len(pattern.findall(text))
        if language == "ja" and count:  # a few kana among many Han characters suffice
            count += len(_SCRIPT_PATTERNS["zh"].findall(text))
        if 3 * count >= letters:
            return language
    words = Counter(_WORD.findall(text.lower()))
    scores = {lang: sum(n for word, n in words.items() if word in common) for lang, common in _WORD_SETS.items()}
    best = max(scores.values())
    winners = [language for language, score in scores.items() if score == best]
    return winners[0] if best > 0 and len(winners) == 1 else None
