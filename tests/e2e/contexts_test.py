"""Contexts: a document is computed once and asked about many times, by HTTP and by gRPC.

Goal: a question that goes on from a context computes only its own tokens and gets the same answer as without a context;
the context's KV stays until it is deleted, expires or is lost, and is then free; an impossible request is refused with a
reason. Method: the demo model on two ranks; a server with little room and no prefix cache; a server whose ranks are
killed.
"""
import concurrent.futures
import http.client
import json
import os
import signal
import time
import unittest

import grpc

import fixture

import generator  # noqa: E402  (in make_prompt's folder, which the fixture has put on sys.path)

STUBS = fixture.make_stubs()
from apb.inference.v1 import inference_service_pb2 as pb  # noqa: E402
from apb.inference.v1 import inference_service_pb2_grpc as pb_grpc  # noqa: E402

SERVER = None
SMALL = None  # has room for one long document only, and no prefix cache
MAX_CONTEXTS = 4


def setUpModule():
    global SERVER, SMALL
    SERVER = unittest.enterModuleContext(fixture.Server("--max-contexts", MAX_CONTEXTS, "--max-context-ttl", 5000))
    SMALL = unittest.enterModuleContext(fixture.Server("--kv-cache-tokens", 12000,
                                                       "--worker-args", "--no-prefix-caching"))


def document(tokens, seed, facts=3):
    """Returns (text, [(question, answer)])."""
    text, asked = generator.make_asked(seed, tokens, [(i + 0.5) / facts for i in range(facts)],
                                       count_tokens=fixture.COUNT_TOKENS)
    return text, [(generator.question_text(name), generator.answer_text(name, value)) for name, value in asked]


def user(text):
    return {"role": "user", "content": text}


def create(server, fields, expect=200):
    status, answer = server.post("/v1/contexts", fields)
    assert status == expect, answer
    return answer


def delete(server, context):
    return server.request("DELETE", "/v1/contexts/" + context)[0]


def chat(server, messages, expect=200, **fields):
    status, answer = server.post("/v1/chat/completions", {
        "messages": messages, "temperature": 0, "max_tokens": 40, **fields})
    assert status == expect, answer
    return answer if expect != 200 else (answer["choices"][0]["message"]["content"], answer["usage"])


def cached(usage):
    return usage["prompt_tokens_details"]["cached_tokens"]


def pinned(server):
    return sum(v for series, v in server.metrics().items() if 'state="pinned"' in series)


class Case(unittest.TestCase):
    def tearDown(self):
        """Checks that no context and no context's KV is left."""
        for server in (SERVER, SMALL):
            for context in json.loads(server.get("/v1/contexts")[1])["data"]:
                delete(server, context["id"])
            fixture.wait_until(lambda: pinned(server) == 0, "no pinned KV")
            self.assertEqual(server.metrics()["apb_contexts"], 0)
            server.await_idle()

    def assert_error(self, answer, part, code=None):
        self.assertIn(part, answer["error"]["message"])
        if code:
            self.assertEqual(answer["error"]["code"], code)


