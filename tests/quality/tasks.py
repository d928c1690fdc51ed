"""Tasks that separate good approximations of attention from bad ones: long documents, questions, answers.

Definitions and parameter names are RULER's (arXiv 2404.06654); k-hop chains are our own. Words are the demo model's
(../reference_model/generator.py), so RULER's random numbers, UUIDs and coded words are words of small pools here. Standard
library only. The same seed gives the same document.

  niah   needles: "The secret word of Alice Brown is amber falcon."
         num_needle_k keys, num_needle_v values for each key, num_needle_q keys asked for; type_haystack `essay`
         (filler), `noise` (a few sentences repeated) or `needle` (other needles only); type_needle_k `words` (names)
         or `uuids` (four words of small pools: many keys share three of the four)
  vt     variable tracking: num_chains chains of num_hops links; which names have the value?
  cwe    common words: num_cw words occur freq_cw times each, the other words freq_ucw times each
  fwe    frequent words: the three most frequent of words that follow Zipf's law with exponent alpha
  khop   "The key of Anna Reed is that of Boris Hale." ... "The key of Carl Voss is copper lamp." `trees` chains of
         num_hops links, in random order, but each name's sentence comes after the one that it refers to (except for a
         share `forward` of the links, which no row of the document can resolve). If the document is cut into `blocks`
         blocks, at least `cross_block_share` of the links refer to an earlier block
"""
import dataclasses
import math
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "reference_model"))
import generator  # noqa: E402

NOISE = ("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.").split(". ")
WORDS = sorted(set(generator.NOUNS + generator.ADJECTIVES))
PRESETS = {  # RULER's names for RULER's parameters
    "niah_single_1": ("niah", {"type_haystack": "noise"}),
    "niah_single_2": ("niah", {}),
    "niah_multikey_1": ("niah", {"num_needle_k": 4}),
    "niah_multikey_2": ("niah", {"type_haystack": "needle"}),
    "niah_multikey_3": ("niah", {"type_haystack": "needle", "type_needle_k": "uuids"}),
    "niah_multivalue": ("niah", {"num_needle_v": 4}),
    "niah_multiquery": ("niah", {"num_needle_q": 4, "num_needle_k": 4}),
    "vt": ("vt", {"num_chains": 1, "num_hops": 4}),
    "cwe": ("cwe", {"num_cw": 10}),
    "fwe": ("fwe", {"alpha": 2.0}),
    "khop": ("khop", {"num_hops": 8}),
}


@dataclasses.dataclass
class Link:
    """A sentence about the key of `name`: it is the `value` (two words), or, with a `parent`, the parent's key."""
    name: str
    value: str = ""
    parent: "Link" = None
    forward: bool = False

    def text(self):
        return (f"The key of {self.name} is that of {self.parent.name}." if self.parent else
                f"The key of {self.name} is {self.value}.")

    def root(self):
        return self.parent.root() if self.parent else self

    def hops(self):
        return 1 + self.parent.hops() if self.parent else 0


def draw_names(rng, count, pools=generator.ALL_WORDS, taken=()):
    names, seen = [], set(taken)
    while len(names) < count:
        name = f"{rng.choice(pools.first)} {rng.choice(pools.last)}"
        if name not in seen:
            seen.add(name)
            names.append(name)
    return names


def draw_values(rng, count, pools=generator.ALL_WORDS):
    values = {}
    while len(values) < count:
        values[f"{rng.choice(pools.adjectives)} {rng.choice(pools.nouns)}"] = None
    return list(values)


class LookAlikes:
    """Keys of four words, such as "Alice Brown, the young baker,". Each word is one of `pool` words."""

    def __init__(self, rng, pool):
        g = generator
        self.pools = [rng.sample(words, pool) for words in (g.FIRST_NAMES, g.LAST_NAMES, g.ADJECTIVES, g.PEOPLE)]

    @staticmethod
    def pool_for(count):
        """The pool's size for `count` keys: at least 8, and large enough for twice as many combinations as keys."""
        return max(8, math.ceil((2 * count) ** 0.25))

    def draw(self, rng, count):
        keys = {}
        while len(keys) < count:
            first, last, adjective, trade = map(rng.choice, self.pools)
            keys[f"{first} {last}, the {adjective} {trade},"] = None
        return list(keys)


def needle_text(key, value):
    return f"The secret word of {key} is {value}."


def key_question(name):
    return f"What is the key of {name}?"


def key_answer(name, value):
    return f"The key of {name} is {value}."


def values_question(key):
    return f"What are all the secret words of {key}?"


