"""The words of toy-language, by class, each class in the order of its words' frequency.

Nouns and adjectives begin with consonants, so that "a" stands before all of them. A noun takes -s
in the plural. A verb ends in -es after one and in -en after many, as in Chaucer's English, so that
both forms are equally long.
"""

from dataclasses import dataclass, field

NOUNS = """
baker dog king cat farmer bird miller horse sailor hound singer tree garden badger painter house
river bell teacher hunter boat mountain duck lamp queen hen brother sister tower smith goat
village door ship well bear stone road bridge monk doctor writer judge cook weaver frog crow snake
mole market neighbour driver guard soldier merchant beggar shepherd gardener builder dancer
fiddler potter rider robber scholar swimmer tailor traveller trader waiter winner wizard giant
dragon ghost knight prince lord maiden rabbit tiger lion monkey camel donkey colt pig lamb calf
bull whale seal crab turtle lizard spider beetle worm hawk raven swan pigeon sparrow robin parrot
palace castle temple chapel cottage cabin barn stable fence gate wall roof window chimney kitchen
cellar forest meadow valley hill cave desert shore harbour lake pond fountain statue mirror ladder
table chair carpet curtain pillow blanket basket bottle candle hammer needle pencil ribbon ring
crown coin key rope pen sword shield drum flute violin trumpet map book letter picture puppet kite
cart wagon wheel saddle sack barrel
"""
ADJECTIVES = """
small big young red good kind wise tall quiet green brave happy strong black white round clever
poor rich slow quick gentle proud hungry lazy merry sad cold warm wet dry clean dirty dark bright
broken new strange tired lonely loud soft sweet bitter heavy light long short wild tame golden
silver wooden blue brown yellow pale rough smooth sharp lucky noble humble careful cheerful
curious famous faithful foolish friendly jealous modest nervous patient polite rude selfish
serious silent stubborn timid
"""
ADVERBS = """
often gladly never always slowly quickly sometimes loudly quietly rarely boldly calmly proudly
kindly sadly wisely bravely warmly gently soon
"""
INTRANSITIVE_STEMS = """
sing sleep walk laugh wait danc work smil rest run stand dream fall swim jump climb wander shout
weep turn march listen kneel play whistl travel snor shiver sneez wav yawn stumbl trembl vanish
hesitat
"""
TRANSITIVE_STEMS = """
find greet watch help hear follow lov paint meet bring hold push pull thank teach feed wash lift
draw hid keep need want call catch chas clean count cross guard hunt join kick lead miss prais
reach sav send serv show touch trust visit admir bless carv defend forgiv ignor invit mock obey
rescu warn
"""


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


def _join(firsts: str, seconds: str) -> tuple[str, ...]:
    return tuple(first + second for first in firsts.split() for second in seconds.split())


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """The words of each class. Those of `names` are equally likely, the others follow Zipf's law.

    `intransitive` and `transitive` are stems of verbs, and `notes` the words of songs.
    """

    nouns: tuple[str, ...] = _split(NOUNS)
    adjectives: tuple[str, ...] = _split(ADJECTIVES)
    adverbs: tuple[str, ...] = _split(ADVERBS)
    intensifiers: tuple[str, ...] = ("very", "quite", "rather", "almost")
    prepositions: tuple[str, ...] = _split("near by behind beside with beyond above below without")
    singular_determiners: tuple[str, ...] = ("a", "every", "one")
    plural_determiners: tuple[str, ...] = ("some", "many", "two", "three")
    intransitive: tuple[str, ...] = _split(INTRANSITIVE_STEMS)
    transitive: tuple[str, ...] = _split(TRANSITIVE_STEMS)
    names: tuple[str, ...] = field(
        default=_join(
            "Ba Be Bo Da De Do Fa Fe Fi Ga Go Ha He Jo Ka Ke Ki La Le Li Lo Ma Me Mi Mo Na Ne "
            "Ni No Pa Pe Ra Re Ri Ro Sa Se So Ta Te Ti To Va Ve Vi Wa We Za Ze",
            "ba bo da do dra fa fo ka ko la lda lo ma mi mo na no nda ndo nka ra ri ro sa so ta to "
            "va vo za",
        )
    )
    notes: tuple[str, ...] = _join("d f k l m n r t", "a e i o u")
