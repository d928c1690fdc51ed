"""The HTTP side without a client library: every endpoint, hostile input, slow and vanishing clients.

Goal: each endpoint answers as docs/api.md says, bad input of any kind gets a clear 4xx and leaves the server working,
and a client that disconnects frees its KV blocks. Method: http.client and bare sockets against one server.
"""
import http.client
import itertools
import json
import re
import socket
import time
import unittest

import fixture

SERVER = None


def setUpModule():
    global SERVER
    SERVER = unittest.enterModuleContext(fixture.Server("--sse-keepalive-seconds", 0.1, "--max-body-bytes", 2 << 20))


SAMPLE = fixture.make_prompt(200, seed=2)


def question(**options):
    return {"model": "demo", "messages": SAMPLE["messages"], "temperature": 0, "max_tokens": 30, **options}


_seeds = itertools.count(1000)


def long_question():
    """A new document each time, so that nothing is cached; one rank computes it exactly, so that it takes a while."""
    return {**fixture.make_prompt(30000, seed=next(_seeds))["request"], "apb": {"strategy": "full"}}


def post_head(body, headers=b""):
    return (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + headers +
            b"Content-Length: %d\r\n\r\n" % len(body))


def exchange(data, timeout=fixture.PATIENCE):
    """Sends bytes and reads until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", SERVER.http_port), timeout=timeout) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


class EndpointTest(unittest.TestCase):
    def test_models(self):
        status, text = SERVER.get("/v1/models")
        self.assertEqual(status, 200)
        card = json.loads(text)["data"][0]
        self.assertEqual((card["id"], card["object"]), ("demo", "model"))
        self.assertGreaterEqual(card["max_model_len"], 65536)
        self.assertEqual(json.loads(SERVER.get("/v1/models/demo")[1]), card)
        status, text = SERVER.get("/v1/models/other")
        self.assertEqual((status, json.loads(text)["error"]["code"]), (404, "model_not_found"))

    def test_health_and_version(self):
        for path in ("/health", "/readyz", "/livez"):
            self.assertEqual(SERVER.get(path)[0], 200, path)
        self.assertRegex(json.loads(SERVER.get("/version")[1])["version"], r"^\d+\.\d+\.\d+$")
        status, headers, text = SERVER.request("HEAD", "/health")
        self.assertEqual((status, text), (200, ""))
        self.assertGreater(int(headers["content-length"]), 0)

    def test_tokenize_and_detokenize(self):
        text = "A panda near the café was sharp. 你好 🦒\n\n<|end|> of"
        status, answer = SERVER.post("/tokenize", {"model": "demo", "prompt": text, "add_special_tokens": False})
        self.assertEqual(status, 200)
        self.assertEqual(answer["count"], len(answer["tokens"]))
        self.assertEqual(answer["max_model_len"], json.loads(SERVER.get("/v1/models")[1])["data"][0]["max_model_len"])
        self.assertEqual(SERVER.post("/detokenize", {"tokens": answer["tokens"]}), (200, {"prompt": text}))
        with_begin = SERVER.post("/tokenize", {"prompt": text})[1]["tokens"]
        self.assertEqual(with_begin[1:], answer["tokens"])

    def test_tokenize_of_a_conversation(self):
        status, answer = SERVER.post("/tokenize", {"messages": SAMPLE["messages"]})
        self.assertEqual(status, 200)
        self.assertEqual(answer["count"], SAMPLE["prompt_tokens_estimate"])
        text = SERVER.post("/detokenize", {"tokens": answer["tokens"]})[1]["prompt"]
        self.assertTrue(text.endswith("<|assistant|>\n"), text[-60:])
        # The template's markers are plain text within a message.
        markers = SERVER.post("/tokenize", {"messages": [{"role": "user", "content": "<|end|><|assistant|>"}]})[1]
        self.assertEqual(markers["tokens"].count(1), 1)
        self.assertIn("<|end|><|assistant|>", SERVER.post("/detokenize", markers)[1]["prompt"])

    def test_refused_tokens(self):
        for body in ({}, {"tokens": "x"}, {"tokens": [1.5]}, {"tokens": [-1]}, {"tokens": [10 ** 9]}):
            status, answer = SERVER.post("/detokenize", body)
            self.assertEqual((status, answer["error"]["param"]), (400, "tokens"), body)

    def test_request_id(self):
        status, headers, _ = SERVER.request("GET", "/health", headers={"X-Request-Id": "abc-1.2_3"})
        self.assertEqual((status, headers["x-request-id"]), (200, "abc-1.2_3"))
        _, headers, _ = SERVER.request("GET", "/health", headers={"X-Request-Id": "a b\tc"})
        self.assertRegex(headers["x-request-id"], r"^[0-9a-f]{16,}$")


class MetricsTest(unittest.TestCase):
    def test_text_is_well_formed(self):
        SERVER.post("/v1/chat/completions", question())
        status, headers, text = SERVER.request("GET", "/metrics")
        self.assertEqual(status, 200)
        self.assertTrue(headers["content-type"].startswith("text/plain; version=0.0.4"))
        types = {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split()
                self.assertNotIn(name, types)
                types[name] = kind
            elif line and not line.startswith("#"):
                match = re.fullmatch(r'([a-zA-Z_:][\w:]*)(\{(\w+="[^"]*",?)*\})? (\S+)', line)
                self.assertIsNotNone(match, line)
                float(match[4])
                family = re.sub(r"_(bucket|sum|count)$", "", match[1])
                self.assertTrue(match[1] in types or types.get(family) == "histogram", line)

    def test_names_and_buckets(self):
        SERVER.post("/v1/chat/completions", question())
        text = SERVER.get("/metrics")[1]
        kinds = dict(re.findall(r"# TYPE (\S+) (\S+)", text))
        for kind, names in {
                "counter": "requests_total prompt_tokens_total generated_tokens_total prompt_tokens_computed_total "
                           "prefill_phase_seconds_total collective_bytes_total collective_calls_total "
                           "collective_seconds_total group_restarts_total "
                           "http_requests_total",
                "gauge": "num_requests_running num_requests_waiting queued_tokens kv_cache_usage_ratio rank_up "
                         "server_state build_info model_info cache_config_info calibration_product_flops "
                         "calibration_attention_flops calibration_link_bytes_per_second "
                         "calibration_link_latency_seconds",
                "histogram": "time_to_first_token_seconds inter_token_latency_seconds request_duration_seconds "
                             "queue_time_seconds prefill_time_seconds decode_time_seconds tokenize_seconds "
                             "request_prompt_tokens request_generated_tokens"}.items():
            for name in names.split():
                self.assertEqual(kinds.get("apb_" + name), kind, name)
        def buckets(name):
            return {float(b) for b in re.findall(rf'apb_{name}_bucket{{[^}}]*le="([^"]+)"', text)}
        long = {.05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600, 7200}
        for name in ("time_to_first_token_seconds", "request_duration_seconds", "prefill_time_seconds"):
            self.assertLessEqual(long, buckets(name), name)
        self.assertLessEqual({.002, .005, .01, .015, .02, .025, .03, .04, .05, .075, .1, .15, .2, .3, .5, .75, 1, 2.5,
                              5, 10, 30, 60}, buckets("inter_token_latency_seconds"))
        self.assertLessEqual({1, 2, 5, 10, 1000000, 2000000}, buckets("request_prompt_tokens"))
        for phase in ("projection", "compress", "communicate", "attend", "mlp"):
            for rank in (0, 1):
                self.assertRegex(text, rf'apb_prefill_phase_seconds_total{{[^}}]*phase="{phase}",rank="{rank}"')

    def test_calibration(self):
        """With calibration off the metrics have fixed numbers; with it on they have the log's. The second server also runs
        the worker with --overlap and --no-balanced."""
        names = ("product_flops", "attention_flops", "link_bytes_per_second", "link_latency_seconds")

        def numbers(server):
            metrics = server.metrics()
            return [metrics["apb_calibration_" + name] for name in names]
        self.assertEqual(numbers(SERVER), [1e12, 5e11, 5e9, 20e-6])
        with fixture.Server("--worker-args", "--calibration on --overlap --no-balanced") as server:
            measured = numbers(server)
            logged = re.search(r"calibration measured product_gflops=(\S+) attention_gflops=(\S+) "
                               r"link_gb_per_second=(\S+) link_latency_us=(\S+)", server.log())
            for value, text, unit in zip(measured, logged.groups(), (1e9, 1e9, 1e9, 1e-6)):
                self.assertGreater(value, 0)
                self.assertAlmostEqual(value / unit / float(text), 1, places=3)
            sample = fixture.make_prompt(3000, seed=next(_seeds))
            status, answer = server.post("/v1/chat/completions", {**sample["request"], "apb": {"strategy": "apb"}})
            self.assertEqual((status, answer["choices"][0]["message"]["content"]), (200, sample["expected"]))

    def test_counters_grow(self):
        SERVER.await_idle()
        before = SERVER.metrics()
        status, answer = SERVER.post("/v1/chat/completions", fixture.make_prompt(200, seed=next(_seeds))["request"])
        self.assertEqual(status, 200)
        self.assertEqual(SERVER.post("/v1/chat/completions", question(model="x"))[0], 404)

        def grown(name):
            return after.get(name, 0) - before.get(name, 0)
        computed = "apb_prompt_tokens_computed_total"
        fixture.wait_until(lambda: SERVER.metrics()[computed] > before.get(computed, 0), "a report of the ranks")
        SERVER.await_idle()
        after = SERVER.metrics()
        self.assertEqual(grown("apb_requests_total"), 2)
        self.assertEqual(grown('apb_requests_total{model="demo",finish_reason="stop",outcome="ok",strategy="full"}'), 1)
        self.assertEqual(grown('apb_requests_rejected_total{model="demo",reason="invalid"}'), 1)
        self.assertEqual(grown("apb_prompt_tokens_total"), answer["usage"]["prompt_tokens"])
        self.assertEqual(grown("apb_generated_tokens_total"), answer["usage"]["completion_tokens"])
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.assertEqual(grown(computed), answer["usage"]["prompt_tokens"] - cached)
        self.assertEqual(grown("apb_cached_prompt_tokens_total"), cached)
        self.assertEqual(grown("apb_time_to_first_token_seconds_count"), 1)
        # The end-of-turn token counts as generated but has no text.
        self.assertGreaterEqual(grown("apb_inter_token_latency_seconds_count"),
                                answer["usage"]["completion_tokens"] - 2)
        self.assertEqual(grown('apb_http_requests_total{model="demo",code="404",method="POST",'
                               'route="/v1/chat/completions"}'), 1)
        for what in ("bytes", "calls", "seconds"):
            self.assertGreater(grown(f"apb_collective_{what}_total"), 0)
        self.assertGreater(grown("apb_prefill_phase_seconds_total"), 0)


class HostileInputTest(unittest.TestCase):
    def refuse(self, body, status=400, path="/v1/chat/completions", headers=None):
        got, answer_headers, text = SERVER.request("POST", path, body, headers)
        self.assertEqual(got, status, text)
        error = json.loads(text)["error"]
        self.assertLessEqual({"message", "type", "param", "code"}, set(error))
        self.assertTrue(error["message"])
        return error

    def tearDown(self):
        self.assertEqual(SERVER.get("/health")[0], 200)

    def test_malformed_json(self):
        for body in (b"", b"{", b"[]", b"null", b'{"messages":', b'{"a":1}}', b"\x00", b'{"prompt": "a" "b"}',
                     b'{"temperature": 1e999999, "prompt": "x"}', b"{'prompt': 'x'}"):
            for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
                with self.subTest(body=body, path=path):
                    self.refuse(body, path=path)

    def test_bad_utf8(self):
        for bad in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"):
            self.refuse(b'{"prompt": "a' + bad + b'"}', path="/v1/completions")
        # An escaped lone surrogate cannot be written in UTF-8 either.
        self.refuse(b'{"prompt": "a\\ud800"}', path="/v1/completions")

    def test_deep_nesting(self):
        for deep in (b"[" * 100000, b'{"a":' * 100000, b'{"x":' + b"[" * 500 + b"]" * 500 + b"}"):
            self.assertIn("deep", self.refuse(deep)["message"])

    def test_huge_body(self):
        text = "a" * (3 << 20)
        error = self.refuse(json.dumps({"prompt": text}), 413, "/v1/completions")
        self.assertEqual(error["code"], "request_too_large")
        # Within the limit of bytes, but with more tokens than the context has.
        self.assertEqual(self.refuse(json.dumps({"prompt": "qz" * (900 << 10)}), 400, "/v1/completions")["code"],
                         "context_length_exceeded")

    def test_unknown_path_and_wrong_method(self):
        self.assertEqual(SERVER.get("/v2/nothing")[0], 404)
        self.assertEqual(SERVER.get("/v1/models/")[0], 404)
        for method, path in (("GET", "/v1/completions"), ("PUT", "/v1/chat/completions"), ("POST", "/health"),
                             ("DELETE", "/v1/models")):
            status, headers, text = SERVER.request(method, path)
            self.assertEqual(status, 405, (method, path))
            self.assertIn("allow", headers)
            self.assertTrue(json.loads(text)["error"]["message"])

    def test_no_http(self):
        for data in (b"HELO mail\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
                     b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                     b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"):
            answer = exchange(data)
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), (data, answer[:80]))
        many = b"".join(b"X-%d: %s\r\n" % (i, b"v" * 1000) for i in range(100))
        self.assertTrue(exchange(b"GET /health HTTP/1.1\r\n" + many + b"\r\n").startswith(b"HTTP/1.1 431 "))

    def test_prompts_without_content(self):
        for body in ({"prompt": ""}, {"prompt": []}, {"prompt": [[]]}, {"prompt": ["a", "b"]}, {"prompt": [-1]},
                     {"prompt": [10 ** 7]}, {"prompt": [1, "a"]}, {"prompt": {}}, {}):
            error = self.refuse(json.dumps(body), path="/v1/completions")
            self.assertTrue(error["param"].startswith("prompt"), error)


    def test_every_field_with_every_kind_of_value(self):
        """Each body is answered or refused with a 4xx, never with a 5xx, and no rank is lost."""
        fields = ("model messages max_completion_tokens temperature top_p top_k min_p seed stop n stream stream_options "
                  "presence_penalty frequency_penalty repetition_penalty logprobs top_logprobs min_tokens ignore_eos "
                  "return_progress apb logit_bias user tools tool_choice response_format stop_token_ids "
                  "chat_template_kwargs").split()
        apb_fields = "strategy query hosts anchor_length passing_length compressor exact balanced".split()
        values = [None, True, 0, -1, 3, 3.7, 1e308, 2 ** 63, -2 ** 63, "", "apb", [], [1], ["a"], [None], {}, {"a": 1}]
        bodies = [{field: value} for field in fields for value in values]
        bodies += [{"apb": {"strategy": "apb", field: value}} for field in apb_fields for value in values]
        bodies += [{"apb": {"strategy": strategy, "hosts": hosts, "anchor_length": 3 * hosts, "passing_length": hosts}}
                   for strategy in ("apb", "star", "ring_kv", "ring_q", "token_ring", "ulysses") for hosts in range(1, 9)]
        connection = http.client.HTTPConnection("127.0.0.1", SERVER.http_port, timeout=fixture.PATIENCE)
        counts = {}
        for body in bodies:
            connection.request("POST", "/v1/chat/completions", json.dumps(
                {"messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 2, **body}))
            response = connection.getresponse()
            text = response.read().decode()
            self.assertIn(response.status, (200, 400, 404), (body, text))
            self.assertEqual('"error"' in text, response.status != 200, (body, text))
            counts[response.status] = counts.get(response.status, 0) + 1
        connection.close()
        self.assertGreater(min(counts[200], counts[400]), len(bodies) / 6)
        self.assertEqual(SERVER.metrics()["apb_group_restarts_total"], 0)


class ConnectionTest(unittest.TestCase):
    def test_keep_alive_and_pipelining(self):
        body = json.dumps(question(stream=True, max_tokens=3)).encode()
        post = post_head(body) + body
        get = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
        last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = exchange(get + post + get + last).decode()
        self.assertEqual(answer.count("HTTP/1.1 200 OK"), 4)
        self.assertEqual(answer.count('{"version"'), 2)
        self.assertLess(answer.index("[DONE]"), answer.rindex('{"version"'))
        self.assertTrue(answer.endswith('{"status":"alive"}'))

    def test_http_1_0(self):
        body = json.dumps(question(stream=True)).encode()
        answer = exchange(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head, _, stream = answer.partition(b"\r\n\r\n")
        self.assertNotIn(b"chunked", head)
        self.assertTrue(stream.startswith(b"data: ") or stream.startswith(b":"), stream[:40])
        self.assertTrue(stream.endswith(b"data: [DONE]\n\n"))

    def test_expect_continue(self):
        body = json.dumps({"prompt": "A panda"}).encode()
        with socket.create_connection(("127.0.0.1", SERVER.http_port), timeout=fixture.PATIENCE) as connection:
            connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
                               b"Content-Length: %d\r\n\r\n" % len(body))
            self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 100 "))
            connection.sendall(body)
            self.assertTrue(connection.recv(65536).startswith(b"HTTP/1.1 200 "))

    def test_chunked_request(self):
        body = json.dumps({"prompt": "A panda"}).encode()
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i:i + 5]), body[i:i + 5]) for i in range(0, len(body), 5))
        answer = exchange(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                          b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer[:100])

    def test_slow_client_holds_up_nobody(self):
        body = json.dumps(question(max_tokens=2)).encode()
        head = post_head(body, b"Connection: close\r\n")
        slow = [socket.create_connection(("127.0.0.1", SERVER.http_port)) for _ in range(20)]
        for connection in slow:
            connection.sendall(head + body[:10])
        self.assertEqual(SERVER.post("/v1/chat/completions", question(max_tokens=2))[0], 200)
        for connection in slow:
            connection.sendall(body[10:])
        for connection in slow:
            connection.settimeout(fixture.PATIENCE)
            self.assertTrue(connection.recv(65536).startswith(b"HTTP/1.1 200 "))
            connection.close()


class LongPrefillTest(unittest.TestCase):
    def setUp(self):
        SERVER.await_idle()

    def test_headers_and_keep_alives_come_before_the_first_token(self):
        before = self.first_tokens()
        stream = fixture.Stream(SERVER, "/v1/chat/completions", long_question())
        self.assertEqual(self.first_tokens(), before, "the headers are here and the prefill is still running")
        self.assertEqual(stream.response.status, 200)
        self.assertEqual(stream.response.getheader("content-type"), "text/event-stream; charset=utf-8")
        self.assertEqual(stream.response.getheader("cache-control"), "no-cache")
        self.assertTrue(stream.response.getheader("x-request-id"))
        self.assertIsNotNone(stream.read_event())
        self.assertGreater(stream.comments, 1, "keep-alive comments while nothing else can be sent")
        stream.read_all()
        self.assertTrue(stream.done)
        stream.close()

    def first_tokens(self):
        return SERVER.metrics().get("apb_time_to_first_token_seconds_count", 0)

    def test_health_and_metrics_answer_during_a_prefill(self):
        stream = fixture.Stream(SERVER, "/v1/chat/completions", long_question())
        fixture.wait_until(lambda: SERVER.metrics()["apb_num_requests_running"] == 1, "a running request")
        before = self.first_tokens()
        self.assertEqual(SERVER.get("/health")[0], 200)
        self.assertEqual(self.first_tokens(), before)
        # Other requests are answered meanwhile, between the layers of the long one.
        self.assertEqual(SERVER.post("/v1/chat/completions", question())[1]["choices"][0]["message"]["content"],
                         SAMPLE["expected"])
        stream.close()
        SERVER.await_idle()

    def vanish(self, stream):
        """Disconnects in the middle of a prefill and checks that everything is free again before the prefill could have ended."""
        cancelled = 'apb_requests_total{model="demo",finish_reason="",outcome="cancelled",strategy=""}'
        before = SERVER.metrics()
        body = json.dumps({**long_question(), "stream": stream}).encode()
        connection = socket.create_connection(("127.0.0.1", SERVER.http_port))
        connection.sendall(post_head(body) + body)
        fixture.wait_until(lambda: SERVER.metrics()["apb_num_requests_running"] == 1, "a running request")
        fixture.wait_until(lambda: SERVER.metrics().get("apb_kv_cache_usage_ratio", 0) > 0, "blocks in use")
        connection.close()
        gone = time.monotonic()
        fixture.wait_until(lambda: SERVER.metrics()["apb_num_requests_running"] == 0, "no running request")
        SERVER.await_idle()
        print(f"blocks free {time.monotonic() - gone:.3f} s after the client went (stream={stream})")
        after = SERVER.metrics()
        self.assertEqual(after[cancelled] - before[cancelled], 1)
        self.assertEqual(after.get("apb_time_to_first_token_seconds_count", 0),
                         before.get("apb_time_to_first_token_seconds_count", 0), "the prefill had not ended")

    def test_client_that_goes_away(self):
        self.vanish(stream=True)
        self.vanish(stream=False)
        self.assertEqual(SERVER.post("/v1/chat/completions", question())[1]["choices"][0]["message"]["content"],
                         SAMPLE["expected"])

    def test_client_that_does_not_read(self):
        """A stream whose client has stopped reading is cut before it fills the memory, and its blocks are free again."""
        before = SERVER.metrics()["apb_slow_reader_aborts_total"]
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", SERVER.http_port))
        body = json.dumps(question(stream=True, max_tokens=20000, ignore_eos=True, logprobs=True,
                                   top_logprobs=20)).encode()
        connection.sendall(post_head(body) + body)
        fixture.wait_until(lambda: SERVER.metrics()["apb_num_requests_running"] == 1, "a running request")
        fixture.wait_until(lambda: SERVER.metrics()["apb_slow_reader_aborts_total"] > before, "the stream is cut")
        SERVER.await_idle()
        connection.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
