"""Synthetic long documents with hidden facts, and questions about them. Standard library only.

A document is filler text (sentences from templates and word lists) with `keys` hidden facts of the form "The secret word
of Alice Brown is amber falcon." A question asks for one of them. Everything is drawn from one seed, so a tuple (seed,
tokens, depth, keys) always gives the same document.
"""
import random

FIRST_NAMES = """Alice Boris Clara David Elena Felix Greta Henry Irene Jonas Karin Louis Maria Nadia Oscar Paula
Quinn Rosa Simon Tilda Ursula Victor Wanda Xavier Yvonne Zoltan Agnes Bruno Cecil Doris Edgar Fiona Gustav Hilda
Igor Julia Klaus Laura Martin Nora Otto Petra Ralf Sofia Theo Uma Vera Walter Astrid Bella Carlos Diana Emil Frida
George Hanna Ivan Jasper Katja Leon Mona Nils Olga Peter Rita Samuel Tara Ulrich Vilma Werner Anton Birgit Conrad
Dora Ernst Flora Gerald Helga Isaac Judith Konrad Lydia Marcus Nina Oliver Pia Robert Stella Thomas Viola Wilma
Arthur Brenda Cyril Daphne Eugene Gloria Harold Ingrid Jerome Kira Lorenz Miriam Norman Odette Philip Ramona Sergio
Tamara Vincent Willow Adrian Beatrix Damian Edith Fabian Gemma Hector Isabel Julian Leah""".split()
LAST_NAMES = """Abbott Barker Carver Dalton Egger Fisher Garner Hobbs Irving Jansen Keller Lambert Mercer Norton
Osborn Porter Quigley Ramsey Sawyer Turner Underhill Vaughan Webber Xander Yates Ziegler Archer Brewer Cooper Draper
Ellis Fowler Glover Hunter Ibsen Judd Kramer Lawson Marlow Nash Oakley Palmer Reeves Slater Thatcher Upton Vogel
Walker Yorke Zimmer Ashford Bishop Chandler Dyer Eastman Farmer Gardner Harper Ingram Joyner Kirby Langley Mason
Naylor Olsen Parker Rhodes Shepherd Tanner Usher Vickers Wheeler Young Atwood Bennett Collins Dawson Emerson Foster
Gibson Hansen Ivers Jordan Knight Lindgren Morris Newton Orwell Pearson Rowland Stanton Tucker Vance Winters Adler
Bauer Corbett Donovan Elwood Fleming Gallagher Hewitt Keating Lockhart Maddox Nolan Paxton Redmond Sinclair Thornton
Wakefield Blackwood Crawford Everett Fairfax Goodwin Halloway Kingsley""".split()
ADJECTIVES = """amber ancient bitter blue bold brave bright broken bronze calm clever cold copper cosmic crimson
curious damp dark deep distant dusty eager early empty faint famous fancy fast fierce final foggy fresh frozen gentle
giant golden grand green grey happy harsh heavy hidden hollow honest huge humble icy iron ivory jolly keen kind large
lazy light little lonely loud lucky mellow merry mighty modest narrow neat new noble noisy odd old olive orange pale
patient plain polite proud purple quick quiet rapid rare red rich rough round royal rusty sacred scarlet secretive
shallow sharp shiny shy silent silver simple sleepy slow small smooth soft solid sour stale steady steep stormy
strange strong sudden sweet swift tall tame tender thick thin tidy tiny tired tough velvet violet warm wary weak
white wide wild wise wooden yellow young""".split()
NOUNS = """acorn anchor ankle apple arrow badger balloon banner barrel basket beacon beaver bell bench bottle bridge
bucket butter button cabin camel candle canyon carpet castle cellar chapel cherry chimney circle cliff clock cloud
clover coach coast comet compass corner cottage cotton crane cricket crown crystal dagger daisy desert diamond dolphin
donkey dragon drawer eagle elbow engine falcon feather fence ferry fiddle field finger flame flute forest fountain fox
garden garlic gate giraffe glacier glass glove goat grape gravel guitar hammer harbor harvest hawk hazel helmet hill
honey horse island ivy jacket jaguar jewel jungle kettle kitten ladder lake lantern lemon leopard letter library lily
lion lizard lobster locket magnet maple marble market meadow melon mirror monkey moon mountain muffin needle nest ocean
olive onion orchard otter owl paddle palace panda paper parrot peach pebble pencil pepper piano pigeon pillow pine
planet plum pocket pony potato prairie puddle pumpkin puzzle rabbit radish raven ribbon river rocket roof rooster rope
saddle sailor salmon school shadow shell shovel signal skater spider spoon spring square squirrel stable station
stone summit table teapot temple thunder tiger timber tower trail train trumpet tulip tunnel turtle valley village
violin wagon walnut water whale wheat willow window winter wizard wolf yard zebra""".split()
VERBS = """admired asked avoided baked borrowed bought brought built called carried caught chased cleaned climbed
collected counted covered crossed described discovered drew dropped entered examined expected explained followed
forgot found fixed gathered guarded heard helped hid ignored imagined invited joined kept kicked knew left lifted
liked loved measured mended missed moved needed noticed opened ordered painted passed planted pulled pushed reached
read remembered repaired saved saw searched seemed sent shared showed sold studied touched trusted turned used visited
waited wanted warned washed watched welcomed wrote""".split()
ADVERBS = """again almost always away badly barely bravely briefly calmly carefully closely daily deeply easily
eagerly finally firmly gladly gently hardly here inside kindly lately later loudly mostly nearly never nicely now often
once openly outside perhaps quickly quietly rarely safely seldom slowly softly sometimes soon still suddenly there
today together twice usually warmly well yesterday""".split()
PEOPLE = """baker boatman captain carpenter child clerk cook doctor farmer guard guest hunter judge king lawyer
mayor merchant miller musician neighbor nurse painter pilot poet priest queen ranger scholar shepherd singer smith
soldier stranger student tailor teacher traveler uncle waiter weaver widow writer""".split()

