"""The gRPC side through grpcio, with stubs that are made from proto/ when the test starts.

Goal: Generate's events come in their order, the presence of scalars counts, every error is a status, cancellation and
deadlines free the KV blocks, and the standard services answer. Method: one server with two ranks.
"""
import json
import time
import unittest

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import fixture

SERVICE = "apb.inference.v1.InferenceService"
MESSAGE_CAP = 64 << 20
STUBS = fixture.make_stubs()
from apb.inference.v1 import inference_service_pb2 as pb  # noqa: E402
from apb.inference.v1 import inference_service_pb2_grpc as pb_grpc  # noqa: E402

SERVER = CHANNEL = STUB = None


def setUpModule():
    global SERVER, CHANNEL, STUB
    SERVER = unittest.enterModuleContext(fixture.Server("--max-queued-requests", 4))
    CHANNEL = unittest.enterModuleContext(grpc.insecure_channel(
        SERVER.grpc_address, options=[("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]))
    STUB = pb_grpc.InferenceServiceStub(CHANNEL)


SAMPLE = fixture.make_prompt(300, seed=5)
PROMPT = SAMPLE["completions_request"]["prompt"]
GREEDY = pb.SamplingParams(temperature=0, max_tokens=40)


def chat_input(sample):
    return pb.ChatInput(messages=[pb.ChatMessage(role=m["role"], content=m["content"]) for m in sample["messages"]])


LONG = pb.GenerateRequest(chat=chat_input(fixture.make_prompt(30000, seed=4)), sampling=GREEDY,
                          apb=pb.ApbOptions(strategy="full"), include_progress=True)


def generate(timeout=fixture.PATIENCE, **fields):
    """Makes a call; returns (kinds of its events, text, the Completed)."""
    fields.setdefault("sampling", GREEDY)
    kinds, text, completed = [], "", None
    for response in STUB.Generate(pb.GenerateRequest(**fields), timeout=timeout):
        kind = response.WhichOneof("event")
        kinds.append(kind)
        if kind == "token":
            text += response.token.text
        elif kind == "completed":
            completed = response.completed
    return kinds, text, completed


class GenerateTest(unittest.TestCase):
    def test_events_and_answer(self):
        events = list(STUB.Generate(pb.GenerateRequest(model="demo", request_id="my-id.1", text=PROMPT, sampling=GREEDY,
                                                       include_progress=True), timeout=fixture.PATIENCE))
        kinds = [e.WhichOneof("event") for e in events]
        order = ["queued", "progress", "token", "completed"]
        self.assertEqual(kinds, sorted(kinds, key=order.index))
        self.assertEqual((kinds.count("queued"), kinds.count("completed")), (1, 1))
        self.assertGreater(kinds.count("progress"), 0)
        queued, completed = events[0].queued, events[-1].completed
        self.assertEqual(queued.request_id, "my-id.1")
        self.assertEqual(queued.prompt_tokens, completed.usage.prompt_tokens)
        tokens = [e.token for e in events if e.WhichOneof("event") == "token"]
        self.assertEqual("".join(t.text for t in tokens), SAMPLE["expected"])
        ids = [i for t in tokens for i in t.ids]
        self.assertEqual(len(ids), completed.usage.completion_tokens - 1, "all but the end-of-turn token")
        self.assertEqual(completed.finish_reason, pb.FINISH_REASON_STOP)
        self.assertEqual(completed.stop_reason, "1")
        self.assertEqual(completed.strategy, "full")
        self.assertGreater(completed.prefill_seconds, 0)
        self.assertGreater(completed.decode_seconds, 0)
        progress = [e.progress for e in events if e.WhichOneof("event") == "progress"]
        self.assertTrue(all(p.total_tokens == queued.prompt_tokens for p in progress))

    def test_no_progress_unless_asked_for(self):
        self.assertNotIn("progress", generate(text=PROMPT)[0])

    def test_inputs_agree(self):
        ids = STUB.Tokenize(pb.TokenizeRequest(text=PROMPT)).ids
        answers = [generate(text=PROMPT), generate(tokens=pb.TokenInput(ids=ids)), generate(chat=chat_input(SAMPLE))]
        for _, text, completed in answers:
            self.assertEqual(text, SAMPLE["expected"])
            self.assertEqual(completed.usage.prompt_tokens, len(ids))

    def test_presence_of_scalars(self):
        # Temperature 0 is a value; an absent one is 1. Greedy answers are the same with every seed,
        # the others need not be.
        def draw(**scalars):
            return generate(text="The ", sampling=pb.SamplingParams(max_tokens=60, ignore_eos=True, **scalars))[1]
        self.assertEqual(len({draw(temperature=0, seed=seed) for seed in range(4)}), 1)
        self.assertGreater(len({draw(seed=seed) for seed in range(4)}), 1)
        # max_tokens = 0 is a value too, and a wrong one.
        self.refuse(grpc.StatusCode.INVALID_ARGUMENT, "max_tokens", text=PROMPT,
                    sampling=pb.SamplingParams(max_tokens=0))

    def test_stop_length_and_logprobs(self):
        word = SAMPLE["expected"].split()[4]
        _, text, completed = generate(text=PROMPT, sampling=pb.SamplingParams(temperature=0, max_tokens=40,
                                                                              stop=[word]))
        self.assertEqual(text, SAMPLE["expected"][:SAMPLE["expected"].index(word)])
        self.assertEqual((completed.finish_reason, completed.stop_reason), (pb.FINISH_REASON_STOP, word))
        responses = list(STUB.Generate(pb.GenerateRequest(text=PROMPT, sampling=pb.SamplingParams(
            temperature=0, max_tokens=3, logprobs=2))))
        self.assertEqual(responses[-1].completed.finish_reason, pb.FINISH_REASON_LENGTH)
        entries = [entry for r in responses if r.WhichOneof("event") == "token" for entry in r.token.logprobs]
        self.assertEqual(len(entries), 3)
        self.assertEqual(b"".join(e.chosen.token for e in entries).decode(),
                         "".join(r.token.text for r in responses if r.WhichOneof("event") == "token"))
        for entry in entries:
            self.assertEqual(len(entry.top), 2)
            self.assertEqual(entry.top[0].id, entry.chosen.id)

    def test_stop_tokens_and_special_tokens(self):
        def draw(**options):
            return generate(text=PROMPT, sampling=pb.SamplingParams(temperature=0, max_tokens=40, **options))
        ids = STUB.Tokenize(pb.TokenizeRequest(text=SAMPLE["expected"], add_special_tokens=False)).ids
        _, text, completed = draw(stop_token_ids=[ids[3]])
        self.assertEqual(text, STUB.Detokenize(pb.DetokenizeRequest(ids=ids[:list(ids).index(ids[3])])).text)
        self.assertEqual((completed.finish_reason, completed.stop_reason), (pb.FINISH_REASON_STOP, str(ids[3])))
        word = SAMPLE["expected"].split()[4]
        end = SAMPLE["expected"].index(word) + len(word)
        self.assertEqual(draw(stop=[word], include_stop_str_in_output=True)[1], SAMPLE["expected"][:end])
        # With ignore_eos, the end-of-turn token is a special token in the middle of the text.
        texts = [draw(ignore_eos=True, skip_special_tokens=skip)[1] for skip in (True, False)]
        self.assertNotIn("<|", texts[0])
        self.assertIn("<|", texts[1])
        self.refuse(grpc.StatusCode.INVALID_ARGUMENT, "stop_token_ids", text=PROMPT,
                    sampling=pb.SamplingParams(stop_token_ids=[-1]))

    def test_default_of_max_tokens(self):
        """The same as over HTTP: 16 for text and tokens; for chat as many as fit."""
        ids = STUB.Tokenize(pb.TokenizeRequest(text=PROMPT)).ids
        for prompt in ({"text": PROMPT}, {"tokens": pb.TokenInput(ids=ids)}):
            completed = generate(sampling=pb.SamplingParams(temperature=0, ignore_eos=True), **prompt)[2]
            self.assertEqual(completed.usage.completion_tokens, 16)
        call = STUB.Generate(pb.GenerateRequest(chat=chat_input(SAMPLE), sampling=pb.SamplingParams(ignore_eos=True)))
        generated = 0
        for response in call:
            generated += len(response.token.ids)
            if generated > 16:
                break
        call.cancel()
        self.assertGreater(generated, 16)

    def test_apb(self):
        sample = fixture.make_prompt(8000, depth=0.3, seed=6)
        for options in (pb.ApbOptions(strategy="apb", hosts=4),
                        pb.ApbOptions(strategy="apb", balanced=True),
                        pb.ApbOptions(strategy="apb", balanced=False), pb.ApbOptions(strategy="star"),
                        pb.ApbOptions(strategy="full"), pb.ApbOptions(exact=True)):
            _, text, completed = generate(chat=chat_input(sample), apb=options)
            self.assertEqual(text, sample["expected"])
            if options.strategy:
                self.assertEqual(completed.strategy, options.strategy)
            else:
                self.assertNotIn(completed.strategy, ("", "apb", "star"))

    def refuse(self, code, part, **fields):
        with self.assertRaises(grpc.RpcError) as caught:
            generate(**fields)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        self.assertIn(part, caught.exception.details())

    def test_errors(self):
        wrong = grpc.StatusCode.INVALID_ARGUMENT
        self.refuse(wrong, "apb.balanced", text="x", apb=pb.ApbOptions(strategy="full", balanced=True))
        self.refuse(wrong, "input")
        self.refuse(wrong, "prompt", text="")
        self.refuse(wrong, "prompt[1]", tokens=pb.TokenInput(ids=[1, 10 ** 8]))
        self.refuse(wrong, "messages[0].role", chat=pb.ChatInput(messages=[pb.ChatMessage(role="x", content="y")]))
        self.refuse(wrong, "temperature", text=PROMPT, sampling=pb.SamplingParams(temperature=-1))
        self.refuse(wrong, "stop", text=PROMPT, sampling=pb.SamplingParams(stop=["x" * 300]))
        self.refuse(wrong, "apb.query", text=PROMPT, apb=pb.ApbOptions(query="not in there"))
        self.refuse(wrong, "request_id", text=PROMPT, request_id="a b")
        self.refuse(wrong, "context", text=PROMPT, sampling=pb.SamplingParams(max_tokens=1 << 20))
        self.refuse(grpc.StatusCode.NOT_FOUND, "gpt-1", text=PROMPT, model="gpt-1")


class CancelTest(unittest.TestCase):
    def setUp(self):
        SERVER.await_idle()

    def start_long(self, **options):
        call = STUB.Generate(LONG, **options)
        self.assertEqual(next(call).WhichOneof("event"), "queued")
        return call

    def test_cancel_in_the_middle_of_a_prefill(self):
        call = self.start_long()
        self.assertEqual(next(call).WhichOneof("event"), "progress")
        call.cancel()
        with self.assertRaises(grpc.RpcError) as caught:
            list(call)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.CANCELLED)
        fixture.wait_until(lambda: STUB.GetServerInfo(pb.GetServerInfoRequest()).running_requests == 0, "none running")
        SERVER.await_idle()

    def test_deadline(self):
        begin = time.monotonic()
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.start_long(timeout=0.7))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assertGreaterEqual(time.monotonic() - begin, 0.6)
        SERVER.await_idle()

    def test_full_queue(self):
        """--max-queued-requests 4: further requests are refused at once, and the accepted ones go on."""
        calls = [self.start_long()]
        fixture.wait_until(lambda: STUB.GetServerInfo(pb.GetServerInfoRequest()).running_requests == 1, "one running")
        refused = []
        for _ in range(12):
            call = STUB.Generate(LONG)
            calls.append(call)
            try:
                next(call)
            except grpc.RpcError as error:
                refused.append(error)
                break
        self.assertTrue(refused, "the queue never was full")
        self.assertEqual(refused[0].code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        status, headers, text = SERVER.request("POST", "/v1/chat/completions", json.dumps(SAMPLE["request"]))
        self.assertEqual((status, json.loads(text)["error"]["type"]), (429, "rate_limit_exceeded"))
        self.assertGreater(int(headers["retry-after"]), 0)
        for call in calls:
            call.cancel()
        SERVER.await_idle()

    def test_big_messages(self):
        """A prompt of a million tokens is received, then refused as longer than the context. Messages have at most 64 MiB."""
        def code_of(request):
            with self.assertRaises(grpc.RpcError) as caught:
                list(STUB.Generate(request, timeout=fixture.PATIENCE))
            return caught.exception
        error = code_of(pb.GenerateRequest(tokens=pb.TokenInput(ids=[300] * 1_000_000)))
        self.assertEqual(error.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("1000000", error.details().replace("1000001", "1000000"))
        self.assertEqual(code_of(pb.GenerateRequest(text="x" * (MESSAGE_CAP + 1))).code(),
                         grpc.StatusCode.RESOURCE_EXHAUSTED)


class UnaryTest(unittest.TestCase):
    def test_tokenize_and_detokenize(self):
        text = "A panda: 你好 <|end|>"
        answer = STUB.Tokenize(pb.TokenizeRequest(text=text, add_special_tokens=False))
        self.assertEqual(STUB.Detokenize(pb.DetokenizeRequest(ids=answer.ids)).text, text)
        self.assertEqual(list(STUB.Tokenize(pb.TokenizeRequest(text=text)).ids)[1:], list(answer.ids))
        self.assertEqual(len(STUB.Tokenize(pb.TokenizeRequest(chat=chat_input(SAMPLE))).ids),
                         SAMPLE["prompt_tokens_estimate"])
        self.assertEqual(answer.max_model_len, STUB.GetModelInfo(pb.GetModelInfoRequest()).max_model_len)
        for call, request in ((STUB.Detokenize, pb.DetokenizeRequest(ids=[-1])), (STUB.Tokenize, pb.TokenizeRequest())):
            with self.assertRaises(grpc.RpcError) as caught:
                call(request)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)

    def test_information(self):
        model = STUB.GetModelInfo(pb.GetModelInfoRequest(model="demo"))
        self.assertEqual((model.id, model.vocab_size, model.dtype, model.has_retaining_heads),
                         ("demo", 2048, "bfloat16", True))
        names = json.loads(SERVER.get("/v1/models/demo")[1])["apb"]["strategies"]
        self.assertEqual(list(model.strategies), names)
        self.assertLessEqual({"auto", "full", "apb", "star", "ring_kv", "ring_q", "token_ring", "ulysses"}, set(names))
        self.assertLess(abs(model.created - time.time()), 3600)
        server = STUB.GetServerInfo(pb.GetServerInfoRequest())
        self.assertRegex(server.version, r"^\d+\.\d+")
        self.assertEqual([(g.ranks, g.ready, g.dtype, g.weight_type) for g in server.groups],
                         [(2, True, "bfloat16", "bfloat16")])
        self.assertGreaterEqual(server.groups[0].kv_tokens_total, model.max_model_len)
        # Assumed, because of --calibration off.
        self.assertEqual(server.groups[0].calibration.product_flops, 1e12)
        self.assertEqual(server.groups[0].calibration.link_latency_seconds, 20e-6)
        with self.assertRaises(grpc.RpcError) as caught:
            STUB.GetModelInfo(pb.GetModelInfoRequest(model="x"))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)


class StandardServicesTest(unittest.TestCase):
    def test_health(self):
        health = health_pb2_grpc.HealthStub(CHANNEL)
        for service in ("", SERVICE):
            self.assertEqual(health.Check(health_pb2.HealthCheckRequest(service=service)).status,
                             health_pb2.HealthCheckResponse.SERVING)
        with self.assertRaises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nothing"))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
        watch.cancel()

    def test_reflection(self):
        database = ProtoReflectionDescriptorDatabase(CHANNEL)
        self.assertIn(SERVICE, database.get_services())
        described = database.FindFileContainingSymbol(SERVICE)
        methods = {m.name for service in described.service for m in service.method}
        self.assertLessEqual({"Generate", "Tokenize", "Detokenize", "GetModelInfo", "GetServerInfo"}, methods)

    def test_unknown_method(self):
        call = CHANNEL.unary_unary(f"/{SERVICE}/Nothing", lambda x: x, lambda x: x)
        with self.assertRaises(grpc.RpcError) as caught:
            call(b"")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)


if __name__ == "__main__":
    unittest.main(verbosity=2)
