"""The grammar of toy-language: a document as a sequence of choices, each of the next word.

What may follow, and how likely each word is, is a function of the words before. So a text has one
derivation, and its probability is the product of its choices: the same rules write and parse.

The rules, with what a model has to keep in mind for them:

- A document begins with names ("This is the tale of Bado and Kelda."), and later ones may join
  ("Then came Mira."). A name that is referred to is one of these: recall.
- A verb agrees with its subject, however many phrases stand between ("The bakers near the small
  tower often singen and walken."): agreement.
- What is packed stands in nested brackets of three kinds: "packes (lamp [coin {key}] rope)."
- A document has one song. The first to chant it makes it up, and it is repeated word by word ever
  after ('chantes "la ki mo te".'): copying.
"""

import functools
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from rung.data.toy_choices import Choice, Unused, Words, only, single, zipf
from rung.data.toy_lexicon import Lexicon

END_OF_DOCUMENT = ""  # the word after a document's last one
SINGULAR, PLURAL = 0, 1
VERB_ENDINGS = ("es", "en")
CLOSING = {"(": ")", "[": "]", "{": "}"}
BEGIN_SONG, END_SONG = "“”"  # in the text, both are the straight quotation mark

Result = TypeVar("Result")
# Yields the choice of each next word, is sent the word, and returns what the rule found out.
Rule = Generator[Choice, str, Result]


@dataclass(frozen=True, kw_only=True)
class GrammarLimits:
    """The most, or the least and the most, of what the rules repeat."""

    introduced: int = 4  # names in the first sentence
    names: int = 6
    adjectives: int = 2  # of a noun
    phrases: int = 3  # with a preposition, behind a noun or a verb
    depth: int = 6  # of brackets
    items: int = 4  # in a pair of brackets
    song: tuple[int, int] = (4, 8)  # words
    sentences: tuple[int, int] = (5, 60)  # after the first


class Verbs(NamedTuple):
    """The verbs of one number."""

    intransitive: Words
    transitive: Words
    pack: Words
    chant: Words


class Grammar:
    """The words of a lexicon with their weights, and the choices that no document changes."""

    def __init__(self, lexicon: Lexicon | None = None, limits: GrammarLimits | None = None) -> None:
        lexicon, self.limits = lexicon or Lexicon(), limits or GrammarLimits()
        self.names, self.notes = Words(lexicon.names), Words(lexicon.notes)
        self.nouns = zipf(lexicon.nouns), zipf([f"{noun}s" for noun in lexicon.nouns])
        self.determiners = zipf(lexicon.singular_determiners), zipf(lexicon.plural_determiners)
        self.adjectives, self.adverbs = zipf(lexicon.adjectives), zipf(lexicon.adverbs)
        self.intensifiers = zipf(lexicon.intensifiers)
        self.prepositions = zipf(lexicon.prepositions)
        self.verbs = [
            Verbs(
                zipf([f"{stem}{ending}" for stem in lexicon.intransitive]),
                zipf([f"{stem}{ending}" for stem in lexicon.transitive]),
                Words([f"pack{ending}"]),
                Words([f"chant{ending}"]),
            )
            for ending in VERB_ENDINGS
        ]
        self.adverb = Choice((1, self.adverbs))
        self.verb = [Choice(*self.any_verb(number)) for number in (SINGULAR, PLURAL)]
        self.plain_verb = [Choice(*self.any_verb(number)[:2]) for number in (SINGULAR, PLURAL)]
        self.openings = Words(CLOSING)
        self.opening = Choice((1, self.openings))
        # There are few of these, and each is made once.
        self.after_new_name = functools.cache(self._after_new_name)
        self.noun = functools.cache(self._noun)
        self.after_subject = functools.cache(self._after_subject)
        self.after_verb = functools.cache(self._after_verb)
        self.item = functools.cache(self._item)

    def any_determiner(self) -> list[tuple[int, Words]]:
        """Return the classes of determiners; their weights sum to 20."""
        singular, plural = self.determiners
        return [(10, single("the")), (6, singular), (4, plural)]

    def any_verb(self, number: int) -> list[tuple[int, Words]]:
        """Return the classes of verbs of one number; their weights sum to 12."""
        return list(zip((5, 5, 1, 1), self.verbs[number], strict=True))

    def _after_new_name(self, count: int, most: int) -> Choice:
        """Return what follows the last of `count` names in a row, of at most `most`."""
        return Choice(
            (3 * (count == 1), single(".")),
            (3 * (count < most), single("and")),
            (3 * (count < most - 1), single(",")),
        )

    def _noun(self, determiner: str, more: bool) -> Choice:
        """Return what follows a determiner: a noun of its number or, where there may be more, an
        adjective."""
        singular, plural = self.determiners
        return Choice(
            (3 * (determiner not in plural), self.nouns[SINGULAR]),
            (2 * (determiner not in singular), self.nouns[PLURAL]),
            (2 * more, self.adjectives),
        )

    def _after_subject(self, number: int, more: bool) -> Choice:
        """Return what follows a noun or the phrases behind it, of which there may be more."""
        return Choice(
            (6 * more, self.prepositions),
            (2, self.adverbs),
            (1, self.intensifiers),
            *self.any_verb(number),
        )

    def _after_verb(self, more: bool, another: bool) -> Choice:
        """Return what follows a verb and its object: phrases, another verb, or the full stop."""
        return Choice((4 * more, self.prepositions), (2 * another, single("and")), (7, single(".")))

    def _item(self, closing: str, first: bool, deeper: bool) -> Choice:
        """Return what follows in brackets: a thing, other brackets or, after the first, the end."""
        singular, plural = self.nouns
        return Choice(
            (3, singular),
            (2, plural),
            (2 * deeper, self.openings),
            (6 * (not first), single(closing)),
        )


