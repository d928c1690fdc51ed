"""Needle accuracy of a checkpoint, document by document: evaluate.py [--tokens 32000] [--documents 20] ...

Greedy decoding is checked by teacher forcing: an answer counts if at each of its positions the expected token has the
largest logit, which is the case exactly if greedy decoding writes the expected answer. Documents share nothing; with
--questions Q each document hides Q facts at evenly spread depths and each is asked on its own (the document is
computed once), which is a cheap and slightly harder estimate. The seeds start above those of training.
"""
import argparse
import pathlib
import time

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import generator
from make_prompt import render
from model import CONFIG, Llama

ROOT = pathlib.Path(__file__).resolve().parent


def load(path):
    model = Llama()
    if path.is_dir():
        weights = load_file(str(path / "model.safetensors"))
    else:
        weights = torch.load(path)["model"]
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model.eval()


def keys_and_values(tap, c):
    width = c["num_key_value_heads"] * c["head_dim"]
    out = []
    for packed, _, k in tap:
        v = packed[..., -width:]
        out.append((k, v.view(*v.shape[:2], -1, c["head_dim"]).transpose(1, 2)))
    return out


@torch.no_grad()
def answers(model, encode, document, asked, dtype):
    """One bool per asked (name, value): whether greedy decoding gives the expected answer."""
    head = [CONFIG["bos_token_id"]] + encode(f"<|user|>\n{document}<|end|>\n")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        tap, none = [], torch.zeros(1, len(head), dtype=torch.bool)
        model(torch.tensor([head]), torch.arange(len(head))[None], none, tap)
        past, right = keys_and_values(tap, CONFIG), []
        del tap
        for name, value in asked:
            question = encode(render([{"role": "user", "content": generator.question_text(name)}]))
            answer = encode(generator.answer_text(name, value)) + [CONFIG["eos_token_id"]]
            ids = torch.tensor([question + answer[:-1]])
            at = torch.arange(len(head), len(head) + ids.shape[1])[None]
            best = model(ids, at, past=past)[0, len(question) - 1:].argmax(-1)
            right.append(best.tolist() == answer)
    return right


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "checkpoint", help="checkpoint or training state")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 4000, 16000, 32000])
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--keys", type=int, default=1)
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--seed", type=int, default=10 ** 6)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    torch.set_num_threads(2)
    model = load(args.model)
    tokenizer = Tokenizer.from_file(str(ROOT / "checkpoint" / "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    for tokens in args.tokens:
        start, right, missed = time.time(), [], []
        for i in range(args.documents):
            depths = [(i * args.questions + q + 0.5) / (args.documents * args.questions) if args.questions == 1 else
                      (q + (i + 0.5) / args.documents) / args.questions for q in range(args.questions)]
            document, facts = generator.make_asked(args.seed + i, tokens, depths, args.keys, lambda t: len(encode(t)))
            result = answers(model, encode, document, facts, args.dtype)
            right += result
            missed += [round(d, 2) for d, r in zip(depths, result) if not r]
        print(f"{tokens} tokens: {sum(right)} of {len(right)} right ({sum(right) / len(right):.1%}), "
              f"{time.time() - start:.0f} s; missed at depths {missed[:20]}", flush=True)


if __name__ == "__main__":
    main()