class QuestionsTest(Case):
    def check_questions(self, server, tokens, strategy, seed):
        text, asked = document(tokens, seed)
        before = [chat(server, [user(text + "\n\n" + question)], apb={"strategy": strategy})[0]
                  for question, _ in asked] if strategy == "ring_kv" else []
        context = create(server, {"messages": [user(text)], "apb": {"strategy": strategy}})
        size = context["usage"]["prompt_tokens"]
        self.assertEqual(context["strategy"], strategy)
        self.assertGreater(size, 0.98 * tokens)
        for i, (question, answer) in enumerate(asked):
            found, usage = chat(server, [user(question)], context=context["id"])
            self.assertEqual(found, answer)
            # The first question finds exactly the context's tokens; later ones also find the words
            # with which questions begin.
            self.assertTrue(cached(usage) == size if i == 0 else size <= cached(usage) < size + 15, usage)
            self.assertLess(usage["prompt_tokens"] - size, 40)
            if before:
                self.assertEqual(found, before[i])
        return context, text, asked

    def test_exact(self):
        self.check_questions(SERVER, 3000, "ring_kv", 1)

    def test_apb(self):
        self.check_questions(SERVER, 8000, "apb", 2)

    def test_without_prefix_cache(self):
        context, text, asked = self.check_questions(SMALL, 3000, "ring_kv", 3)
        # Only requests that name the context find its KV.
        self.assertEqual(cached(chat(SMALL, [user(text + "\n\n" + asked[0][0])])[1]), 0)
        self.assertEqual(delete(SMALL, context["id"]), 200)
        SMALL.await_idle()
        fixture.wait_until(lambda: not any(v for series, v in SMALL.metrics().items() if 'state="cached"' in series),
                           "its KV is not there as a cached prefix either")

    def test_conversation(self):
        """Turns after the context find the KV of the earlier turns. The document may be in the system message; then the
        question is a turn."""
        for messages in ([user(document(3000, 4)[0])], [{"role": "system", "content": document(3000, 4)[0]}]):
            asked = document(3000, 4)[1]
            context = create(SERVER, {"messages": messages})
            size, turns = context["usage"]["prompt_tokens"], []
            for question, answer in asked:
                turns.append(user(question))
                found, usage = chat(SERVER, turns, context=context["id"])
                if messages[0]["role"] == "user":
                    self.assertEqual(found, answer)
                self.assertGreaterEqual(cached(usage), size)
                if len(turns) > 1:
                    self.assertGreater(cached(usage), size + 20)
                turns.append({"role": "assistant", "content": found})
            delete(SERVER, context["id"])

    def test_plain_prompts(self):
        sample = fixture.make_prompt(2000, seed=5)
        prompt, question = sample["completions_request"]["prompt"], sample["question"]
        at = prompt.rindex("<|user|>")
        options = {"temperature": 0, "max_tokens": 40}
        ids = SERVER.post("/tokenize", {"prompt": prompt[:at]})[1]["tokens"]
        for body in ({"prompt": prompt[:at]}, {"prompt": ids}):
            context = create(SERVER, {**body, "apb": {"strategy": "full", "query": question}})
            self.assertEqual(context["usage"]["prompt_tokens"], len(ids))
            for rest in (prompt[at:], SERVER.post("/tokenize", {"prompt": prompt[at:], "add_special_tokens": False})
                         [1]["tokens"]):
                status, answer = SERVER.post("/v1/completions", {"prompt": rest, "context": context["id"], **options})
                self.assertEqual(status, 200, answer)
                self.assertEqual(answer["choices"][0]["text"], sample["expected"])
                self.assertGreaterEqual(cached(answer["usage"]), len(ids))
            self.assert_error(chat(SERVER, [user(question)], 400, context=context["id"]), "/v1/completions")

    def test_short_context(self):
        """The context is far shorter than any prefix that the prefix cache keeps."""
        for server in (SERVER, SMALL):
            context = create(server, {"prompt": "A panda"})
            _, answer = server.post("/v1/completions", {"prompt": " and", "context": context["id"], "max_tokens": 2})
            self.assertEqual(cached(answer["usage"]), context["usage"]["prompt_tokens"])

    def test_long_question(self):
        """The question's tokens are a prefill of their own, over the context's KV."""
        text, ((question, answer), *_) = document(4000, 8)
        for strategy in ("ring_kv", "apb", "full"):
            context = create(SERVER, {"messages": [user(text)], "apb": {"strategy": strategy}})
            found, usage = chat(SERVER, [user(document(1500, 9)[0] + "\n\n" + question)], context=context["id"])
            self.assertEqual(found, answer)
            self.assertEqual(cached(usage), context["usage"]["prompt_tokens"])
            self.assertGreater(usage["prompt_tokens"], 5000)
            delete(SERVER, context["id"])

    def test_many_at_once(self):
        text, asked = document(4000, 6, facts=6)
        context = create(SERVER, {"messages": [user(text)]})
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda qa: chat(SERVER, [user(qa[0])], context=context["id"]), asked * 2))
        self.assertEqual([a for a, _ in answers], [answer for _, answer in asked * 2])
        self.assertTrue(all(cached(usage) >= context["usage"]["prompt_tokens"] for _, usage in answers))

    def test_stream(self):
        text, ((question, answer), *_) = document(2000, 7)
        context = create(SERVER, {"messages": [user(text)]})
        stream = fixture.Stream(SERVER, "/v1/chat/completions", {
            "messages": [user(question)], "context": context["id"], "temperature": 0, "max_tokens": 40})
        self.assertEqual(fixture.text_of(stream.read_all()), answer)
        stream.close()


