"""Training rows of the demo model, made by worker processes: chats about documents full of facts.

A row has `length` tokens: a document with chains of keys, needles and filler (../quality/tasks.py), then several questions
with answers. The loss is on the answers, and on the words that the last row of every fact's sentence should know after each
layer: the fact's name and, for links, the words that the key leads to after 1, 2, 4, 8 and 16 steps. With these words, a
chain of many links is learnt within minutes; from answers alone it is not learnt at all.
"""
import dataclasses
import math
import multiprocessing
import pathlib
import queue
import random
import re
import sys

import numpy as np

import generator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "quality"))
import tasks  # noqa: E402

STEPS = (1, 2, 4, 8, 16)  # links that are resolved after the first, second, ... resolving layer
PIECE = re.compile(r"<\|\w+\|>| ?[A-Za-z]+| ?[^\sA-Za-z<]+[\r\n]*|\s*[\r\n]+|\s+")
PHRASE, VALUE, LISTED = 1, 2, 3  # marks of answer tokens; other tokens have 0. Listed values are in any order
FARTHEST = 131000


class Pieces:
    """Encodes text piece by piece, with a cache. The tokenizer never merges across pieces; known words are far faster."""

    def __init__(self, tokenizer):
        self.tokenizer, self.cache = tokenizer, {}

    def __call__(self, text):
        ids, cache = [], self.cache
        for piece in PIECE.findall(text):
            found = cache.get(piece)
            if found is None:
                found = cache[piece] = self.tokenizer.encode(piece, add_special_tokens=False).ids
            ids += found
        return ids


@dataclasses.dataclass
class Level:
    """Properties of the rows of one part of the curriculum."""
    length: int
    hops: int  # longest chain
    farthest: int  # largest position
    words: float = 0.06  # share of rows with word lists
    alike: float = 0.15  # share of rows with keys that look alike
    front: float = 0.3  # share of rows with a question at the front, as in an anchor block


class Fact:
    """A sentence, and what its last row should know: the name, and where it leads after STEPS, two words each."""
    __slots__ = ("text", "known")

    def __init__(self, text, name, pointers):
        self.text, self.known = text, (name, *pointers)


def leads_to(link):
    """The names (of links) or the value that `link` leads to after each of STEPS."""
    path, at = [], link
    while at.parent:
        at = at.parent
        path.append(at.name)
    path.append(at.value)
    return [path[min(s, len(path)) - 1] for s in STEPS]