class Document:
    """The rules of a document, and what its words so far have settled: its names and its song."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar, self.limits = grammar, grammar.limits
        self.names: list[str] = []
        self.song: list[str] = []

    def write(self) -> Rule[None]:
        """Write the sentence that introduces the names, then others, and the end."""
        yield from self._introduce()
        least, most = self.limits.sentences
        for number in range(most):
            word = yield self._begin_sentence(may_end=number >= least)
            if word == END_OF_DOCUMENT:
                return
            yield from self._sentence(word)
        yield only(END_OF_DOCUMENT)

    def _introduce(self) -> Rule[None]:
        for word in ("this", "is", "the", "tale", "of"):
            yield only(word)
        yield from self._new_name()
        most = self.limits.introduced
        while (word := (yield self.grammar.after_new_name(len(self.names), most))) == ",":
            yield from self._new_name()
        if word == "and":
            yield from self._new_name()
            yield only(".")

    def _new_name(self) -> Rule[None]:
        self.names.append((yield Choice((1, Unused(self.grammar.names, self.names)))))
        self.known = Words(self.names)

    def _begin_sentence(self, may_end: bool) -> Choice:
        return Choice(
            *self.grammar.any_determiner(),
            (14, self.known),
            (4, self.grammar.prepositions),
            (2 * (len(self.names) < self.limits.names), single("then")),
            (2 * may_end, single(END_OF_DOCUMENT)),
        )

    def _sentence(self, word: str) -> Rule[None]:
        """Write a sentence from its first word on, to its full stop."""
        if word == "then":
            yield only("came")
            yield from self._new_name()
            yield only(".")
            return
        if word in self.grammar.prepositions:
            yield from self._someone()
            yield only(",")
            word = yield self._anyone()
        number, verb = yield from self._subject(word)
        yield from self._predicate(number, verb)

    def _anyone(self) -> Choice:
        """Return how someone or something begins: with a determiner or a known name."""
        return Choice(*self.grammar.any_determiner(), (8, self.known))

    def _someone(self) -> Rule[None]:
        word = yield self._anyone()
        if word not in self.names:
            yield from self._noun(word)

    def _noun(self, determiner: str) -> Rule[int]:
        """Write adjectives and a noun, and return its number."""
        for left in reversed(range(self.limits.adjectives + 1)):
            word = yield self.grammar.noun(determiner, left > 0)
            if word not in self.grammar.adjectives:
                break
        return SINGULAR if word in self.grammar.nouns[SINGULAR] else PLURAL

    def _subject(self, word: str) -> Rule[tuple[int, str]]:
        """Write a subject from its first word on; return its number, and the verb after it."""
        grammar = self.grammar
        if word in self.names:
            number, word = yield from self._named_subject(word)
        else:
            number, left = (yield from self._noun(word)), self.limits.phrases
            word = yield grammar.after_subject(number, left > 0)
            while word in grammar.prepositions:
                yield from self._someone()
                left -= 1
                word = yield grammar.after_subject(number, left > 0)
        if word in grammar.intensifiers:
            word = yield grammar.adverb
        if word in grammar.adverbs:
            word = yield grammar.verb[number]
        return number, word

    def _named_subject(self, name: str) -> Rule[tuple[int, str]]:
        """Write what follows a name: another one, which makes a plural, or an adverb, or a verb."""
        others = [other for other in self.names if other != name]
        adverbs, verbs = [(2, self.grammar.adverbs)], self.grammar.any_verb
        if not others:
            return SINGULAR, (yield Choice(*adverbs, *verbs(SINGULAR)))
        word = yield Choice((4, single("and")), *adverbs, *verbs(SINGULAR))
        if word != "and":
            return SINGULAR, word
        yield Choice((1, Words(others)))
        return PLURAL, (yield Choice(*adverbs, *verbs(PLURAL)))

    def _predicate(self, number: int, verb: str) -> Rule[None]:
        """Write what follows a verb, to the full stop."""
        verbs = self.grammar.verbs[number]
        if verb in verbs.pack:
            yield from self._brackets((yield self.grammar.opening), 1)
            yield only(".")
        elif verb in verbs.chant:
            yield from self._song()
            yield only(".")
        else:
            another = True
            while (yield from self._action(number, verb, another)) == "and":
                verb, another = (yield self.grammar.plain_verb[number]), False

    def _action(self, number: int, verb: str, another: bool) -> Rule[str]:
        """Write an object and phrases after a verb, and return the word behind them."""
        if verb in self.grammar.verbs[number].transitive:
            yield from self._someone()
        for left in reversed(range(self.limits.phrases + 1)):
            word = yield self.grammar.after_verb(left > 0, another)
            if word not in self.grammar.prepositions:
                break
            yield from self._someone()
        return word

    def _brackets(self, opening: str, depth: int) -> Rule[None]:
        """Write what follows an opening bracket, to the closing one."""
        closing = CLOSING[opening]
        for place in range(self.limits.items):
            word = yield self.grammar.item(closing, place == 0, depth < self.limits.depth)
            if word == closing:
                return
            if word in CLOSING:
                yield from self._brackets(word, depth + 1)
        yield only(closing)

    def _song(self) -> Rule[None]:
        """Write the document's song, which is made up when it is first sung."""
        yield only(BEGIN_SONG)
        for note in self.song:
            yield only(note)
        least, most = self.limits.song
        known = bool(self.song)
        while not known and len(self.song) < most:
            ends = len(self.song) >= least
            word = yield Choice((3, self.grammar.notes), (ends, single(END_SONG)))
            if word == END_SONG:
                return
            self.song.append(word)
        yield only(END_SONG)