_TEMPLATES = (
    "The {j} {p} {v} the {n} {d}.",
    "A {n} near the {j} {m} was {k}.",
    "{D}, the {p} {v} a {j} {n} and a {m}.",
    "Every {n} in the {m} {v} the {j} {p}.",
    "It was {d} that the {p} {v} the {n}, and the {q} {w} it.",
    "Some said the {n} was {j}; others {v} the {m} {d}.",
    "Behind the {n} stood a {j} {m}, which the {p} {v}.",
    "When the {p} {v} the {n}, the {j} {q} {w} {d}.",
    "There were {c} {j} things by the {n}.",
    "No {p} {d} {v} the {j} {n} of the {m}.",
)
_COUNTS = "two three four five six seven eight nine ten eleven twelve".split()


class Pools:
    """The words of documents. Small pools make short documents as confusing as very long ones."""

    def __init__(self, first=FIRST_NAMES, last=LAST_NAMES, adjectives=ADJECTIVES, nouns=NOUNS):
        self.first, self.last, self.adjectives, self.nouns = first, last, adjectives, nouns


ALL_WORDS = Pools()


def small_pools(rng):
    return Pools(rng.sample(FIRST_NAMES, 9), rng.sample(LAST_NAMES, 9), rng.sample(ADJECTIVES, rng.randint(10, 30)),
                 rng.sample(NOUNS, rng.randint(20, 50)))


def filler_sentence(rng, pools=ALL_WORDS):
    d = rng.choice(ADVERBS)
    return rng.choice(_TEMPLATES).format(
        j=rng.choice(pools.adjectives), k=rng.choice(pools.adjectives), p=rng.choice(PEOPLE), q=rng.choice(PEOPLE),
        n=rng.choice(pools.nouns), m=rng.choice(pools.nouns), v=rng.choice(VERBS), w=rng.choice(VERBS), d=d,
        D=d.capitalize(), c=rng.choice(_COUNTS))


def draw_facts(rng, keys, pools=ALL_WORDS):
    """[(name, value)] with distinct names. A first or a last name may occur in several facts."""
    facts, seen = [], set()
    while len(facts) < keys:
        name = f"{rng.choice(pools.first)} {rng.choice(pools.last)}"
        if name not in seen:
            seen.add(name)
            facts.append((name, f"{rng.choice(pools.adjectives)} {rng.choice(pools.nouns)}"))
    return facts


def fact_sentence(name, value):
    return f"The secret word of {name} is {value}."


def question_text(name):
    return f"What is the secret word of {name}?"


def answer_text(name, value):
    return fact_sentence(name, value)


def make_document(rng, sentences, facts, depths, pools=ALL_WORDS):
    """`sentences` filler sentences in paragraphs, with each fact at its depth (0 = first, 1 = last)."""
    lines = [filler_sentence(rng, pools) for _ in range(sentences)]
    places = sorted(((min(int(d * (len(lines) + 1)), len(lines)), f) for f, d in zip(facts, depths)),
                    key=lambda x: -x[0])
    for place, (name, value) in places:
        lines.insert(place, fact_sentence(name, value))
    out, i = [], 0
    while i < len(lines):
        length = rng.randint(4, 9)
        out.append(" ".join(lines[i:i + length]))
        i += length
    return "\n".join(out)


TOKENS_PER_SENTENCE = 12.48  # mean of the committed tokenizer over 10,000 filler sentences
TOKENS_PER_SEPARATOR = 1.095  # tokens per space, line end or punctuation mark


def make_asked(seed, tokens, depths, keys=1, count_tokens=None):
    """A document of about `tokens` tokens with facts at `depths` (and more at random depths, up to `keys` facts in all), and
    the facts at `depths`. With `count_tokens` (text -> int), it has at most `tokens` tokens, and at least 99 % of them."""
    rng = random.Random(seed)
    facts = draw_facts(rng, max(keys, len(depths)))
    places = list(depths) + [rng.random() for _ in range(len(facts) - len(depths))]
    sentences = max(0, int(tokens / TOKENS_PER_SENTENCE) - len(facts))
    state = rng.getstate()
    for _ in range(6):
        rng.setstate(state)
        document = make_document(rng, sentences, facts, places)
        if count_tokens is None:
            break
        count = count_tokens(document)
        if 0.99 * tokens <= count <= tokens or sentences == 0:
            break
        sentences = max(0, int(sentences * (tokens * 0.995) / max(count, 1)))
    return document, facts[:len(depths)]


def make_sample(seed, tokens, depth, keys=1, count_tokens=None):
    """A dict with document, question, answer and value: one asked fact at `depth`, among `keys` facts."""
    document, ((name, value),) = make_asked(seed, tokens, [depth], keys, count_tokens)
    return {"document": document, "question": question_text(name), "answer": answer_text(name, value), "value": value}
