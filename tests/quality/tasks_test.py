"""Goal: the tasks' answers are right, and the documents have the stated properties. Method: a solver that knows only the
patterns of sentences, and shares no code with the generators, finds the answers in the text.
"""
import collections
import re
import unittest

import tasks

LENGTH = 1500
SEEDS = range(6)
NEEDLE = re.compile(r"The secret word of ([A-Z]\w+ [A-Z]\w+(?:, the \w+ \w+,)?) is (\w+ \w+)\.")
LINK = re.compile(r"The key of ([A-Z]\w+ [A-Z]\w+) is (?:that of ([A-Z]\w+ [A-Z]\w+)|(\w+ \w+))\.")


def count_tokens(text):
    return len(re.findall(r"\w+|[^\w\s]", text))


def make(task, seed, length=LENGTH, depth=0.5, **parameters):
    return tasks.make(task, seed, length, depth, count_tokens, **parameters)


def links(document):
    """name -> (position, name referred to or None, value or None)"""
    found = {}
    for m in LINK.finditer(document):
        assert m[1] not in found, m[1]
        found[m[1]] = (m.start(), m[2], m[3])
    return found


def resolve(found, name):
    hops = 0
    while found[name][1]:
        name, hops = found[name][1], hops + 1
    return found[name][2], hops


class TasksTest(unittest.TestCase):
    def test_lengths_and_seeds(self):
        for task in tasks.PRESETS:
            for length in (1000, 4000):
                depth = 1.0 if task == "khop" else 0.3
                made = make(task, 1, length, depth)
                self.assertEqual(made, make(task, 1, length, depth), "one seed, one document")
                self.assertNotEqual(made["document"], make(task, 2, length, depth)["document"])
                self.assertLessEqual(count_tokens(made["document"]), length, task)
                self.assertGreaterEqual(count_tokens(made["document"]), 0.9 * length, task)

    def test_needles(self):
        for task, keys, values in (("niah_single_1", 1, 1), ("niah_single_2", 1, 1), ("niah_multikey_1", 4, 1),
                                   ("niah_multivalue", 1, 4), ("niah_multiquery", 4, 1)):
            for seed in SEEDS:
                made = make(task, seed)
                found = collections.defaultdict(set)
                for key, value in NEEDLE.findall(made["document"]):
                    found[key].add(value)
                self.assertEqual((len(found), {len(v) for v in found.values()}), (keys, {values}))
                asked = re.findall(r"[A-Z]\w+ [A-Z]\w+", made["question"].split(" of ", 1)[1])
                self.assertEqual({v for a in asked for v in found[a]}, set(made["values"]))
                self.assertEqual(tasks.score(made["values"], made["answer"]), 1)

    def test_haystacks_of_needles(self):
        for task in ("niah_multikey_2", "niah_multikey_3"):
            for seed in SEEDS:
                made = make(task, seed)
                found = NEEDLE.findall(made["document"])
                self.assertEqual(len(found), len(re.findall(r"\.", made["document"])), "needles only")
                asked = made["question"].split("word of ")[1].rstrip("?")
                self.assertEqual([v for k, v in found if k.rstrip(",") == asked], made["values"])
        words = lambda key: set(enumerate(re.findall(r"\w+", key)))  # noqa: E731
        keys = [k for k, _ in NEEDLE.findall(make("niah_multikey_3", 1, 8000)["document"])]
        alike = sum(any(len(words(a) & words(b)) == 4 for b in keys if a != b) for a in keys)  # "the" and three others
        self.assertGreater(alike / len(keys), 0.5, "most keys share three of four words with another")

    def test_depth(self):
        for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
            for task in ("niah_single_2", "niah_multikey_1", "niah_multikey_2"):
                made = make(task, 5, 3000, depth)
                at = made["document"].index(made["answer"]) / len(made["document"])
                self.assertAlmostEqual(at, depth, delta=0.05)

    def test_chains(self):
        for hops in (1, 2, 4, 8, 12):
            shares, blocks = [], 16 if hops > 8 else 8  # a chain cannot cross more borders than there are
            for seed in SEEDS:
                made = make("khop", seed, 3000, 1.0, num_hops=hops, blocks=blocks, **({"cross_block_share": 0.0} if hops == 1 else {}))
                document, found = made["document"], links(made["document"])
                name = re.search(r"key of (.*)\?", made["question"])[1]
                self.assertEqual(resolve(found, name), (made["values"][0], hops))
                roots = {n: sum(resolve(found, m)[0] == found[n][2] for m in found) for n in found if not found[n][1]}
                self.assertEqual(list(roots.values()), [hops + 1] * 4, "distractors are of equal size")
                self.assertEqual(len({found[n][2] for n in roots}), 4)
                block = lambda n: int(blocks * found[n][0] / len(document))  # noqa: E731
                for n, (at, target, _) in found.items():
                    if target:
                        self.assertLess(found[target][0], at, "links refer to what stands in front of them")
                        shares.append(block(target) < block(n))
            if hops > 1:
                self.assertGreaterEqual(sum(shares) / len(shares), 0.58)  # 0.6 for blocks of tokens; these are of letters

    def test_forward_references(self):
        behind = total = 0
        for seed in SEEDS:
            made = make("khop", seed, 3000, 1.0, forward=0.5)
            found = links(made["document"])
            name = re.search(r"key of (.*)\?", made["question"])[1]
            self.assertEqual(resolve(found, name), (made["values"][0], 8))
            for at, target, _ in found.values():
                if target:
                    behind, total = behind + (found[target][0] > at), total + 1
        self.assertAlmostEqual(behind / total, 0.5, delta=0.15)

    def test_impossible_depths_say_so(self):
        with self.assertRaisesRegex(ValueError, "depth 0.05"):
            make("khop", 1, 3000, 0.05)
        with self.assertRaisesRegex(ValueError, "length 100"):
            make("khop", 1, 100, 1.0)

    def test_variable_tracking(self):
        for chains in (1, 3):
            for seed in SEEDS:
                made = make("vt", seed, num_chains=chains)
                found = links(made["document"])
                value = re.search(r"key is (.*)\?", made["question"])[1]
                self.assertEqual({n for n in found if resolve(found, n)[0] == value}, set(made["values"]))
                self.assertEqual((len(found), len(made["values"])), (5 * chains, 5))

    def test_words(self):
        for seed in SEEDS:
            made = make("cwe", seed)
            counts = collections.Counter(re.findall(r"\w+", made["document"]))
            (first, high), (_, low) = counts.most_common(11)[9:]
            self.assertEqual({w for w, _ in counts.most_common(10)}, set(made["values"]))
            self.assertGreaterEqual(high, 9 * low)
            made = make("fwe", seed)
            counts = collections.Counter(re.findall(r"\w+", made["document"]))
            self.assertEqual([w for w, _ in counts.most_common(3)], made["values"])

    def test_score(self):
        self.assertEqual(tasks.score(["red sea", "old owl"], "The secret words are old owl, red fox."), 0.5)


if __name__ == "__main__":
    unittest.main()
