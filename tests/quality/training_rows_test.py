"""Goal: the answers and known words of the demo model's training rows are right. Method: both are found again from the
decoded text. Needs the `tokenizers` and `numpy` packages.
"""
import pathlib
import re
import sys
import unittest

from tokenizers import Tokenizer

REFERENCE = pathlib.Path(__file__).resolve().parents[1] / "reference_model"
sys.path.insert(0, str(REFERENCE))
import training_rows  # noqa: E402

FOLDER = REFERENCE / "gauge_checkpoint"
NAME = r"([A-Z]\w+ [A-Z]\w+)"
NEEDLE = re.compile(rf"The secret word of {NAME}(, the \w+ \w+,)? is (\w+ \w+)\.")
LINK = re.compile(rf"The key of {NAME} is (?:that of {NAME}|(\w+ \w+))\.")


def path_of(links, name):
    """The names, and last the value, that the key of `name` leads to after 1, 2, ... links."""
    path = []
    while links[name][0]:
        name = links[name][0]
        path.append(name)
    return path + [links[name][1]]


class TrainingRowsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        cls.rows = training_rows.Rows(cls.tokenizer, bank_size=200, seed=5)

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def row(self, **options):
        level = training_rows.Level(length=900, hops=8, farthest=50000, **options)
        ids, positions, marks, known = self.rows.row(level)
        self.assertLessEqual(len(ids), level.length)
        self.assertEqual((len(positions), len(marks)), (len(ids), len(ids)))
        self.assertTrue((positions[1:] > positions[:-1]).all() and positions[-1] <= level.farthest)
        return ids, marks, known

    def test_known_words(self):
        seen = 0
        for _ in range(40):
            ids, _, known = self.row(words=0, alike=0)
            document = self.decode(ids[:known[-1][0] + 1])
            links = {m[1]: (m[2], m[3]) for m in LINK.finditer(document)}
            needles = {(m[1], m[3]) for m in NEEDLE.finditer(document)}
            for at, (name, *leads) in known:
                before = self.decode(ids[max(0, at - 12):at + 1])
                sentence = before[before.rindex("The "):].strip()
                self.assertIn(name, sentence)
                self.assertTrue(sentence.endswith("."), sentence)
                if sentence.startswith("The key"):
                    path = path_of(links, name)
                    self.assertEqual(leads, [path[min(s, len(path)) - 1] for s in (1, 2, 4, 8, 16)])
                    seen += len(path) > 4
                else:
                    self.assertEqual(len(set(leads)), 1)
                    self.assertIn((name, leads[0]), needles)
        self.assertGreater(seen, 40)

    def test_answers(self):
        kinds = set()
        for i in range(60):
            ids, marks, _ = self.row(words=0.1 if i % 2 else 0, alike=0.3)
            text = self.decode(ids)
            body = text[:text.index("<|assistant|>")]
            links = {m[1]: (m[2], m[3]) for m in LINK.finditer(body)}
            needles = [(m[1] + (m[2] or "").rstrip(","), m[3]) for m in NEEDLE.finditer(body)]
            for question, answer in re.findall(r"([^\n.|>]+\?)<\|end\|>\n<\|assistant\|>\n([^<]*)<\|end\|>", text):
                kind = question.split(" of ")[0]
                kinds.add(kind)
                if kind == "What is the key":
                    name, value = re.fullmatch(rf"The key of {NAME} is (.*)\.", answer).groups()
                    self.assertIn(name, question)
                    self.assertEqual(path_of(links, name)[-1], value)
                elif kind.startswith("Whose"):
                    kinds.add("Whose")
                    value = question[len("Whose key is "):-1]
                    names = answer[len("The names are "):-1].split(", ")
                    self.assertEqual(sorted(names), sorted(n for n in links if path_of(links, n)[-1] == value))
                elif kind == "What are all the secret words":
                    values = answer[len("The secret words are "):-1].split(", ")
                    key = question.split(" of ", 1)[1][:-1]
                    self.assertEqual(sorted(values), sorted(v for k, v in needles if k == key))
                elif kind in ("What is the secret word", "What are the secret words"):
                    for key, value in re.findall(r"The secret word of (.+?),? is (\w+ \w+)\.", answer):
                        self.assertIn(key, question)
                        self.assertIn((key, value), needles)
            answered = self.decode([t for t, m in zip(ids, marks) if m])
            self.assertEqual(answered.count("<|end|>"), text.count("<|assistant|>"))
        self.assertLessEqual({"What is the key", "Whose", "What are all the secret words", "What is the secret word",
                              "What are the secret words"}, kinds)


if __name__ == "__main__":
    unittest.main()