class LifeTest(Case):
    def test_record(self):
        before = time.time()
        text, asked = document(1000, 11)
        made = create(SERVER, {"model": "demo", "messages": [user(text)], "ttl_seconds": 1000})
        other = create(SERVER, {"prompt": "Another one"})
        self.assertRegex(made["id"], r"^ctx-[0-9a-f]{32}$")
        self.assertEqual((made["object"], made["model"], made["status"], made["ttl_seconds"]),
                         ("context", "demo", "ready", 1000))
        self.assertLess(abs(made["created"] - before), 100)
        self.assertLess(abs(made["expires_at"] - before - 1000), 100)
        self.assertGreater(made["prefill_seconds"], 0)
        self.assertEqual(other["ttl_seconds"], 3600)
        self.assertEqual(json.loads(SERVER.get("/v1/contexts/" + made["id"])[1]), made)
        self.assertEqual(json.loads(SERVER.get("/v1/contexts")[1]), {"object": "list", "data": [made, other]})
        values = SERVER.metrics()
        self.assertEqual(values["apb_contexts"], 2)
        self.assertEqual(values["apb_context_tokens"],
                         made["usage"]["prompt_tokens"] + other["usage"]["prompt_tokens"])
        fixture.wait_until(lambda: pinned(SERVER) > 0, "pinned blocks in the metrics")
        # A question sets its expiry anew.
        time.sleep(1.1)
        chat(SERVER, [user(asked[0][0])], context=made["id"])
        self.assertGreater(json.loads(SERVER.get("/v1/contexts/" + made["id"])[1])["expires_at"], made["expires_at"])
        status, _, answer = SERVER.request("DELETE", "/v1/contexts/" + made["id"])
        self.assertEqual((status, json.loads(answer)),
                         (200, {"id": made["id"], "object": "context.deleted", "deleted": True}))
        self.assertEqual(json.loads(SERVER.get("/v1/contexts")[1])["data"], [other])
        for method in ("GET", "DELETE"):
            status, _, answer = SERVER.request(method, "/v1/contexts/" + made["id"])
            self.assertEqual(status, 404)
            self.assert_error(json.loads(answer), made["id"], "context_not_found")
        self.assert_error(chat(SERVER, [user("x")], 404, context=made["id"]), made["id"], "context_not_found")

    def test_expiry_frees_the_kv(self):
        text, asked = document(7000, 12)
        context = create(SMALL, {"messages": [user(text)], "ttl_seconds": 2})
        fixture.wait_until(lambda: pinned(SMALL) > 0 or not json.loads(SMALL.get("/v1/contexts")[1])["data"], "pinned")
        fixture.wait_until(lambda: SMALL.get("/v1/contexts/" + context["id"])[0] == 404, "it has expired")
        self.assert_error(chat(SMALL, [user(asked[0][0])], 404, context=context["id"]), "expired", "context_not_found")
        # There is room for the next context, which needs as much.
        create(SMALL, {"messages": [user(document(7000, 13)[0])]})

    def test_a_question_in_flight_outlives_its_context(self):
        text, asked = document(3000, 14)
        context = create(SERVER, {"messages": [user(text)]})
        stream = fixture.Stream(SERVER, "/v1/chat/completions", {
            "messages": [user(asked[0][0])], "context": context["id"], "temperature": 0, "max_tokens": 200,
            "ignore_eos": True})
        stream.read_event()
        self.assertEqual(delete(SERVER, context["id"]), 200)
        self.assertTrue(fixture.text_of(stream.read_all()).startswith(asked[0][1]))
        self.assertTrue(stream.done)
        stream.close()

    def test_room(self):
        text, asked = document(7000, 15)
        context = create(SMALL, {"messages": [user(text)]})
        # Another document has no room beside it, as a context or as a prompt; short prompts have.
        other = [user(document(7000, 16)[0])]
        for path, body in (("/v1/contexts", {}), ("/v1/chat/completions", {"max_tokens": 5})):
            status, headers, answer = SMALL.request("POST", path, json.dumps({"messages": other, **body}))
            self.assertEqual(status, 429, answer)
            self.assertGreater(int(headers["retry-after"]), 0)
            self.assert_error(json.loads(answer), "contexts hold")
        self.assertEqual(chat(SMALL, [user(asked[0][0])], context=context["id"])[0], asked[0][1])
        sample = fixture.make_prompt(1000, seed=17)
        self.assertEqual(chat(SMALL, sample["messages"])[0], sample["expected"])
        # After the context is deleted, the other document has room.
        self.assertEqual(delete(SMALL, context["id"]), 200)
        chat(SMALL, other, max_tokens=5)

    def test_at_most_so_many(self):
        made = [create(SERVER, {"prompt": f"Context {i}"}) for i in range(MAX_CONTEXTS)]
        self.assert_error(create(SERVER, {"prompt": "One more"}, 429), f"at most {MAX_CONTEXTS} contexts")
        delete(SERVER, made[0]["id"])
        create(SERVER, {"prompt": "One more"})
        self.assert_error(create(SERVER, {"prompt": "And more"}, 429), f"at most {MAX_CONTEXTS} contexts")

    def test_client_that_leaves_cancels_the_creation(self):
        body = json.dumps({"messages": [user(document(30000, 18)[0])], "apb": {"strategy": "full"}})
        for _ in range(MAX_CONTEXTS + 1):  # the context's place is free again each time
            connection = http.client.HTTPConnection("127.0.0.1", SERVER.http_port, timeout=fixture.PATIENCE)
            connection.request("POST", "/v1/contexts", body)
            fixture.wait_until(lambda: SERVER.metrics()["apb_num_requests_running"] == 1, "a prefill under way")
            connection.close()
            fixture.wait_until(lambda: SERVER.metrics()["apb_num_requests_running"] == 0, "it was cancelled")
        self.assertEqual(json.loads(SERVER.get("/v1/contexts")[1])["data"], [])

    def test_lost_group(self):
        with fixture.Server("--max-contexts", 1) as server:
            text, asked = document(2000, 19)
            fields = {"messages": [user(text)]}
            context = create(server, fields)
            os.kill(server.workers()[1], signal.SIGKILL)
            fixture.wait_until(lambda: server.get("/readyz")[0] == 503, "not ready")
            fixture.wait_until(lambda: server.get("/readyz")[0] == 200, "ready again")
            self.assertEqual(json.loads(server.get("/v1/contexts/" + context["id"])[1])["status"], "lost")
            answer = chat(server, [user(asked[0][0])], 404, context=context["id"])
            self.assert_error(answer, "create it again", "context_lost")
            # The lost context holds no place.
            again = create(server, fields)
            self.assertEqual(chat(server, [user(asked[0][0])], context=again["id"])[0], asked[0][1])
            self.assertEqual(server.get("/v1/contexts/" + context["id"])[0], 404)


