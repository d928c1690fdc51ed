"""The unmodified `openai` package against a running server.

Goal: the features on which its users rely work: answers, streams, usage, stop strings, logprobs, seeds, limits, typed
errors, and a 32K-token document through APB. Method: one server with two ranks on the demo model for all cases.
"""
import math
import unittest

import openai

import fixture

SERVER = None
CLIENT = None


def setUpModule():
    global SERVER, CLIENT
    SERVER = unittest.enterModuleContext(fixture.Server("--sse-keepalive-seconds", 0.1))
    CLIENT = openai.OpenAI(base_url=SERVER.url + "/v1", api_key="none", max_retries=0, timeout=fixture.PATIENCE)


def chat(**options):
    return CLIENT.chat.completions.create(model="demo", **options)


def complete(prompt, **options):
    return CLIENT.completions.create(model="demo", prompt=prompt, **options)


SAMPLE = fixture.make_prompt(300, seed=5)
MESSAGES = SAMPLE["messages"]
PROMPT = SAMPLE["completions_request"]["prompt"]


class ChatTest(unittest.TestCase):
    def test_answer(self):
        answer = chat(messages=MESSAGES, temperature=0)
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.model, "demo")
        choice = answer.choices[0]
        self.assertEqual(choice.message.role, "assistant")
        self.assertEqual(choice.message.content, SAMPLE["expected"])
        self.assertEqual(choice.finish_reason, "stop")
        self.assertEqual(answer.usage.prompt_tokens, SAMPLE["prompt_tokens_estimate"])
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertLess(answer.usage.prompt_tokens_details.cached_tokens, answer.usage.prompt_tokens)

    def test_content_parts_and_system_message(self):
        parts = [{"type": "text", "text": SAMPLE["document"]}, {"type": "text", "text": "\n\n" + SAMPLE["question"]}]
        whole = SAMPLE["document"] + "\n\n" + SAMPLE["question"]
        answers = [chat(messages=[{"role": "system", "content": "Answer."}, {"role": "user", "content": content}],
                        temperature=0, max_completion_tokens=20) for content in (parts, whole)]
        self.assertEqual(answers[0].choices[0].message.content, answers[1].choices[0].message.content)
        self.assertEqual(answers[0].usage.prompt_tokens, answers[1].usage.prompt_tokens)

    def test_stream(self):
        chunks = list(chat(messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}))
        self.assertEqual({c.object for c in chunks}, {"chat.completion.chunk"})
        self.assertEqual(len({c.id for c in chunks}), 1)
        usage = chunks[-1]
        self.assertEqual(usage.choices, [])
        self.assertGreater(usage.usage.completion_tokens, 3)
        self.assertEqual([c.usage for c in chunks[:-1]], [None] * (len(chunks) - 1))
        deltas = [c.choices[0] for c in chunks[:-1]]
        self.assertEqual(deltas[0].delta.role, "assistant")
        self.assertTrue(deltas[0].delta.content, "the role comes with the first text")
        self.assertEqual("".join(d.delta.content or "" for d in deltas), SAMPLE["expected"])
        self.assertEqual([d.finish_reason for d in deltas], [None] * (len(deltas) - 1) + ["stop"])
        self.assertGreater(len(deltas), 5, "tokens come one by one")

    def test_stream_without_usage(self):
        chunks = list(chat(messages=MESSAGES, temperature=0, stream=True, max_tokens=3))
        self.assertTrue(all(c.usage is None and c.choices for c in chunks))
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")

    def test_max_tokens(self):
        for limit in (1, 2, 5):
            answer = chat(messages=MESSAGES, temperature=0, max_tokens=limit)
            self.assertEqual(answer.usage.completion_tokens, limit)
            self.assertEqual(answer.choices[0].finish_reason, "length")
            self.assertTrue(SAMPLE["expected"].startswith(answer.choices[0].message.content))

    def test_ignore_eos(self):
        answer = chat(messages=MESSAGES, temperature=0, max_tokens=40, extra_body={"ignore_eos": True})
        self.assertEqual(answer.usage.completion_tokens, 40)

    def test_stop_strings(self):
        word = SAMPLE["expected"].split()[3]
        cut = word[1:-1] or word  # a part of a word, so across tokens or inside one
        for stream in (False, True):
            answer = chat(messages=MESSAGES, temperature=0, stop=["never seen", cut], stream=stream)
            if stream:
                chunks = list(answer)
                text = "".join(c.choices[0].delta.content or "" for c in chunks)
                last = chunks[-1].choices[0]
            else:
                last, text = answer.choices[0], answer.choices[0].message.content
            self.assertEqual(text, SAMPLE["expected"][:SAMPLE["expected"].index(cut)])
            self.assertEqual(last.finish_reason, "stop")
            self.assertEqual(last.model_extra["stop_reason"], cut)
            timings = (chunks[-1] if stream else answer).model_extra["timings"]
            self.assertEqual(timings["strategy"], "full")

    def test_logprobs(self):
        answer = chat(messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3)
        content = answer.choices[0].logprobs.content
        # The end-of-turn token has no text.
        text = b"".join(bytes(t.bytes) for t in content).decode()
        self.assertTrue(text.startswith(SAMPLE["expected"]), text)
        for token in content:
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.top_logprobs[0].token, token.token, "greedy takes the first")
            best = [t.logprob for t in token.top_logprobs]
            self.assertEqual(best, sorted(best, reverse=True))
            self.assertLessEqual(sum(math.exp(value) for value in best), 1.001)

    def test_seed(self):
        def draw(seed):
            return chat(messages=MESSAGES, temperature=1.5, seed=seed, max_tokens=24,
                        extra_body={"ignore_eos": True}).choices[0].message.content
        first = draw(11)
        self.assertEqual(first, draw(11))
        self.assertTrue(any(draw(seed) != first for seed in (12, 13, 14)))

    def test_sampling_parameters_are_taken(self):
        answer = chat(messages=MESSAGES, temperature=0.7, top_p=0.9, presence_penalty=0.1, frequency_penalty=0.1,
                      max_tokens=4, seed=1, user="someone", metadata={"a": "b"}, store=False,
                      extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 2})
        self.assertIn(answer.usage.completion_tokens, (2, 3, 4))
        # Each of these options leaves only the most probable token.
        for options in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
            answer = chat(messages=MESSAGES, temperature=1.0, max_tokens=5, **options)
            self.assertTrue(SAMPLE["expected"].startswith(answer.choices[0].message.content), options)