def values_answer(values):
    return "The secret words are " + ", ".join(values) + "."


def several_question(keys):
    return "What are the secret words of " + " and ".join(keys) + "?"


def several_answer(pairs):
    return " ".join(needle_text(k, v) for k, v in pairs)


def names_question(value):
    return f"Whose key is {value}?"


def names_answer(names):
    return "The names are " + ", ".join(names) + "."


COMMON_QUESTION = "Which words are the most common in the list?"
FREQUENT_QUESTION = "Which words are the most frequent?"


def words_answer(words):
    return "The words are " + ", ".join(words) + "."


def chains(rng, trees, hops, names, values):
    """`trees` lists of links: a root, then `hops` links."""
    out = []
    for t in range(trees):
        tree = [Link(names.pop(), values.pop())]
        for _ in range(hops):
            tree.append(Link(names.pop(), parent=tree[-1]))
        out.append(tree)
    return out


def place_chains(rng, trees, low=0.0, high=1.0, forward=0.0):
    """[(place, link)]: random places from low to high. The links of a tree are in their order, except for a share `forward`
    of them, which come before the link that they refer to."""
    placed = []
    for tree in trees:
        order = [tree[0]]
        for link in tree[1:]:
            link.forward = rng.random() < forward
            order.insert(order.index(link.parent) if link.forward else len(order), link)
        places = sorted(rng.uniform(low, high) for _ in tree)
        placed += zip(places, order)
    return sorted(placed, key=lambda x: x[0])


def block_share(placed, blocks):
    """The share of links that refer to an earlier block, if the document is cut into `blocks` equal blocks."""
    at = {id(link): int(place * blocks) for place, link in placed}
    links = [link for _, link in placed if link.parent]
    return sum(at[id(link)] > at[id(link.parent)] for link in links) / max(1, len(links))


def lay_out(rng, placed, fillers, filler, paragraphs=True):
    """The document's sentences: the placed ones, with `fillers` results of filler() around them."""
    out, at = [], 0
    for place, sentence in sorted(placed, key=lambda x: x[0]):
        upto = int(place * (fillers + 1))
        out += [filler() for _ in range(upto - at)]
        at = max(at, upto)
        out.append(sentence)
    return out + [filler() for _ in range(fillers - at)]


def join(rng, sentences):
    """The text of the sentences, in paragraphs of 4 to 9 sentences."""
    lines, i = [], 0
    while i < len(sentences):
        n = rng.randint(4, 9)
        lines.append(" ".join(sentences[i:i + n]))
        i += n
    return "\n".join(lines)


def fill(rng, placed, length, count_tokens, filler):
    """A document of at most `length` tokens, and at least 98 % of it, from the placed sentences and filler."""
    each, state = generator.TOKENS_PER_SENTENCE, rng.getstate()
    own = count_tokens(" ".join(s for _, s in placed))
    if own > length:
        raise ValueError(f"length {length}: the {len(placed)} sentences of the task alone have {own} tokens")
    fillers = int((length - own) / each)
    for _ in range(12):
        rng.setstate(state)
        text = join(rng, lay_out(rng, placed, fillers, lambda: filler(rng)))
        count = count_tokens(text)
        if count <= length and (count >= 0.98 * length or fillers == 0):
            break
        step = (0.992 * length - count) / max(1.0, (count - own) / max(1, fillers))
        fillers = max(0, fillers + (int(step) or (1 if step > 0 else -1)))
    return text


def niah(rng, length, depth, count_tokens, num_needle_k=1, num_needle_v=1, num_needle_q=1, type_haystack="essay",
         type_needle_k="words"):
    """The first asked key's first needle is at `depth`; the other needles are anywhere."""
    num_needle_k = max(num_needle_k, num_needle_q)
    if type_haystack == "needle":
        sample = needle_text("Alice Brown" if type_needle_k == "words" else "Alice Brown, the young baker,", "red sea")
        num_needle_k = max(num_needle_k, int(0.985 * length / (count_tokens(" " + sample) + 0.02)))
    keys = draw_names(rng, num_needle_k) if type_needle_k == "words" else LookAlikes(rng, LookAlikes.pool_for(num_needle_k)).draw(rng, num_needle_k)
    needles = [(k, v) for k in keys for v in draw_values(rng, num_needle_v)]
    asked = [(k, [v for n, v in needles if n == k]) for k in keys[:num_needle_q]]
    places = [depth] + [rng.random() for _ in needles[1:]]
    placed = [(p, needle_text(k, v)) for p, (k, v) in zip(places, needles)]
    if type_haystack == "needle":
        rest = [s for _, s in placed[1:]]
        at = min(int(depth * (len(rest) + 1)), len(rest))
        text = join(rng, rest[:at] + [placed[0][1]] + rest[at:])
    else:
        filler = generator.filler_sentence if type_haystack == "essay" else lambda r: r.choice(NOISE).rstrip(".") + "."
        text = fill(rng, placed, length, count_tokens, filler)
    values = [v for _, found in asked for v in found]
    if num_needle_q > 1:
        question, answer = several_question([k.rstrip(",") for k, _ in asked]), several_answer([(k, v[0]) for k, v in asked])
    elif num_needle_v > 1:
        question, answer = values_question(asked[0][0]), values_answer(values)
    else:
        question, answer = generator.question_text(asked[0][0].rstrip(",")), needle_text(*needles[0])
    return text, question, answer, values


