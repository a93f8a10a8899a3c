"""The official protocol of VQA v2: how answers are made comparable, and what an answer scores among ten annotators.

Source: ``PythonEvaluationTools/vqaEvaluation/vqaEval.py`` of github.com/GT-Vision-Lab/VQA (commit a013f00); Antol et al.,
"VQA: Visual Question Answering", arXiv:1505.00468, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ENOUGH = 3
"""Annotators that make an answer wholly right."""
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTED = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't
not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    # One apostrophe that is missing is put back; the protocol's own exception stands last.
    **{
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTED.split()
        for place, letter in enumerate(word)
        if letter == "'"
    },
    "somebody'd": "somebodyd",
}
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_STOPS = 32
"""The protocol hands the number of a flag to the place where the number of replacements stands."""


def normalise(answer: str) -> str:
    """An answer without punctuation and articles, numbers up to ten as digits, contractions with their apostrophe."""
    cleaned = answer = trim(answer)
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        cleaned = cleaned.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(answer) else " ")
    cleaned = _FULL_STOP.sub("", cleaned, count=_MOST_STOPS)
    words = (_DIGITS.get(word, word) for word in cleaned.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def trim(answer: str) -> str:
    """An answer on one line, without spaces around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def accuracy(answer: str, annotators: Sequence[str]) -> float:
    """What an answer scores, 0 to 1: the mean of min(1, matches / 3) over all subsets that leave one annotator out.

    Answers are normalised where the annotators do not all say the same, letter by letter; otherwise they are compared as
    they are.
    """
    given = [trim(one) for one in annotators]
    said = trim(answer)
    if len(set(given)) > 1:
        given, said = [normalise(one) for one in given], normalise(answer)
    matches = given.count(said)
    left_out = sum(min(1.0, (matches - (one == said)) / ENOUGH) for one in given)
    return left_out / len(given)


def soft_score(count: int) -> float:
    """The target of a class that ``count`` annotators gave: min(1, count / 3)."""
    return min(1.0, count / ENOUGH)
