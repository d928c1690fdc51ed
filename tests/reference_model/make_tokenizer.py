"""Trains the demo model's byte-level BPE tokenizer and writes tokenizer.json and tokenizer_config.json.

Needs the `tokenizers` package. Usage: make_tokenizer.py OUTPUT_DIR
"""
import itertools
import json
import pathlib
import random
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import generator

# The alternatives, in order: contractions, words, up to three digits, punctuation, line ends, white space.
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"]
CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('Roles are system, user and assistant.') -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}")


def corpus(sentences=60000):
    rng = random.Random(7)
    for _ in range(sentences):
        yield generator.filler_sentence(rng)
        if rng.random() < 0.5:
            (name, value), = generator.draw_facts(rng, 1)
            yield generator.fact_sentence(name, value) + " " + generator.question_text(name)
    for _ in range(200):  # so that every name becomes one token in any surroundings
        for first, last in itertools.zip_longest(generator.FIRST_NAMES, generator.LAST_NAMES, fillvalue="Young"):
            yield f"The key of {first} {last} is that of {rng.choice(generator.FIRST_NAMES)} {last}."
    yield from ("Whose key is amber falcon? What is the key of Alice Brown? The keys are these. What are all the secret words of Alice "
                "Brown? The secret words of Alice Brown are amber falcon, red apple and blue sea. Which words are the most common in the "
                "list? The most common words are apple and sea. Which words are the most frequent?\n",) * 200
    yield from ("You are a helpful assistant. Answer with the exact words of the document.\n",
                "Read the document and answer the question.\n") * 50


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=2560, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    begin = tok.token_to_id("<|begin|>")
    tok.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", begin)])
    tok.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>",
        "pad_token": "<|pad|>", "add_bos_token": True, "clean_up_tokenization_spaces": False,
        "model_max_length": 131072, "chat_template": CHAT_TEMPLATE}, indent=1) + "\n")
    rng = random.Random(1)
    text = " ".join(generator.filler_sentence(rng) for _ in range(10000))
    print("vocabulary", tok.get_vocab_size(), "tokens per filler sentence", len(tok.encode(text).ids) / 10000)


if __name__ == "__main__":
    main()