def khop(rng, length, depth, count_tokens, num_hops=8, trees=4, forward=0.0, blocks=8, cross_block_share=0.6):
    """The asked name's sentence is at `depth`, the rest of its chain before it."""
    names, values = draw_names(rng, trees * (num_hops + 1)), draw_values(rng, trees)
    made = chains(rng, trees, num_hops, names, values)
    asked = made[0][-1]
    for _ in range(2000):
        placed = place_chains(rng, made[:1], 0.0, depth, forward) + place_chains(rng, made[1:], forward=forward)
        placed = [(depth if link is asked and not forward else p, link) for p, link in placed]
        if forward or block_share(placed, blocks) >= cross_block_share:
            break
    else:
        raise ValueError(f"depth {depth}: less than a share of {cross_block_share} of the links crosses blocks there")
    text = fill(rng, [(p, link.text()) for p, link in placed], length, count_tokens, generator.filler_sentence)
    value = asked.root().value
    return text, key_question(asked.name), key_answer(asked.name, value), [value]


def vt(rng, length, depth, count_tokens, num_chains=1, num_hops=4):
    """No link is before depth / 2 of the document."""
    made = chains(rng, num_chains, num_hops, draw_names(rng, num_chains * (num_hops + 1)), draw_values(rng, num_chains))
    placed = [(p, link.text()) for p, link in place_chains(rng, made, depth * 0.5)]
    text = fill(rng, placed, length, count_tokens, generator.filler_sentence)
    names = [link.name for link in made[0]]
    return text, names_question(made[0][0].value), names_answer(names), names


def word_list(rng, counts):
    words = [w for w, n in counts for _ in range(n)]
    rng.shuffle(words)
    return " ".join(words) + "."


def cwe(rng, length, depth, count_tokens, num_cw=10, freq_cw=0, freq_ucw=0):
    """Frequencies of 0 become those that fill `length`, with a ratio of 10 to 1, as RULER's 30 to 3."""
    words = rng.sample(WORDS, 330)
    freq_ucw = freq_ucw or -(-(length - 2) // (10 * num_cw + 320))
    freq_cw = freq_cw or 10 * freq_ucw
    common = words[:num_cw]
    others = max(0, min(320, (length - 2 - num_cw * freq_cw) // freq_ucw))
    counts = [(w, freq_cw) for w in common] + [(w, freq_ucw) for w in words[num_cw:num_cw + others]]
    return word_list(rng, counts), COMMON_QUESTION, words_answer(common), common


def fwe(rng, length, depth, count_tokens, alpha=2.0):
    words = rng.sample(generator.NOUNS, 100)
    weights = [1 / (rank + 1) ** alpha for rank in range(len(words))]
    scale = (length - 2) / sum(weights)
    counts = [(w, int(scale * p)) for w, p in zip(words, weights) if scale * p >= 1]
    top = [w for w, _ in counts[:3]]
    return word_list(rng, counts), FREQUENT_QUESTION, words_answer(top), top


TASKS = {"niah": niah, "khop": khop, "vt": vt, "cwe": cwe, "fwe": fwe}


def make(task, seed, length, depth, count_tokens, **parameters):
    """A dict with document (at most `length` tokens), question, answer, and values (which an answer must contain)."""
    kind, preset = PRESETS[task]
    rng = random.Random(f"{task} {seed}")
    document, question, answer, values = TASKS[kind](rng, length, depth, count_tokens, **{**preset, **parameters})
    return {"task": task, "seed": seed, "length": length, "depth": depth, "document": document, "question": question,
            "answer": answer, "values": values, "parameters": {**preset, **parameters}}


def score(values, text):
    """RULER's score: the share of the expected values that the text contains."""
    return sum(v in text for v in values) / len(values)
