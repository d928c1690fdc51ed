"""Writes golden.json and expressions.json: the texts that transformers renders from the templates in this folder and from
single expressions. It is run by hand, not by the tests.

Needs transformers and jinja2; golden.json records their versions. Usage: TZ=UTC python make_golden.py
"""
import datetime
import json
import os
import re
import sys
import time
from pathlib import Path

import jinja2
import transformers
from transformers.utils import chat_template_utils

NOW = 1_790_000_000  # the time that strftime_now sees, in seconds since 1970
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def user(content, **more):
    return {"role": "user", "content": content, **more}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def tool(content, id="call12345"):
    return {"role": "tool", "content": content, "tool_call_id": id, "name": "get_weather"}


def call(arguments, id="call12345", name="get_weather"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather in a <city> & its \"surroundings\",\nnow — é", "strict": True,
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}, "days": {"type": "integer", "default": 3},
        "tags": {"type": "array", "items": {"type": "string"}}, "maybe": {"type": ["number", "null"]},
        "where": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}}, "required": ["lat"]}}}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}}
ARGUMENTS = {"city": "Zürich", "days": 2, "share": 0.1, "tiny": 1e-7, "huge": 1e22, "none": None, "yes": True, "list": [1, "x", {"k": []}],
             "odd": "a\"b\\c/\u0007\u2028</s>"}

CONVERSATIONS = {
    "one question": dict(messages=[user("Hi")]),
    "rules and turns": dict(messages=[system(" Be brief.\n"), user("  Hello wörld 👋\n\n "), assistant("Yes. "), user("And <|im_end|>?")]),
    "no generation prompt": dict(messages=[user("a"), assistant("b")], add_generation_prompt=False),
    "tools": dict(messages=[user("Weather?")], tools=[WEATHER, CLOCK]),
    "tools and rules": dict(messages=[system("You help."), user("Weather?")], tools=[CLOCK, WEATHER]),
    "call and result": dict(messages=[user("Weather?"), assistant("", tool_calls=[call(ARGUMENTS)]), tool("{\"t\": 21}"), assistant("21."),
                                      user("thanks")], tools=[WEATHER]),
    "call as text": dict(messages=[user("Weather?"), assistant(None, tool_calls=[call("{\"city\": \"Paris\"}")]), tool("rain")]),
    "two calls": dict(messages=[user("w?"), assistant("Let me see", tool_calls=[call({"city": "A"}), call({"city": "B"}, "call54321")]),
                                tool("rain"), tool("sun", "call54321"), assistant("ok"), user("more words here")], tools=[WEATHER]),
    "parts": dict(messages=[user(parts("one ", " two")), assistant(parts("three")), user(parts("four"))]),
    "rules as parts": dict(messages=[system(parts("be", "kind")), user(parts("one"))]),
    "picture": dict(messages=[user(parts("see:") + [{"type": "image_url", "image_url": {"url": "x"}}])]),
    "thoughts": dict(messages=[user("q"), assistant("<think>\nhm\n</think>\n\nanswer"), user("q2"), assistant("a2", reasoning_content="because"),
                               user("q3"), assistant("\n<think>\nlast\n</think>\n\n a3")], add_generation_prompt=False),
    "thoughts under other names": dict(messages=[user("q"), assistant("a", reasoning="why", tool_calls=[call({})]), tool("r")]),
    "thinking off": dict(messages=[user("q")], kwargs={"enable_thinking": False}),
    "thinking on": dict(messages=[user("q")], kwargs={"enable_thinking": True, "date_string": "26 Jul 2024", "tool_place": "rules"}, tools=[CLOCK]),
    "two questions": dict(messages=[user("a"), user("b")]),
    "answer first": dict(messages=[assistant("starts"), user("b")]),
    "rules only": dict(messages=[system("only rules")]),
    "rules only with tools": dict(messages=[system("only rules")], tools=[CLOCK]),
    "rules in the middle": dict(messages=[system("s1"), user("u"), system("s2"), assistant("x"), user("y")]),
    "unknown role": dict(messages=[{"role": "narrator", "content": "once"}, user("u")]),
    "short id": dict(messages=[user("w"), assistant("", tool_calls=[call({}, id="1")]), tool("r", "1")]),
    "empty": dict(messages=[user("")]),
    "four calls": dict(messages=[user("w"), assistant("", tool_calls=[call({"n": n}, f"call0000{n}") for n in range(4)])]),
    "white space": dict(messages=[user("x\n\n\n"), assistant("\n\nlead\tand trail \n"), user("\ttabs\r\nand ends\u3000\u00a0")]),
    "scripts": dict(messages=[user("ÇĞİı ß ŉ ǅ Σίσυφος ΣΊΣΥΦΟΣ 中文 한국어 עברית 👨‍👩‍👧"), assistant("ﬁn ﬀ"), user("ÅÄÖ straße end")]),
}

