"""Strings for the tokenizer tests: written by hand, and random from a seed."""
import random
import unicodedata

EDGES = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", " \t ", "\n \n", " \n", "\n ", "a", " a", "a ", "  a  b ",
    "Hello, world!", "hello world" * 40, "it's I'm you're we've they'll he'd IT'S 'S 'll 'Re don'tt", "''s's 't",
    "\u017f'\u017f 'ſ 's", "1", "12", "123", "1234", "1234567890" * 9, "3.14159e-10 0x1F 1,000,000 ½ ² Ⅷ ٣٤٥ १२३ 𝟘𝟙",
    "e\u0301 é ê\u0323 \u0323\u0302e a\u0308\u0323\u0301 Å \u212b ﬁ ﬀ ① ㍿ \u1e9b\u0323 \u0344 각 각 \u1112\u1161\u11ab",
    "\u0301leading mark", "a" + "\u0301" * 50, "\u0f73\u0f71\u0f72", "\U0001d15f \U0001d160",
    "👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇩🇪🇯🇵 ☺️ 1️⃣ 🫠", "🙂" * 30, "\u200b\u200c\u200d\u2060\ufeff", "\ufeffbom",
    "中文分词测试，一二三。", "日本語のテスト、カタカナ ｶﾞ ﾊﾟ", "한국어 시험", "ไทยทดสอบ", "हिन्दी परीक्षण क्षि", "עברית בדיקה", "العربية اختبار ١٢٣",
    "مرحبا \u202bworld\u202c end", "Ελληνικά ΣΊΣΥΦΟΣ σς", "Привет, мир! Ёж", "ÇĞİıÖŞÜ", "ßẞ ŒœÆæ", "ǅ ǆ Ǆ ᾳ ᾼ",
    "\x00\x01\x02\x1f\x7f\x80\x85\x9f", "a\x00b", "\u00a0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000", "a\u00a0b \u3000c",
    "\u180e\u200bx", "\u0085next\u2028line\u2029par", "x\u001cy\u001dz\u001e", " " * 100, "a" * 200, "\n" * 77, "\t" * 33, " \n" * 20,
    "   leading", "trailing   ", "two  blanks", "tab\tbetween", "a\n  b\n    c\n", "end\n", "\r\n\r\n  x\r\n",
    "def f(x: int) -> str:\n    return f\"{x!r}\"  # comment\n\n\nclass A:\n\tpass\n",
    "#include <vector>\nint main() { std::vector<int> v{1,2,3}; for (auto&& x : v) x <<= 2; return v[0] != 4 ? -1 : 0; }\n",
    "SELECT * FROM t WHERE a='b' AND c>=1.5e3; -- end", "<html><body class=\"x\">&nbsp;</body></html>", "{\"a\": [1, 2.5, null, true]}",
    "https://example.org/path?q=1&r=%20#frag", "user@example.org", "C:\\Windows\\System32", "$\\frac{a}{b}$ \\begin{x}", "!!!???...---___***",
    "CamelCaseWord snake_case_word kebab-case SCREAMING_CASE iPhone XMLHttpRequest", "a/b/c//\n/d", "«quoted» “quoted” ‘q’ …—–",
    "▁", "▁▁", "a▁b", " ▁ ", "Ġ", "ĠĊ", "<0x0A>", "<0x0a><0xFF>", "<unk>", "<s></s>", "\ufffd", "\ue000\uf8ff", "\U000f0000\U0010fffd",
    "A\u030a o\u0304mega\u014dmega", "\U00010348\U00020000\U0001f600", "\u0378\u0379", "A\u030a", "\u1100\u1161\u11a8", "\u09c7\u09be", "क़ \u0915\u093c",
]

WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were "
    "all her she there would their we him been has when who will no more if out so up said what its about than into them can only "
    "other time new some could these two may first then do any like my now over such our man me even most made after also did many "
    "function return const static class struct import value index token context window attention worker leader naïve café über "
    "größe façade señor mañana coöperate Zürich smörgåsbord ångström").split()
SCRIPTS = [(0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF),
           (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218F), (0x3040, 0x30FF),
           (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFB00, 0xFB06), (0xFF00, 0xFFEF), (0x1D400, 0x1D7FF),
           (0x20000, 0x2A6D6)]
BLANKS = [" ", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "   ", "    ", " \n", "\u00a0", "\u3000", "\u2003"]
PUNCTUATION = list(".,;:!?'\"()[]{}<>/\\|@#$%^&*-_=+`~") + ["...", "'s", "'t", "n't", "'ll", "'RE", "->", "==", "!=", "::", "//", "’s"]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧", "🇫🇷", "❤️", "🏴\U000e0067\U000e0062\U000e007f", "☃", "1️⃣"]


def _old(code):
    """Whether the code point is assigned since Unicode 3.2, so that every library's tables know it."""
    return unicodedata.ucd_3_2_0.category(chr(code)) not in ("Cn", "Cs") and (
        unicodedata.ucd_3_2_0.category(chr(code)) == unicodedata.category(chr(code)))


def _pool():
    return [[chr(c) for c in range(a, b + 1) if _old(c)] for a, b in SCRIPTS]


def _code(rng):
    name = rng.choice(WORDS)
    return rng.choice([
        f"for (int {name} = {rng.randrange(999)}; {name} < n; ++{name}) {{\n\t{name}[i] += {rng.random():.3f};\n}}",
        f"def {name}(self, *args):\n        return self.{name} if x else None\n",
        f"std::{name}<{name}_t> {name}{{{rng.randrange(10**9)}}};  // {name}",
        f"{{\"{name}\": [{rng.randrange(99)}, \"{rng.choice(WORDS)}\"]}}",
        f"$ {name} --{rng.choice(WORDS)}={rng.randrange(10**6)} | grep -v '{name}' > /dev/null 2>&1",
    ])


def make(seed, count, special=()):
    """Returns `count` strings; some of them contain strings of `special` between other text."""
    rng = random.Random(seed)
    pools = _pool()
    pieces = [
        lambda: " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 9))),
        lambda: rng.choice(WORDS).capitalize(), lambda: rng.choice(WORDS).upper(),
        lambda: rng.choice(BLANKS), lambda: rng.choice(BLANKS) * rng.randrange(1, 6), lambda: rng.choice(PUNCTUATION),
        lambda: rng.choice(PUNCTUATION) * rng.randrange(1, 4), lambda: str(rng.randrange(10 ** rng.randrange(1, 14))),
        lambda: "".join(rng.choice(pool) for pool in [rng.choice(pools)] for _ in range(rng.randrange(1, 12))),
        lambda: "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 6))),
        lambda: rng.choice(EMOJI), lambda: _code(rng), lambda: rng.choice(EDGES), lambda: chr(rng.randrange(0x20)),
    ]
    if special:
        pieces += [lambda: rng.choice(special), lambda: rng.choice(BLANKS) + rng.choice(special) + rng.choice(BLANKS)]
    made = list(EDGES) + [s for s in special] + [a + b for a in special for b in special]
    while len(made) < count:
        made.append("".join(rng.choice(pieces)() for _ in range(rng.randrange(1, 8))))
    return made[:count]
