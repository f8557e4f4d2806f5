"""Prompts for language models whose right answer comes from one token that is known.

A task is a list of templates; a template makes as many prompts of one length as are asked for, by filling in
words of one token each. The even templates are for choices, the odd ones for what is reported.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words(
    "Mary John Tom James Anna Sarah David Peter Paul Mark Emma Lucy Kate Jack Alice Robert Michael Susan "
    "Linda Laura Daniel George Henry Simon Martin Jane Amy Lisa Rachel Adam Brian Kevin Steve "
    "Andrew Alex Jason"
)
SURNAMES = _words(
    "Smith Brown Jones Taylor Wilson Clark Walker Young King Green Hill Baker Cooper Ward Gray Ross"
)
PLACES = _words(
    "store school park office garden market station hospital church library beach house hotel farm"
)
OBJECTS = _words("drink book ball ring letter key computer phone gift map coin card picture hat")
THINGS = _words("box car hat cup door bag ball chair table shirt lamp coat boat bird house flower")
COLOURS = _words("red blue green black white yellow brown pink gray purple orange")
FRUITS = _words("apple lemon orange bread milk rice sugar butter cheese meat fish salt tea coffee")
NUMBERS = _words("one two three four five six seven eight nine ten")
PROFESSIONS = _words("doctor teacher lawyer nurse farmer driver writer singer artist judge pilot chef")
CITIES = _words("London Paris Berlin Rome Madrid Boston Chicago Tokyo Vienna Moscow Sydney Dublin Toronto")
NOUNS = {
    "key": "keys", "dog": "dogs", "cat": "cats", "boy": "boys", "girl": "girls", "book": "books",
    "car": "cars", "teacher": "teachers", "doctor": "doctors", "student": "students", "horse": "horses",
    "picture": "pictures", "tree": "trees", "letter": "letters", "house": "houses", "bird": "birds",
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """One question to a language model."""

    text: str
    answer: str
    """The next word."""
    other: str
    """A wrong one that would fit as well."""
    source: str
    """The word that the answer comes from; it stands in the text once."""


Make = Callable[[str, random.Random, Callable[[Sequence[str]], list[str]]], Prompt]
"""(template, where chance comes from, which of some words may be used) -> a prompt."""


@dataclass(frozen=True)
class Task:
    """Templates, and how each makes a prompt."""

    name: str
    templates: tuple[str, ...]
    make: Make

    def numbers(self, half: str) -> range:
        """Those of the templates of a half: ``choice`` or ``report``."""
        return range(("choice", "report").index(half), len(self.templates), 2)

    def prompts(self, number: int, count: int, usable: Callable[[Sequence[str]], list[str]]) -> list[Prompt]:
        """Different prompts of a template; the first of them are the same however many are asked for.

        Args:
            usable: which of some words are one token of the model's.
        """
        chance = random.Random(1000 * number + 7)
        found: dict[str, Prompt] = {}
        while len(found) < count:
            prompt = self.make(self.templates[number], chance, usable)
            found.setdefault(prompt.text, prompt)
        return list(found.values())


def _indirect_object(
    template: str, chance: random.Random, usable: Callable[[Sequence[str]], list[str]]
) -> Prompt:
    """Of two people one gives something: to the other."""
    first, second = chance.sample(usable(NAMES), 2)
    giver, taker = chance.choice([(first, second), (second, first)])
    place, thing = chance.choice(usable(PLACES)), chance.choice(usable(OBJECTS))
    text = template.format(a=first, b=second, s=giver, p=place, o=thing)
    return Prompt(text, taker, giver, taker)


def _retrieval(template: str, chance: random.Random, usable: Callable[[Sequence[str]], list[str]]) -> Prompt:
    """One of three facts of a list is asked for."""
    keys, values = LISTS[next(kind for kind in LISTS if template.startswith(kind))]
    asked, told = chance.sample(usable(keys), 3), chance.sample(usable(values), 3)
    which = chance.randrange(3)
    wrong = chance.choice([value for value in told if value != told[which]])
    words = {f"k{n}": word for n, word in enumerate(asked)} | {f"v{n}": word for n, word in enumerate(told)}
    text = template.split("|", 1)[1].format(**words, k=asked[which])
    return Prompt(text, told[which], wrong, told[which])


def _copied_name(
    template: str, chance: random.Random, usable: Callable[[Sequence[str]], list[str]]
) -> Prompt:
    """One of three people is named again, by the first name: the surname follows."""
    firsts, lasts = chance.sample(usable(NAMES), 3), chance.sample(usable(SURNAMES), 3)
    which = chance.randrange(3)
    wrong = chance.choice([name for name in lasts if name != lasts[which]])
    words = {f"f{n}": name for n, name in enumerate(firsts)} | {f"l{n}": name for n, name in enumerate(lasts)}
    return Prompt(template.format(**words, f=firsts[which]), lasts[which], wrong, lasts[which])


def _agreement(template: str, chance: random.Random, usable: Callable[[Sequence[str]], list[str]]) -> Prompt:
    """The verb agrees with the subject, and not with the noun of the other number between."""
    both = [one for one in usable(list(NOUNS)) if usable([NOUNS[one]])]
    subject, between = chance.sample(both, 2)
    several = chance.random() < 0.5
    subject, between = (NOUNS[subject], between) if several else (subject, NOUNS[between])
    text, verbs = template.split("|")
    one, many = verbs.split("/")
    answer, other = (many, one) if several else (one, many)
    return Prompt(text.format(n=subject, m=between), answer, other, subject)


LISTS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "colour": (THINGS, COLOURS),
    "price": (FRUITS, NUMBERS),
    "work": (NAMES, PROFESSIONS),
    "city": (NAMES, CITIES),
}
"""Kind of list -> what is asked about, and what is told of it."""

INDIRECT_OBJECT = Task(
    "indirect object",
    (
        "When {a} and {b} went to the {p}, {s} gave a {o} to",
        "Then, {a} and {b} went to the {p}. {s} gave a {o} to",
        "Then, {a} and {b} had a lot of fun at the {p}. {s} gave a {o} to",
        "Then, {a} and {b} were working at the {p}. {s} decided to give a {o} to",
        "After {a} and {b} went to the {p}, {s} gave a {o} to",
        "When {a} and {b} got a {o} at the {p}, {s} decided to give it to",
        "While {a} and {b} were working at the {p}, {s} gave a {o} to",
        "After the lunch, {a} and {b} went to the {p}. {s} gave a {o} to",
        "Afterwards, {a} and {b} went to the {p}. {s} gave a {o} to",
        "Friends {a} and {b} found a {o} at the {p}. {s} gave it to",
        "Yesterday {a} and {b} met at the {p}, and {s} handed a {o} to",
        "Last night {a} met {b} at the {p}, where {s} showed a {o} to",
        "At the {p}, {a} sat next to {b}. Then {s} passed the {o} to",
        "In the {p}, {a} and {b} opened a {o}, and {s} offered it to",
        "The {p} was quiet when {a} and {b} came in, so {s} whispered to",
        "As {a} and {b} left the {p}, {s} threw the {o} to",
        "Today {a} and {b} cleaned the {p}, and {s} lent a {o} to",
        "On Monday {a} and {b} walked to the {p}. {s} brought a {o} to",
        "Once {a} and {b} were inside the {p}, {s} sold a {o} to",
        "Before {a} and {b} left the {p}, {s} returned the {o} to",
        "Here are {a} and {b} at the {p}. {s} is giving a {o} to",
        "Since {a} and {b} live near the {p}, {s} often sends a {o} to",
        "Two friends, {a} and {b}, were at the {p}. {s} told a story to",
        "In the morning {a} and {b} arrived at the {p}. {s} gave the {o} to",
        "Every day {a} and {b} meet in the {p}, and {s} says hello to",
        "Suddenly {a} saw {b} in the {p}. {s} smiled and gave a {o} to",
        "Long ago, {a} and {b} built a {p}, and {s} left it to",
        "There was a {o} in the {p}. {a} and {b} saw it, and {s} gave it to",
        "Because {a} and {b} were late for the {p}, {s} lent the {o} to",
        "While {a} was talking with {b} at the {p}, {s} showed the {o} to",
        "During a walk to the {p}, {a} and {b} got tired. {s} gave a {o} to",
        "If {a} and {b} go to the {p} again, {s} will give a {o} to",
        "Both {a} and {b} stayed in the {p}. In the evening, {s} wrote a letter to",
        "One day {a} and {b} lost a {o} near the {p}. {s} said sorry to",
        "Finally {a} and {b} reached the {p}, and {s} gave the {o} to",
        "With {a} and {b} alone in the {p}, {s} gave the {o} to",
        "My friends {a} and {b} work at the {p}. {s} sent a {o} to",
        "People saw {a} and {b} at the {p}. {s} was giving a {o} to",
        "Outside the {p}, {a} waited for {b}. Later {s} gave a {o} to",
        "For years {a} and {b} ran the {p} together, until {s} sold the {o} to",
    ),
    _indirect_object,
)
RETRIEVAL = Task(
    "retrieval",
    tuple(
        f"{kind}|{text}"
        for kind, texts in {
            "colour": (
                "The {k0} is {v0}. The {k1} is {v1}. The {k2} is {v2}. The {k} is",
                "My {k0} is {v0}, my {k1} is {v1}, and my {k2} is {v2}. So the {k} is",
                "Here is a list of colors. {k0}: {v0}, {k1}: {v1}, {k2}: {v2}. The color of the {k} is",
                "She has a {v0} {k0}, a {v1} {k1} and a {v2} {k2}. The {k} is",
                "They painted the {k0} {v0}, the {k1} {v1} and the {k2} {v2}. The color of the {k} is",
            ),
            "price": (
                "Prices: {k0} {v0}, {k1} {v1}, {k2} {v2}. The price of {k} is",
                "The {k0} costs {v0} dollars, the {k1} {v1} dollars, the {k2} {v2} dollars. The {k} costs",
                "We need {v0} of {k0}, {v1} of {k1} and {v2} of {k2}. The number for {k} is",
                "Order: {k0} = {v0}; {k1} = {v1}; {k2} = {v2}; {k} =",
                "In the shop {k0} is {v0}, {k1} is {v1}, and {k2} is {v2}. We bought {k} for",
            ),
            "work": (
                "Here {k0} is a {v0}, {k1} is a {v1} and {k2} is a {v2}. We know that {k} is a",
                "Names and jobs. {k0}: {v0}. {k1}: {v1}. {k2}: {v2}. {k}:",
                "The {v0} is {k0}, the {v1} is {k1}, the {v2} is {k2}. So {k} is the",
                "Since {k0} became a {v0}, {k1} a {v1} and {k2} a {v2}, the job of {k} is",
                "Table of staff: {k0} | {v0}, {k1} | {v1}, {k2} | {v2}, {k} |",
            ),
            "city": (
                "My friend {k0} lives in {v0}, {k1} lives in {v1}, {k2} lives in {v2}. To see {k} we go to",
                "Now {k0} is in {v0}, {k1} is in {v1}, {k2} is in {v2}. The city of {k} is",
                "Flights: {k0} to {v0}, {k1} to {v1}, {k2} to {v2}. So {k} flies to",
                "Home towns: {k0}, {v0}; {k1}, {v1}; {k2}, {v2}. The home town of {k} is",
                "Last year {k0} moved to {v0}, {k1} to {v1} and {k2} to {v2}. Today {k} lives in",
            ),
        }.items()
        for text in texts
    ),
    _retrieval,
)
COPIED_NAME = Task(
    "copied name",
    (
        "The people are {f0} {l0}, {f1} {l1} and {f2} {l2}. The first speaker is {f}",
        "We met {f0} {l0}, {f1} {l1} and {f2} {l2} at the party. I talked to {f}",
        "Authors: {f0} {l0}, {f1} {l1}, {f2} {l2}. Contact: {f}",
        "In the team play {f0} {l0}, {f1} {l1} and {f2} {l2}. The captain is {f}",
        "Dear {f0} {l0}, dear {f1} {l1}, dear {f2} {l2}, and again dear {f}",
        "The book was written by {f0} {l0}, {f1} {l1} and {f2} {l2}. The last chapter is by {f}",
        "Three candidates, {f0} {l0}, {f1} {l1} and {f2} {l2}, were there. The winner was {f}",
        "Today {f0} {l0} and {f1} {l1} met {f2} {l2}. The meeting was led by {f}",
        "There were letters from {f0} {l0}, from {f1} {l1} and from {f2} {l2}. She answered {f}",
        "Police asked {f0} {l0}, {f1} {l1} and {f2} {l2}. The thief was {f}",
        "Names: {f0} {l0}; {f1} {l1}; {f2} {l2}; {f}",
        "My teachers were {f0} {l0}, {f1} {l1} and {f2} {l2}. The best of them was {f}",
        "According to {f0} {l0} and {f1} {l1}, the painter {f2} {l2} was late. A friend of {f}",
        "On stage: {f0} {l0}, {f1} {l1}, {f2} {l2}. Please welcome {f}",
        "The judges {f0} {l0}, {f1} {l1} and {f2} {l2} agreed. The report was signed by {f}",
        "At the table sat {f0} {l0}, {f1} {l1} and {f2} {l2}. Then came the brother of {f}",
        "Guests: {f0} {l0}, {f1} {l1}, {f2} {l2}. The room of {f}",
        "He voted for {f0} {l0}, she for {f1} {l1}, they for {f2} {l2}. Nobody else voted for {f}",
        "Both {f0} {l0} and {f1} {l1} know {f2} {l2}. Nobody has seen {f}",
        "Next to {f0} {l0} stood {f1} {l1} and behind them {f2} {l2}. The photo was taken by {f}",
    ),
    _copied_name,
)
AGREEMENT = Task(
    "agreement",
    (
        "The {n} near the {m}|is/are",
        "The {n} near the {m}|was/were",
        "The {n} behind the {m}|is/are",
        "The {n} behind the {m}|has/have",
        "I know that the {n} with the {m}|is/are",
        "I know that the {n} next to the {m}|was/were",
        "Yesterday the {n} beside the {m}|was/were",
        "Yesterday the {n} in front of the {m}|was/were",
        "We think the {n} from the {m}|is/are",
        "We think the {n} above the {m}|has/have",
        "She said that the {n} that the {m} saw|was/were",
        "She said that the {n} that the {m} liked|is/are",
        "Today the {n} close to the {m}|is/are",
        "Today the {n} under the {m}|has/have",
        "It seems that the {n} of the {m}|is/are",
        "It seems that the {n} between the {m}|was/were",
        "Even the {n} by the {m}|was/were",
        "Even the {n} around the {m}|has/have",
        "Perhaps the {n} opposite the {m}|is/are",
        "Perhaps the {n} without the {m}|was/were",
    ),
    _agreement,
)
TASKS = {task.name: task for task in (INDIRECT_OBJECT, RETRIEVAL, COPIED_NAME, AGREEMENT)}
