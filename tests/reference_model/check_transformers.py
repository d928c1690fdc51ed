"""Goal: config, weights, tokenizer and chat template of the checkpoint are readable by others. Method: loads it with Hugging
Face transformers and asks it through its chat template. check_transformers.py [--tokens 2000]"""
import argparse
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from make_prompt import make_prompt, render

CHECKPOINT = pathlib.Path(__file__).resolve().parent / "checkpoint"


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=2000)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    count = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=dtype).eval()
        right = 0
        for i in range(5):
            prompt = make_prompt(args.tokens, i / 4, 9000 + i, 3, "demo", count, one_message=i == 4)
            text = tokenizer.apply_chat_template(prompt["messages"], tokenize=False, add_generation_prompt=True)
            assert text == tokenizer.bos_token + render(prompt["messages"])
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            assert ids[0].tolist() == tokenizer(render(prompt["messages"])).input_ids, "begin token"
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)[0]
            answer = tokenizer.decode(out[ids.shape[1]:], skip_special_tokens=True)
            right += answer == prompt["expected"] and out[-1] == tokenizer.eos_token_id
            print(dtype, ids.shape[1], "tokens:", answer, "| expected:", prompt["expected"])
        print(f"{right} of 5 right in {dtype}", flush=True)


if __name__ == "__main__":
    main()