class Rows:
    """Makes rows. Each process has its own object."""

    def __init__(self, tokenizer, bank_size=20000, seed=0):
        self.encode, self.rng = Pieces(tokenizer), random.Random(seed)
        id_of = tokenizer.token_to_id
        self.begin, self.end, self.pad = id_of("<|begin|>"), id_of("<|end|>"), id_of("<|pad|>")
        self.drawn, self.small = 0, generator.ALL_WORDS
        self.dot, self.line = self.encode("."), self.encode(".\n")
        bank_rng = random.Random(99 + seed)
        bank = [generator.filler_sentence(bank_rng)[:-1] for _ in range(bank_size)]
        self.bank = [(self.encode(" " + s), self.encode(s)) for s in bank]

    def pools(self):
        """The pools of names and values, drawn again after four rows. Half of the time they are small, which makes a document
        as confusing as a far longer one."""
        rng, g = self.rng, generator
        self.drawn += 1
        if self.drawn % 4:
            return self.small
        self.small = generator.ALL_WORDS
        if rng.random() < 0.5:
            return self.small
        n = rng.randint(12, 60)
        self.small = generator.Pools(rng.sample(g.FIRST_NAMES, n), rng.sample(g.LAST_NAMES, n), rng.sample(g.ADJECTIVES, n),
                                     rng.sample(g.NOUNS, n))
        return self.small

    def trees(self, count, hops, names, values):
        """About `count` links of random trees, as [(place, link)] with each link after its parent, and the trees."""
        rng, placed, roots = self.rng, [], []
        while len(placed) < count:
            size = rng.choice((1, 2, hops, hops + 1, hops + 1, 2 * hops))
            straight = rng.random() < 0.6
            tree, depth = [tasks.Link(names.pop(), values.pop())], [0]
            for _ in range(min(size, count)):
                at = len(tree) - 1 if straight else rng.randrange(max(0, len(tree) - 4), len(tree))
                if depth[at] >= hops:
                    at = rng.choice([i for i, d in enumerate(depth) if d < hops])
                tree.append(tasks.Link(names.pop(), parent=tree[at]))
                depth.append(depth[at] + 1)
            placed += zip(sorted(rng.random() for _ in tree), tree)
            roots.append(tree)
        return placed, roots

    def facts(self, level, budget):
        """[(place, Fact)] and questions [(question, [(text, mark)])] for a document of `budget` tokens."""
        rng, pools = self.rng, self.pools()
        hops = rng.choice([h for h in (1, 2, 4, 8) if h < level.hops] + 3 * [level.hops])
        share = math.exp(rng.uniform(math.log(0.03), math.log(0.9))) if level.length > 600 else rng.uniform(0.4, 0.95)
        count = max(4, int(share * budget / 13)) if rng.random() < 0.92 else rng.randint(1, 4)
        count = min(count, len(pools.first) * len(pools.last) // 3, len(pools.adjectives) * len(pools.nouns) // 3)
        names = tasks.draw_names(rng, min(2 * count + 2 * hops + 8, int(0.8 * len(pools.first) * len(pools.last))), pools)
        values = tasks.draw_values(rng, min(count + 12, int(0.8 * len(pools.adjectives) * len(pools.nouns))), pools)
        linked = int(count * rng.choice((0.0, 0.5, 0.7, 1.0, 1.0)))
        linked = min(linked, len(names) - 2 * hops - 3)
        placed, questions, needles = [], [], []
        if linked > 1:
            links, roots = self.trees(linked, hops, names, values)
            placed += [(p, Fact(link.text(), link.name, leads_to(link))) for p, link in links]
            asked = [link for _, link in links]
            far = [link for link in asked if link.hops() >= hops - 1]
            for link in rng.sample(asked, min(len(asked), 24)) + rng.sample(far, min(len(far), 24)):
                text = tasks.key_answer(link.name, "")[:-2]
                questions.append((tasks.key_question(link.name), [(text, PHRASE), (" " + link.root().value, VALUE), (".", VALUE)]))
            for tree in [t for t in roots if len(t) <= 7][:4]:
                questions.append((tasks.names_question(tree[0].value), self.listed(tasks.names_answer, [x.name for x in tree])))
        while len(placed) < count and len(names) > 2 and len(values) > 6:
            name = names.pop()
            found = [values.pop() for _ in range(rng.randint(2, 5) if rng.random() < 0.15 else 1)]
            placed += [(rng.random(), Fact(tasks.needle_text(name, v), name, [v] * len(STEPS))) for v in found]
            if len(found) > 1:
                questions.append((tasks.values_question(name), self.listed(tasks.values_answer, found)))
            else:
                needles.append((name, found[0]))
        for name, value in rng.sample(needles, min(len(needles), 16)):
            questions.append((generator.question_text(name), self.told(name, value)))
        if len(needles) >= 4 and rng.random() < 0.5:
            some = rng.sample(needles, rng.randint(2, 4))
            told = [part for i, (k, v) in enumerate(some) for part in self.told(k, v, " " if i else "")]
            questions.append((tasks.several_question([k for k, _ in some]), told))
        return placed, questions

    def told(self, name, value, before=""):
        return [(before + tasks.needle_text(name, "")[:-2], PHRASE), (" " + value, VALUE), (".", VALUE)]

    def listed(self, answer, items):
        """An answer with the items in any order."""
        text = answer(self.rng.sample(items, len(items)))
        at = text.index(" are ") + 4
        return [(text[:at], PHRASE), (text[at:], LISTED)]

    def alike(self, budget):
        rng = self.rng
        keys = tasks.LookAlikes(rng, rng.randint(5, 9))
        count = min(int(budget / 17.5), len(keys.pools[0]) ** 4 // 2)
        values = tasks.draw_values(rng, count)
        needles = list(zip(keys.draw(rng, count), values))
        placed = [(rng.random(), Fact(tasks.needle_text(k, v), k.split(",")[0], [v] * len(STEPS))) for k, v in needles]
        return placed, [(generator.question_text(k.rstrip(",")), self.told(k, v)) for k, v in rng.sample(needles, min(count, 40))]

    def word_list(self, budget):
        """The ids of a document that is a list of words, and its questions."""
        rng = self.rng
        if rng.random() < 0.5:
            text, _, answer, words = tasks.cwe(rng, budget, 0.5, None, num_cw=rng.choice((5, 10, 10)))
            question, answer = tasks.COMMON_QUESTION, self.listed(tasks.words_answer, words)
        else:
            text, question, answer, words = tasks.fwe(rng, budget, 0.5, None)
            at = answer.index(" are ") + 4
            answer = [(answer[:at], PHRASE), (answer[at:], VALUE)]
        return self.encode(text), [(question, answer)]

    def document(self, placed, budget, last):
        """At most `budget` ids of facts and filler, the words that the facts' last rows should know, and starts of lines."""
        rng, encode, bank = self.rng, self.encode, self.bank
        starts = encode("The")
        facts = [(p, (ids, starts + ids[1:]), f) for p, f in sorted(placed, key=lambda x: x[0])
                 for ids in (encode(" " + f.text[:-1]),)]
        room = budget - sum(len(e[0]) + 1 for _, e, _ in facts) - 2
        fillers = []
        while room > 0:
            sentence = bank[int(rng.random() * len(bank))]
            room -= len(sentence[0]) + 1
            fillers.append((sentence, None))
        if fillers:
            fillers.pop()
        total = len(facts) + len(fillers)
        slots = set(rng.sample(range(total), len(facts)))
        facts, fillers = iter([(e, f) for _, e, f in facts]), iter(fillers)
        items = [next(facts if i in slots else fillers) for i in range(total)]
        ids, known, lines, left = [], [], [0], 0
        for i, (sentence, fact) in enumerate(items):
            if left == 0:
                left = rng.randint(4, 9)
                ids += sentence[1]
            else:
                ids += sentence[0]
            left -= 1
            final = i + 1 == len(items)
            ids += last if final else self.line if left == 0 else self.dot
            if fact:
                known.append((len(ids) - (len(last) if final else 1), fact.known))
            if left == 0:
                lines.append(len(ids))
        return ids, known, lines

    def row(self, level):
        """ids, positions, marks of answer tokens, [(row, known)]."""
        rng, encode, length = self.rng, self.encode, level.length
        kind = rng.random()
        budget = length - 40 - min(length // 3, 1200)  # tokens of the document; the questions take the rest
        words = kind < level.words and length <= 9000
        if words:
            body, questions = self.word_list(budget)
        elif kind < level.words + level.alike:
            placed, questions = self.alike(max(40, budget if rng.random() < 0.7 else int(budget * rng.random())))
        else:
            questions = []
            while not questions:
                placed, questions = self.facts(level, budget)
        rng.shuffle(questions)
        one_message = rng.random() < 0.25
        head = [self.begin]
        shown = encode(questions[0][0]) + rng.choice(([], encode("\n"), encode("<|end|>\n"))) if (
            rng.random() < level.front) else []
        if rng.random() < 0.1:
            head += encode("<|system|>\n" + rng.choice(("You are a helpful assistant.", "Read the document and answer the question."))
                           + "<|end|>\n")
        head += encode("<|user|>\n") + shown
        last = encode(".\n\n") if one_message else encode(".")
        known, lines = [], [0]
        if not words:
            body, known, lines = self.document(placed, budget, last)
        ids = head + body
        known = [(at + len(head), what) for at, what in known]
        cuts = [at + len(head) for at in lines if at > 0] + [len(head)]
        ids += encode(questions[0][0] + "<|end|>\n") if one_message and not words else encode("<|end|>\n")
        marks = [0] * len(ids)
        for i, (question, answer) in enumerate(questions):
            turn = encode("<|assistant|>\n") if i == 0 and one_message and not words else encode(
                "<|user|>\n" + question + "<|end|>\n<|assistant|>\n")
            parts = [(encode(text), mark) for text, mark in answer] + [([self.end], VALUE)]
            if len(ids) + len(turn) + sum(len(p) for p, _ in parts) + 1 > length:
                break
            ids += turn
            marks += [0] * len(turn)
            for part, mark in parts:
                ids += part
                marks += [mark] * len(part)
            ids += encode("\n")
            marks.append(0)
        return ids, self.positions(len(ids), cuts, level.farthest), marks, known

    def positions(self, length, cuts, farthest):
        """Contiguous runs with a few jumps; the last position is log-uniform between length and `farthest`."""
        rng = self.rng
        at = np.arange(length, dtype=np.int32)
        if farthest > length and rng.random() < 0.8:
            spare = int(math.exp(rng.uniform(math.log(length), math.log(farthest)))) - length
            for cut in rng.sample(cuts, min(len(cuts), rng.randint(1, 8))):
                jump = rng.randint(0, spare)
                at[cut:] += jump
                spare -= jump
        return at

    def batch(self, level, tokens):
        """Arrays: ids, positions, marks [rows, length]; known [facts, 1 + 2 + 2 * len(STEPS)]: flat row and words."""
        size, length = max(1, tokens // level.length), level.length
        ids = np.full((size, length), self.pad, np.int16)
        positions = np.zeros((size, length), np.int32)
        marks, facts = np.zeros((size, length), np.int8), []
        word = lambda w: self.encode(" " + w)[0]  # noqa: E731
        cache = {}
        for i in range(size):
            t, p, m, known = self.row(level)
            n = min(len(t), length)
            ids[i, :n], positions[i, :n], marks[i, :n] = t[:n], p[:n], m[:n]
            for at, what in known:
                out = [i * length + at]
                for pair in what:
                    found = cache.get(pair)
                    if found is None:
                        found = cache[pair] = [word(w) for w in pair.split(" ")]
                    out += found
                facts.append(out)
        return ids, positions, marks, np.array(facts, np.int32).reshape(-1, 3 + 2 * len(STEPS))


def work(tokenizer_file, seed, levels, level, tokens, out):
    from tokenizers import Tokenizer
    rows, index = Rows(Tokenizer.from_file(tokenizer_file), seed=seed), 0
    while level.value >= 0:
        index = level.value
        batch = rows.batch(levels[index], tokens)
        while level.value >= 0:
            try:
                out.put((index, batch), timeout=1)
                break
            except queue.Full:
                pass


class Source:
    """Batches from worker processes. New batches have the level `level`; batches in the queue may be older."""

    def __init__(self, tokenizer_file, levels, tokens, workers, seed):
        context = multiprocessing.get_context("fork")
        self.level, self.queue = context.Value("i", 0), context.Queue(maxsize=3 * workers)
        self.workers = [context.Process(target=work, daemon=True, args=(
            str(tokenizer_file), seed + i, levels, self.level, tokens, self.queue)) for i in range(workers)]
        for worker in self.workers:
            worker.start()

    def next(self):
        return self.queue.get(timeout=300)

    def close(self):
        self.level.value = -1
        for worker in self.workers:
            worker.terminate()
