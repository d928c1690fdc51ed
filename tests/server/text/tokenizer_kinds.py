"""Small tokenizers that are trained here, in the configurations of real checkpoints."""
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import text_cases

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CORPUS = [s for s in text_cases.make(1, 6000) if len(s) < 2000]


def _byte_level(split, specials, normalizer=None, prefix=False, ignore_merges=False, vocab=1500):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split is None)
    splits = [pre_tokenizers.Split(Regex(s), "isolated") for s in split or []]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits + [byte_level]) if splits else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


def gpt2(prefix=False):
    tokenizer = _byte_level(None, ["<|endoftext|>"], prefix=prefix)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def llama3():
    tokenizer = _byte_level([LLAMA3], ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>"], ignore_merges=True)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                                      special_tokens=[("<|begin_of_text|>", 0)])])
    return tokenizer


def qwen():
    tokenizer = _byte_level([QWEN], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizers.NFC())
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False), AddedToken("</tool_call>", special=False, normalized=False),
                          AddedToken("\u014dmega", special=False, normalized=True), AddedToken("\u212b", special=False, normalized=False)])
    return tokenizer


def tekken():
    tokenizer = _byte_level([TEKKEN], ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], ignore_merges=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return tokenizer


def deepseek():
    """Several splits in a row, and added tokens with every flag."""
    tokenizer = _byte_level([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"], ["<｜begin▁of▁sentence｜>", "<｜User｜>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<sep>", rstrip=True), AddedToken("<both>", lstrip=True, rstrip=True)])
    tokenizer.add_tokens([AddedToken("token", single_word=True), AddedToken("wind", single_word=True, lstrip=True), AddedToken("<｜Use")])
    return tokenizer


def digits():
    """Digits, and the other behaviors of Split."""
    tokenizer = _byte_level([r"\p{N}+"], ["<|end|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split("-", "merged_with_previous"),
        pre_tokenizers.Split(Regex(r"[.,]"), "merged_with_next"), pre_tokenizers.Split(Regex(r"\s"), "contiguous"),
        pre_tokenizers.Split(Regex(r"[A-Z]+"), "isolated", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)])
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(r" {2,}"), " ")])
    return tokenizer


def _sentencepiece(change, vocab=1800):
    """Character BPE with byte tokens, as in converted SentencePiece models; `change` sets the other components."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator([s for s in CORPUS if len(s) < 300], trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<unk>"], limit_alphabet=400, show_progress=False))
    made = json.loads(tokenizer.to_str())
    learned = sorted(made["model"]["vocab"], key=made["model"]["vocab"].get)[1:]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + [t for t in learned if not t.startswith("<0x")]
    made["model"]["vocab"] = {token: id for id, token in enumerate(dict.fromkeys(tokens))}
    made["model"]["merges"] = [m for m in made["model"]["merges"] if all(t in made["model"]["vocab"] for t in (*m, "".join(m)))]
    made["added_tokens"] = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                             "special": True} for i, t in enumerate(["<unk>", "<s>", "</s>"])]
    made["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    change(tokenizer)
    return tokenizer


def llama2():
    def change(tokenizer):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentencepiece(change)


def metaspace(scheme, split):
    def change(tokenizer):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split)
        tokenizer.decoder = decoders.Metaspace("▁", scheme, split) if split else decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _sentencepiece(change)


def gemma():
    def change(tokenizer):
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _sentencepiece(change)


KINDS = {
    "gpt2": gpt2, "gpt2_prefix_space": lambda: gpt2(prefix=True), "llama3": llama3, "qwen": qwen, "tekken": tekken, "deepseek": deepseek,
    "digits": digits, "llama2": llama2, "gemma": gemma, "metaspace_first": lambda: metaspace("first", False),
    "metaspace_always": lambda: metaspace("always", True), "metaspace_never": lambda: metaspace("never", False),
}