class CompletionTest(unittest.TestCase):
    def test_answer_and_stream(self):
        whole = complete(PROMPT, temperature=0, max_tokens=40)
        self.assertEqual(whole.object, "text_completion")
        self.assertEqual(whole.choices[0].text, SAMPLE["expected"])
        chunks = list(complete(PROMPT, temperature=0, max_tokens=40, stream=True))
        self.assertEqual("".join(c.choices[0].text for c in chunks), SAMPLE["expected"])
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")

    def test_default_of_max_tokens(self):
        answer = complete("A panda", temperature=0, extra_body={"ignore_eos": True})
        self.assertEqual(answer.usage.completion_tokens, 16)
        self.assertEqual(answer.choices[0].finish_reason, "length")

    def test_token_prompt(self):
        ids = SERVER.post("/tokenize", {"prompt": PROMPT})[1]["tokens"]
        answer = complete(ids, temperature=0, max_tokens=40)
        self.assertEqual(answer.choices[0].text, SAMPLE["expected"])
        self.assertEqual(answer.usage.prompt_tokens, len(ids))
        self.assertEqual(complete([ids], temperature=0, max_tokens=40).choices[0].text, SAMPLE["expected"])

    def test_logprobs(self):
        answer = complete(PROMPT, temperature=0, max_tokens=6, logprobs=2)
        logprobs = answer.choices[0].logprobs
        self.assertEqual("".join(logprobs.tokens), answer.choices[0].text)
        self.assertEqual(len(logprobs.token_logprobs), 6)
        self.assertEqual(logprobs.text_offset[0], 0)
        for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
            self.assertEqual(max(top.values()), value)
            self.assertAlmostEqual(top[token], value)