class OwnerTest(Case):
    def test_a_key_sees_its_own(self):
        with fixture.Server("--api-key", "mine", "--api-key", "yours", "--http-threads", 1) as server, \
                grpc.insecure_channel(server.grpc_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            def call(method, path, key, body=None):
                status, _, text = server.request(method, path, body and json.dumps(body),
                                                 {"Authorization": "Bearer " + key})
                return status, json.loads(text)
            _, context = call("POST", "/v1/contexts", "mine", {"prompt": "A secret of mine"})
            path, ask = "/v1/contexts/" + context["id"], {"prompt": "is", "context": context["id"], "max_tokens": 1}
            stub = pb_grpc.InferenceServiceStub(channel)
            for key, status, count in (("yours", 404, 0), ("mine", 200, 1)):
                metadata = [("authorization", "Bearer " + key)]
                self.assertEqual(call("GET", path, key)[0], status)
                self.assertEqual(call("POST", "/v1/completions", key, ask)[0], status)
                self.assertEqual(len(call("GET", "/v1/contexts", key)[1]["data"]), count)
                self.assertEqual(len(stub.ListContexts(pb.ListContextsRequest(), metadata=metadata).contexts), count)
                self.assertEqual(call("DELETE", path, key)[0], status)


class WrongFieldsTest(Case):
    def test_creation(self):
        for fields, part in (({}, "prompt"), ({"prompt": ""}, "prompt"), ({"messages": []}, "messages"),
                             ({"messages": [user("a")], "prompt": "a"}, "prompt"),
                             ({"messages": [user("")]}, "messages"),
                             ({"messages": [user("a")], "ttl_seconds": 0}, "ttl_seconds"),
                             ({"messages": [user("a")], "ttl_seconds": 5001}, "ttl_seconds"),
                             ({"messages": [user("a")], "ttl_seconds": "long"}, "ttl_seconds"),
                             ({"prompt": "a", "stream": True}, "stream"), ({"prompt": "a", "tools": [1]}, "tools"),
                             ({"prompt": "a", "context": "ctx-1"}, "context"),
                             ({"prompt": "a", "apb": {"strategy": "magic"}}, "apb.strategy"),
                             ({"prompt": "a", "apb": {"query": ""}}, "apb.query"),
                             ({"prompt": "a", "apb": {"query": "  "}}, "apb.query")):
            answer = create(SERVER, fields, 400)
            self.assertEqual(answer["error"]["param"], part, answer)
        self.assert_error(create(SERVER, {"prompt": [300] * 10 ** 6}, 400), "context", "context_length_exceeded")
        self.assertEqual(create(SERVER, {"prompt": "a", "model": "x"}, 404)["error"]["code"], "model_not_found")

    def test_use(self):
        context = create(SERVER, {"messages": [user(document(2000, 21)[0])], "apb": {"strategy": "apb", "hosts": 4}})
        ask = {"context": context["id"], "max_tokens": 2}
        for apb in ({"strategy": "star"}, {"strategy": "ring_kv"}, {"hosts": 8}, {"anchor_length": 100},
                    {"passing_length": 7}, {"compressor": "random"}, {"exact": True}, {"query": "x"},
                    {"balanced": False}):
            answer = chat(SERVER, [user("x")], 400, apb=apb, **ask)
            self.assertEqual(answer["error"]["param"], "apb." + next(iter(apb)), answer)
        for apb in ({}, {"strategy": "apb"}, {"strategy": "auto"}, {"hosts": 4}):
            chat(SERVER, [user("x")], apb=apb, **ask)
        for wrong in ("", "ctx-", "../x", "ctx-" + "0" * 32):
            self.assertEqual(chat(SERVER, [user("x")], 404, context=wrong)["error"]["code"], "context_not_found")
        self.assertEqual(chat(SERVER, [user("x")], 400, context=7)["error"]["param"], "context")
        self.assertEqual(chat(SERVER, [], 400, **ask)["error"]["param"], "messages")

    def test_methods(self):
        for method, path, allow in (("PUT", "/v1/contexts", "POST, GET, HEAD"),
                                    ("POST", "/v1/contexts/x", "GET, HEAD, DELETE"),
                                    ("DELETE", "/v1/models/demo", "GET, HEAD")):
            status, headers, _ = SERVER.request(method, path, "{}")
            self.assertEqual((status, headers["allow"]), (405, allow))


class GrpcTest(Case):
    def setUp(self):
        channel = grpc.insecure_channel(SERVER.grpc_address, options=[("grpc.enable_http_proxy", 0)])
        self.addCleanup(channel.close)
        self.stub = pb_grpc.InferenceServiceStub(channel)

    def generate(self, **fields):
        *events, last = self.stub.Generate(pb.GenerateRequest(
            sampling=pb.SamplingParams(temperature=0, max_tokens=40), **fields), timeout=fixture.PATIENCE)
        return "".join(e.token.text for e in events), last.completed

    def refuse(self, code, part, call, request):
        with self.assertRaises(grpc.RpcError) as caught:
            list(call(request)) if call == self.stub.Generate else call(request)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        self.assertIn(part, caught.exception.details())

    def test_life(self):
        text, asked = document(8000, 31)
        chat_input = pb.ChatInput(messages=[pb.ChatMessage(role="user", content=text)])
        made = self.stub.CreateContext(pb.CreateContextRequest(
            chat=chat_input, apb=pb.ApbOptions(strategy="apb", query=asked[0][0]), ttl_seconds=100))
        self.assertEqual((made.model, made.strategy, made.ttl_seconds, made.lost), ("demo", "apb", 100, False))
        self.assertGreater(made.usage.prompt_tokens, 7800)
        for question, answer in asked:
            question = pb.ChatInput(messages=[pb.ChatMessage(role="user", content=question)])
            found, completed = self.generate(chat=question, context=made.id)
            self.assertEqual(found, answer)
            self.assertEqual(completed.strategy, "apb")
            self.assertGreaterEqual(completed.usage.cached_tokens, made.usage.prompt_tokens)
        got = self.stub.GetContext(pb.GetContextRequest(id=made.id))
        self.assertGreaterEqual(got.expires_at, made.expires_at)
        self.assertEqual(list(self.stub.ListContexts(pb.ListContextsRequest()).contexts), [got])
        # Both APIs see the same context.
        self.assertEqual(json.loads(SERVER.get("/v1/contexts/" + made.id)[1])["expires_at"], got.expires_at)
        self.stub.DeleteContext(pb.DeleteContextRequest(id=made.id))
        for call, request in ((self.stub.GetContext, pb.GetContextRequest(id=made.id)),
                              (self.stub.DeleteContext, pb.DeleteContextRequest(id=made.id)),
                              (self.stub.Generate, pb.GenerateRequest(text="x", context=made.id))):
            self.refuse(grpc.StatusCode.NOT_FOUND, made.id, call, request)

    def test_wrong_fields(self):
        wrong = grpc.StatusCode.INVALID_ARGUMENT
        self.refuse(wrong, "input", self.stub.CreateContext, pb.CreateContextRequest())
        self.refuse(wrong, "ttl_seconds", self.stub.CreateContext, pb.CreateContextRequest(text="x", ttl_seconds=0))
        self.refuse(wrong, "request_id", self.stub.CreateContext, pb.CreateContextRequest(text="x", request_id="a b"))
        made = self.stub.CreateContext(pb.CreateContextRequest(text="x"))
        self.refuse(wrong, "apb.query", self.stub.Generate,
                    pb.GenerateRequest(text="x", context=made.id, apb=pb.ApbOptions(query="x")))

    def test_cancel(self):
        chat_input = pb.ChatInput(messages=[pb.ChatMessage(role="user", content=document(30000, 32)[0])])
        call = self.stub.CreateContext.future(pb.CreateContextRequest(
            chat=chat_input, apb=pb.ApbOptions(strategy="full")))
        fixture.wait_until(lambda: SERVER.metrics()["apb_num_requests_running"] == 1, "a prefill under way")
        call.cancel()
        SERVER.await_idle()
        self.refuse(grpc.StatusCode.DEADLINE_EXCEEDED, "", lambda r: self.stub.CreateContext(r, timeout=0.5),
                    pb.CreateContextRequest(chat=chat_input, apb=pb.ApbOptions(strategy="full")))
        SERVER.await_idle()
        self.assertEqual(len(self.stub.ListContexts(pb.ListContextsRequest()).contexts), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
