#!/usr/bin/env python3
"""The accuracy of quantized weights: perplexity of texts, and answers about long documents.

Goal: the loss of accuracy by --quantize int8 and int4. Method: the perplexity of texts of this machine under a
checkpoint, and the demo model's answers about long documents, with --quantize none, int8 and int4; writes
docs/benchmarks/quantization.md. Needs the `tokenizers` package. tests/bench/quantization.sh calls it.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "reference_model"))
import generator  # noqa: E402
from make_prompt import render  # noqa: E402

WAYS = ("none", "int8", "int4")
LICENSES = ("Apache-2.0", "Artistic", "GFDL-1.3", "GPL-2", "GPL-3", "LGPL-2.1", "MPL-1.1", "MPL-2.0")


def texts(windows, window, encode, first):
    """Windows of tokens: half of them from license texts, half from the documentation of installed packages."""
    def cut(paths, count):
        found = []
        for path in paths:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            ids = first + encode(text[2000:2000 + 12 * window])[:window - len(first)]  # skips titles and lists of names
            if len(ids) == window and ids not in found:  # some packages contain the same file
                found.append(ids)
            if len(found) == count:
                break
        return found

    licenses = [pathlib.Path("/usr/share/common-licenses", name) for name in LICENSES]
    documents = [path for path in sorted(pathlib.Path("/usr/share/doc").glob("*/*"))
                 if path.name.lower() in ("readme", "readme.md", "readme.txt", "readme.debian", "faq", "news")]
    chosen = cut(licenses, windows // 2)
    return chosen + cut(documents, windows - len(chosen))


def perplexities(args, folder):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    config = json.loads((args.model / "config.json").read_text())
    first = [config["bos_token_id"]] if config.get("bos_token_id") is not None else []
    chosen = texts(args.windows, args.window, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, first)
    if len(chosen) < args.windows:
        sys.exit(f"quantization.py: found {len(chosen)} texts of {args.window} tokens, not {args.windows}")
    file = pathlib.Path(folder, "texts.jsonl")
    file.write_text("".join(json.dumps(ids) + "\n" for ids in chosen))
    output = subprocess.run([args.bench / "perplexity", "--model", args.model, "--texts", file, "--quantize",
                             ",".join(WAYS), "--dtype", args.dtype, "--threads", str(args.threads)], check=True,
                            stdout=subprocess.PIPE, text=True).stdout
    return {result["quantize"]: result for result in map(json.loads, output.splitlines())}


def prompts(args, encode, bos, eos):
    """Documents with hidden facts, and a question about one of them, split as the server splits a chat of two user messages."""
    for length in args.lengths:
        for i in range(args.documents):
            depth = (i + 0.5) / args.documents
            sample = generator.make_sample(args.seed + i, length - 40, depth, args.keys, lambda t: len(encode(t)))
            document = [bos] + encode("<|user|>\n" + sample["document"] + "<|end|>\n")
            query = encode(render([{"role": "user", "content": sample["question"]}]))
            yield {"length": length, "tokens": document + query, "query_begin": len(document),
                   "expected": encode(sample["answer"]) + [eos]}


def answers(args, folder):
    """The demo model's results by way of quantization: {length: engine_quality's row, with the number of exact answers}."""
    from tokenizers import Tokenizer
    demo = ROOT / "tests" / "reference_model" / "checkpoint"
    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    config = json.loads((demo / "config.json").read_text())
    file = pathlib.Path(folder, "prompts.jsonl")
    lines = prompts(args, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, config["bos_token_id"],
                    config["eos_token_id"])
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in lines))
    found = {}
    for way in WAYS:
        output = pathlib.Path(folder, "answers.json")
        subprocess.run([args.bench / "engine_quality", "--model", demo, "--prompts", file, "--json", output,
                        "--threads", str(args.threads), "--configurations", "full", "--quantize", way], check=True)
        found[way] = {result["length"]: result for result in json.loads(output.read_text())}
    return found


PAGE = """# Accuracy of quantized weights

`--quantize none|int8|int4` ([quantization.md](../quantization.md)), {backend}. Perplexity of {tokens:,} tokens in {windows} texts of
{window} tokens each, from `/usr/share/common-licenses` and the packages' `/usr/share/doc` of a Debian 12; every token is predicted
from those before it in its text. `Same likeliest token`: how often it is the one without quantization. Answers: the demo model, exact
attention, {documents} documents with {keys} hidden facts each.

{table}

{note}
Made by `tests/bench/quantization.sh {arguments}`.
"""
NOTE = """The model here is SmolLM2-135M-Instruct as `tests/real_model` makes it, whose weights have been through 4 bits in groups of 32 before they
became bfloat16: int4 finds nearly the same steps again and loses less than it would of a model that never was quantized. The demo
model never was.
"""


def table(found, right, lengths):
    lines = ["| weights | perplexity | change | same likeliest token | bytes of the products' weights |"
             + "".join(f" answers, {n // 1024}K |" for n in lengths), "|---|---|---|---|---|" + "---|" * len(lengths)]
    base = found["none"]
    for way in WAYS:
        result = found[way]
        change = 100 * (result["perplexity"] / base["perplexity"] - 1)
        size = f"{result['quantized_bytes'] / 1e6:,.0f} MB" if way != "none" else "as in the file"
        cells = [way, f"{result['perplexity']:.3f}", "" if way == "none" else f"{change:+.2f} %",
                 "" if way == "none" else f"{100 * result['same_likeliest']:.1f} %", size]
        cells += [f"{right[way][n]['correct']} of {right[way][n]['documents']}" for n in lengths]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", type=pathlib.Path, required=True, help="folder of the programs of tests/bench")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--dtype", choices=("auto", "float32"), default="auto", help="of activations")
    parser.add_argument("--lengths", type=lambda t: [int(x) for x in t.split(",")], default=[8192])
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--keys", type=int, default=4)
    parser.add_argument("--seed", type=int, default=3 * 10 ** 6)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, help="writes the numbers there too")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs" / "benchmarks" / "quantization.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = perplexities(args, folder)
        right = answers(args, folder)
    text = table(found, right, args.lengths)
    print(text)
    if args.json:
        args.json.write_text(json.dumps({"perplexity": found, "answers": right}, indent=1) + "\n")
    arguments = (f"--windows {args.windows} --window {args.window} --lengths {','.join(map(str, args.lengths))} "
                 f"--documents {args.documents}" + (" --dtype float32" if args.dtype == "float32" else ""))
    args.page.write_text(PAGE.format(backend=found["none"]["backend"], tokens=found["none"]["tokens"],
                                     windows=args.windows, window=args.window, documents=args.documents,
                                     keys=args.keys, table=text, arguments=arguments,
                                     note=NOTE if "smollm2" in args.model.name else ""))


if __name__ == "__main__":
    main()