VALUES = {"s": "Hello, Wörld  ", "e": "", "lines": "a\n b\n\nc\r\nd", "n": 7, "neg": -3, "f": 2.5, "t": True, "no": None, "l": [3, 1, 2],
          "ls": ["b", "A", "c", "a"], "ld": [{"k": "x", "v": 1, "n": {"m": 5}}, {"k": "Y", "v": 2}, {"k": "x", "v": 3}],
          "d": {"b": 1, "a": [1, 2], "items": "q", "C": None}, "el": [], "ed": {}, "u": "ünï'q\"\\ \t<&>é☃😀"}
AFTER = """|trim |upper |lower |capitalize |string |length |list |first |last |reverse|list |items|list |abs |default('D') |default('D',true) |join
|join(', ') |join('-',attribute='k') |tojson |tojson(indent=2) |tojson(sort_keys=true) |tojson(ensure_ascii=true) |tojson(separators=(',',':'))
|map('upper')|list |map(attribute='k')|list |map(attribute='zz',default='Q')|join(',') |map(attribute='n.m')|list |select|list
|select('string')|list |select('gt',1)|list |reject('odd')|list |selectattr('k')|list |selectattr('k','equalto','x')|list
|rejectattr('v','>',1)|list |selectattr('n','defined')|list |dictsort |dictsort(by='value') |sort |sort(reverse=true) |sort(attribute='k')
|sort(case_sensitive=true) |unique|list |unique(attribute='k')|list |min |max |sum |sum(attribute='v') |int |int(9) |float |round |round(1)
|round(0,'floor') |indent(2) |indent(2,true) |indent |replace('l','L') |trim('H ') |list|length
.strip() .lstrip() .rstrip() .split() .split(' ') .split(',')[0] .split('l',1) .rsplit('l',1) .split(none,1) .upper() .lower() .title()
.capitalize() .startswith('H') .endswith((' ','o')) .replace('l','LL',1) .replace('','-') .find('l') .rfind('l') .count('l') .splitlines()
.join(ls) .isdigit() .isalpha() .isspace() .items()|list .keys()|list .values()|list .get('a') .get('zz') .get('zz','dflt') .index(1) .count(1)
.strip('H ') .k .a .items .foo [0] [-1] [5] ['a'] ['zz'] [1:] [:-1] [::-1] [1:3] [::2] [-2:] [5:1:-2] +1 +'x' *2 /2 //2 %2 **2 ~'x' ==7 <3 >='a'
 in l  in s  in d  and 1  or 2  is defined  is none  is string  is mapping  is sequence  is iterable  is number  is integer  is float
 is boolean  is true  is false  is odd  is even  is divisibleby(2)  is lower  is upper  is in [1,7,'a']  is sameas true  is eq 7  is ne 3
 is lt 5  is ge(2)  is callable  if t else 0  if no"""


def after():
    for line in AFTER.split("\n"):
        yield from ([" " + part for part in line[1:].split("  ")] if line.startswith(" ") else line.split(" "))


def expressions():
    """Pairs [expression, text]; text is null where transformers refuses the expression."""
    made = []
    for name in [*VALUES, "undef"]:
        for suffix in after():
            expression = name + suffix
            try:
                text = chat_template_utils._compile_jinja_template("{{ " + expression + " }}").render(**json.loads(json.dumps(VALUES)))
            except Exception:
                text = None
            if text is None or not re.search("generator|built-in|bound|object at", text):
                made.append([expression, text])
    return made


def refused(error):
    return isinstance(error, (jinja2.exceptions.TemplateError, TypeError, KeyError, ValueError, AttributeError))


def main():
    if os.environ.get("TZ") != "UTC":
        sys.exit("run with TZ=UTC")
    time.tzset()

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(NOW, tz)

    chat_template_utils.datetime = Clock
    folder = Path(__file__).parent
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        template = path.read_text()
        for name, conversation in CONVERSATIONS.items():
            case = {"template": path.name, "conversation": name}
            try:
                case["text"] = chat_template_utils.render_jinja_template(
                    [conversation["messages"]], tools=conversation.get("tools"), chat_template=template,
                    add_generation_prompt=conversation.get("add_generation_prompt", True), **SPECIAL, **conversation.get("kwargs", {}))[0][0]
            except Exception as error:
                if not refused(error):
                    raise
                case["refused"] = f"{type(error).__name__}: {error}"
            cases.append(case)
    made = {"made with": {"transformers": transformers.__version__, "jinja2": jinja2.__version__}, "now": NOW, "special_tokens": SPECIAL,
            "conversations": CONVERSATIONS, "cases": cases}
    (folder / "golden.json").write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")
    (folder / "expressions.json").write_text(
        '{"values": ' + json.dumps(VALUES) + ',\n"expressions": [\n' + ",\n".join(map(json.dumps, expressions())) + "]}\n")
    print(len(cases), "cases,", sum("refused" in case for case in cases), "refused")


if __name__ == "__main__":
    main()