class ErrorTest(unittest.TestCase):
    def refuse(self, kind, param=None, code=None, **options):
        with self.assertRaises(kind) as caught:
            chat(**{"messages": MESSAGES, **options})
        self.assertEqual(caught.exception.param, param)
        self.assertEqual(caught.exception.code, code)
        self.assertEqual(caught.exception.type, "invalid_request_error")
        return caught.exception

    def test_unknown_model(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            CLIENT.chat.completions.create(model="gpt-1", messages=MESSAGES)
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.NotFoundError):
            CLIENT.models.retrieve("gpt-1")

    def test_context_length(self):
        error = self.refuse(openai.BadRequestError, "max_tokens", "context_length_exceeded", max_tokens=10 ** 6)
        self.assertIn("context", error.message)
        limit = CLIENT.models.list().data[0].model_extra["max_model_len"]
        with self.assertRaises(openai.BadRequestError) as caught:
            complete([7] * limit, max_tokens=1)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        self.assertEqual(caught.exception.param, "prompt")

    def test_wrong_fields(self):
        for field, value in {"temperature": "hot", "top_p": 2, "stop": 5, "seed": "x", "presence_penalty": 9,
                             "max_tokens": 0, "top_logprobs": 99, "n": 2}.items():
            options = {field: value}
            if field == "top_logprobs":
                options["logprobs"] = True
            with self.subTest(field=field):
                code = "unsupported_parameter" if field == "n" else None
                self.refuse(openai.BadRequestError, "logprobs" if field == "top_logprobs" else field, code, **options)
        self.refuse(openai.BadRequestError, "messages", messages=[])
        self.refuse(openai.BadRequestError, "messages[0].role", messages=[{"role": "judge", "content": "x"}])
        self.refuse(openai.BadRequestError, "messages[0].content[0].type", messages=[
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
        self.refuse(openai.BadRequestError, "tools", "unsupported_parameter", tools=[
            {"type": "function", "function": {"name": "f", "parameters": {}}}])
        self.refuse(openai.BadRequestError, "stream_options", stream_options={"include_usage": True})

    def test_wrong_extensions(self):
        for field, value in {"strategy": "magic", "hosts": 0, "anchor_length": -1, "passing_length": "many",
                             "compressor": "zip", "query": "", "exact": 1, "balanced": "yes"}.items():
            with self.subTest(field=field):
                self.refuse(openai.BadRequestError, f"apb.{field}", extra_body={"apb": {field: value}})
        self.refuse(openai.BadRequestError, "apb.balanced", extra_body={"apb": {"strategy": "star", "balanced": True}})
        self.refuse(openai.BadRequestError, "apb.query", extra_body={"apb": {"query": "words that are not there"}})


class LongDocumentTest(unittest.TestCase):
    def ask(self, sample, apb):
        """Streams an answer; returns (text, progress chunks, last chunk)."""
        text, progress, last = "", [], None
        for chunk in chat(messages=sample["messages"], temperature=0, max_tokens=40, stream=True,
                          extra_body={"apb": apb, "return_progress": True}):
            if "apb_progress" in chunk.model_extra:
                self.assertEqual(text, "", "progress comes before the first token")
                progress.append(chunk.model_extra["apb_progress"])
            elif chunk.choices:
                text += chunk.choices[0].delta.content or ""
                last = chunk
        return text, progress, last

    def test_document_of_32k_tokens_through_apb(self):
        sample = fixture.make_prompt(32000, depth=0.4, seed=7)
        text, progress, last = self.ask(sample, {"strategy": "apb"})
        self.assertEqual(text, sample["expected"])
        timings = last.model_extra["timings"]
        self.assertEqual(timings["strategy"], "apb")
        self.assertGreater(timings["prompt_n"], 31000)
        # Their number depends on the machine: at most one each quarter of a second.
        self.assertTrue(progress)
        processed = [p["processed_tokens"] for p in progress]
        self.assertEqual(processed, sorted(processed))
        self.assertEqual({p["total_tokens"] for p in progress}, {timings["prompt_n"]})
        self.assertTrue(all(p["eta_seconds"] >= 0 for p in progress))
        self.assertGreater(processed[-1], 31000)
        self.assertEqual(progress[-1]["eta_seconds"], 0)

    def test_extensions(self):
        sample = fixture.make_prompt(6000, depth=0.7, seed=3)
        for apb in ({"strategy": "full"}, {"strategy": "star"}, {"exact": True},
                    {"strategy": "apb", "hosts": 4, "anchor_length": 400, "passing_length": 200},
                    {"strategy": "apb", "compressor": "query_aware", "query": sample["question"]},
                    {"strategy": "apb", "balanced": False}, {"strategy": "apb", "balanced": True}):
            with self.subTest(apb=apb):
                text, _, last = self.ask(sample, apb)
                self.assertEqual(text, sample["expected"])
                used = last.model_extra["timings"]["strategy"]
                if "strategy" in apb:
                    self.assertEqual(used, apb["strategy"])
                else:
                    self.assertNotIn(used, ("apb", "star"), "these are approximate")

    def test_next_turn_computes_what_is_new(self):
        sample = fixture.make_prompt(3000, depth=0.2, seed=21)
        answer = chat(messages=sample["messages"], temperature=0)
        self.assertEqual(answer.choices[0].message.content, sample["expected"])
        turns = sample["messages"] + [{"role": "assistant", "content": sample["expected"]},
                                      {"role": "user", "content": sample["question"]}]
        answer = chat(messages=turns, temperature=0)
        self.assertEqual(answer.choices[0].message.content, sample["expected"])
        usage = answer.usage
        self.assertGreater(usage.prompt_tokens_details.cached_tokens, 2500)
        self.assertEqual(answer.model_extra["timings"]["prompt_n"],
                         usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens)

    def test_strategy_of_short_and_long_prompts(self):
        for tokens, strategy in ((200, "full"), (16000, "apb")):
            sample = fixture.make_prompt(tokens, seed=9)
            text, _, last = self.ask(sample, {})
            self.assertEqual(text, sample["expected"])
            self.assertEqual(last.model_extra["timings"]["strategy"], strategy)


if __name__ == "__main__":
    unittest.main(verbosity=2)
