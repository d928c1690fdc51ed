#!/usr/bin/env python3
"""Makes golden.json: the float64 reference's answer to every case, with the log-probabilities of its three best tokens.

  build/real_model/venv/bin/python tests/real_model/make_golden.py   (after prepare.sh; some minutes)
"""
import hashlib
import json
import pathlib

import numpy as np
from tokenizers import Tokenizer

import cases
import reference

HERE = pathlib.Path(__file__).resolve().parent
CHECKPOINT = HERE.parents[1] / "build" / "real_model" / "smollm2"
GOLDEN = HERE / "golden.json"
TOKENS = 40
ALTERNATIVES = 3


def weights_hash():
    with open(CHECKPOINT / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user(text):
    return {"role": "user", "content": text}


def first_turns():
    """The whole text of each prompt, by name."""
    texts = {**cases.PROSE, **cases.CODE, **cases.LISTS}
    texts |= {name: reference.render([user(text)]) for name, text in cases.CHAT.items()}
    texts |= {f"{name} 1": reference.render([user(turns[0])]) for name, turns in cases.CONVERSATIONS.items()}
    texts |= {f"question {i + 1}": reference.render([user(cases.CONTEXT_MESSAGE + "\n\n" + question)])
              for i, question in enumerate(cases.CONTEXT_QUESTIONS)}
    return texts | {f"ending {i + 1}": cases.CONTEXT_TEXT + ending for i, ending in enumerate(cases.CONTEXT_ENDINGS)}


def best(logits):
    """(ids, log-probabilities) of the ALTERNATIVES best tokens, best first."""
    logprobs = reference.log_softmax(logits)
    ids = np.argsort(-logprobs)[:ALTERNATIVES]
    return [int(i) for i in ids], [round(float(logprobs[i]), 6) for i in ids]


def answers(model, tokenizer, texts):
    """The entry of golden.json for each prompt, by name."""
    found = {name: {"prompt": tokenizer.encode(text).ids, "top": [], "logprobs": []} for name, text in texts.items()}
    for _, logits in reference.greedy(model, [case["prompt"] for case in found.values()], TOKENS):
        for case, row in zip(found.values(), logits):
            ids, logprobs = best(row)
            case["top"].append(ids)
            case["logprobs"].append(logprobs)
    return found


def answer_text(tokenizer, case, end):
    ids = [top[0] for top in case["top"]]
    return tokenizer.decode(ids[:ids.index(end)] if end in ids else ids)


def next_turns(tokenizer, found, histories, turn, end):
    """The text of each conversation's prompt in that turn, by name. `histories` keeps the messages so far."""
    texts = {}
    for name, turns in cases.CONVERSATIONS.items():
        messages = histories.setdefault(name, [user(turns[0])])
        messages += [{"role": "assistant", "content": answer_text(tokenizer, found[f"{name} {turn - 1}"], end)},
                     user(turns[turn - 1])]
        texts[f"{name} {turn}"] = reference.render(messages)
    return texts


def line(case):
    return "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in case.items()) + "}"


def main():
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    model = reference.Model(CHECKPOINT)
    found, histories = answers(model, tokenizer, first_turns()), {}
    for turn in (2, 3):
        found |= answers(model, tokenizer, next_turns(tokenizer, found, histories, turn, model.config["eos_token_id"]))
    rows = ",\n".join(f"{json.dumps(name)}: {line(case)}" for name, case in found.items())
    conversations = json.dumps(histories, ensure_ascii=False)
    GOLDEN.write_text(f'{{"weights_sha256": "{weights_hash()}",\n"conversations": {conversations},\n"cases": {{\n{rows}}}}}\n')
    for name, case in found.items():
        print(name, len(case["prompt"]), repr(tokenizer.decode([top[0] for top in case["top"]], skip_special_tokens=False)))


if __name__ == "__main__":
    main()
