"""Faults around the server: lost ranks, signals, wrong command lines, groups that are started elsewhere.

Goal: a lost rank fails the requests in flight with an error that invites a retry, and its group comes back; no signal
leaves a process behind; a start that cannot work says why. Method: each test has its own servers, which it kills or
misconfigures.
"""
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import fixture

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SAMPLE = fixture.make_prompt(200, seed=2)
SHORT = {**SAMPLE["request"], "max_tokens": 30}
# It is not meant to end.
LONG = {**fixture.make_prompt(30000, seed=4)["request"], "apb": {"strategy": "full"}}
MEDIUM = {**fixture.make_prompt(15000, seed=4)["request"], "apb": {"strategy": "apb"}}


def ask(server):
    return server.post("/v1/chat/completions", SHORT)[1]["choices"][0]["message"]["content"]


class Watcher:
    """Records every change of the health that a gRPC Watch and /readyz report, in order."""

    def __init__(self, server):
        self.grpc_changes, self.http_changes = [], []
        self._server, self._over = server, False
        self._channel = grpc.insecure_channel(server.grpc_address, options=[("grpc.enable_http_proxy", 0)])
        self._watch = health_pb2_grpc.HealthStub(self._channel).Watch(health_pb2.HealthCheckRequest())
        self._threads = [threading.Thread(target=run) for run in (self._follow_grpc, self._follow_http)]
        for thread in self._threads:
            thread.start()
        fixture.wait_until(lambda: self.grpc_changes and self.http_changes, "the first states")

    def _follow_grpc(self):
        try:
            for response in self._watch:
                self.grpc_changes.append(response.status)
        except grpc.RpcError:
            pass

    def _follow_http(self):
        while not self._over:
            status = self._server.get("/readyz")[0]
            if self.http_changes[-1:] != [status]:
                self.http_changes.append(status)
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._over = True
        self._watch.cancel()
        for thread in self._threads:
            thread.join()
        self._channel.close()


class LostRankTest(unittest.TestCase):
    def lose(self, server, rank):
        stream = fixture.Stream(server, "/v1/chat/completions", LONG)
        whole = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=fixture.PATIENCE)
        whole.request("POST", "/v1/chat/completions", json.dumps(LONG))
        fixture.wait_until(lambda: server.metrics().get("apb_kv_cache_usage_ratio", 0) > 0, "a prefill under way")
        workers = server.workers()
        self.assertEqual(len(workers), 2)
        os.kill(workers[rank], signal.SIGKILL)
        # The stream had sent its headers, so its error is an event; the other request gets a
        # status.
        error = stream.read_all()[-1]["error"]
        self.assertEqual(error["type"], "service_unavailable")
        self.assertIn("again", error["message"])
        self.assertTrue(stream.done)
        stream.close()
        response = whole.getresponse()
        self.assertEqual(response.status, 503)
        self.assertGreater(int(response.getheader("retry-after")), 0)
        self.assertEqual(json.loads(response.read())["error"]["type"], "service_unavailable")
        whole.close()
        return workers

    def test_ranks_are_lost_and_come_back(self):
        with fixture.Server() as server, Watcher(server) as watcher:
            self.assertEqual(ask(server), SAMPLE["expected"])
            for losses, rank in enumerate((1, 0), 1):
                old = self.lose(server, rank)
                fixture.wait_until(lambda: server.get("/readyz")[0] == 200 and
                                   server.metrics()["apb_rank_up"] == 2, "ready again")
                self.assertEqual(ask(server), SAMPLE["expected"])
                self.assertFalse(set(old) & set(server.workers()), "the whole group is started anew")
                self.assertEqual(server.metrics()["apb_group_restarts_total"], losses)
                server.await_idle()
            fixture.wait_until(lambda: len(watcher.grpc_changes) == 5, "changes of health")
            self.assertEqual(watcher.grpc_changes, [SERVING, NOT_SERVING, SERVING, NOT_SERVING, SERVING])
            self.assertEqual(watcher.http_changes, [200, 503, 200, 503, 200])

    def test_grpc_call_gets_unavailable(self):
        with fixture.Server() as server, grpc.insecure_channel(server.grpc_address) as channel:
            call = channel.unary_stream("/apb.inference.v1.InferenceService/Generate", lambda x: x, lambda x: x)
            # text (field 3), sampling (field 6) with max_tokens 4, and apb (field 7) with its
            # reserved field 1, which the server ignores.
            text = fixture.make_prompt(30000, seed=4)["completions_request"]["prompt"].encode()
            size = bytes([len(text) & 0x7f | 0x80, len(text) >> 7 & 0x7f | 0x80, len(text) >> 14])
            events = call(b"\x1a" + size + text + b"\x32\x02\x08\x04" + b"\x3a\x02\x08\x02")
            next(events)
            fixture.wait_until(lambda: server.metrics().get("apb_kv_cache_usage_ratio", 0) > 0, "a prefill under way")
            os.kill(server.workers()[1], signal.SIGKILL)
            with self.assertRaises(grpc.RpcError) as caught:
                list(events)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)


    def test_rank_that_hangs(self):
        """A rank that is alive but silent is lost too, after --collective-timeout."""
        with fixture.Server("--worker-args", "--collective-timeout 2") as server:
            stream = fixture.Stream(server, "/v1/chat/completions", MEDIUM)
            os.kill(server.workers()[1], signal.SIGSTOP)
            self.assertEqual(stream.read_all()[-1]["error"]["type"], "service_unavailable")
            stream.close()
            fixture.wait_until(lambda: server.metrics()["apb_group_restarts_total"] == 1 and
                               server.get("/readyz")[0] == 200, "ready again")
            self.assertEqual(ask(server), SAMPLE["expected"])

    def test_group_that_is_told_to_stop_finishes_what_it_has(self):
        with fixture.Server() as server:
            stream = fixture.Stream(server, "/v1/chat/completions", MEDIUM)
            # Both ranks get the signal, as from mpirun; the leader obeys it.
            for pid in server.workers():
                os.kill(pid, signal.SIGTERM)
            fixture.wait_until(lambda: server.get("/readyz")[0] == 503, "not ready")
            self.assertTrue(fixture.text_of(stream.read_all()), stream.events[-1])
            self.assertTrue(stream.done)
            stream.close()
            fixture.wait_until(lambda: server.get("/readyz")[0] == 200, "ready again")
            self.assertEqual(ask(server), SAMPLE["expected"])


class SignalTest(unittest.TestCase):
    def test_idle_server_stops(self):
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            with fixture.Server() as server:
                self.assertEqual(len(server.workers()), 2)
                # server.stop() asserts that no process is left.
                self.assertEqual(server.stop(signal_number), 0)

    def test_requests_in_flight_are_finished(self):
        with fixture.Server() as server:
            stream = fixture.Stream(server, "/v1/chat/completions", {**SHORT, "max_tokens": 400, "ignore_eos": True})
            stream.read_event()
            server.process.send_signal(signal.SIGTERM)
            text = fixture.text_of(stream.read_all())
            self.assertTrue(stream.done)
            self.assertTrue(text.startswith(SAMPLE["expected"]))
            stream.close()
            self.assertEqual(server.process.wait(fixture.PATIENCE), 0)

    def test_second_signal_hurries(self):
        with fixture.Server() as server:
            stream = fixture.Stream(server, "/v1/chat/completions", LONG)
            server.process.send_signal(signal.SIGTERM)
            fixture.wait_until(lambda: "draining" in server.log(), "draining")
            self.assertEqual([server.get(path)[0] for path in ("/livez", "/readyz")], [200, 503])
            self.assertEqual(server.post("/v1/chat/completions", SHORT)[0], 503)
            self.assertEqual(server.stop(signal.SIGINT), 0)
            self.assertEqual(stream.read_all()[-1]["error"]["type"], "service_unavailable")
            stream.close()

    def test_killed_server_takes_its_ranks_along(self):
        with fixture.Server() as server:
            below = fixture.descendants(server.process.pid)
            self.assertGreaterEqual(len(below), 3)
            server.process.kill()
            server.process.wait()
            fixture.wait_until(lambda: not any(fixture.is_alive(pid) for pid in below), "no process left")

    def test_stop_while_the_workers_start(self):
        with fixture.Server(wait=False) as server:
            self.assertEqual(server.stop(), 0)


class StartTest(unittest.TestCase):
    def refuse(self, code, message, *flags, **options):
        done = subprocess.run(fixture.server_command(*flags, **options), capture_output=True, text=True,
                              timeout=fixture.PATIENCE)
        output = done.stdout + done.stderr
        self.assertEqual(done.returncode, code, output)
        self.assertIn(message, output)
        self.assertNotIn("ready http", output)

    def test_wrong_command_lines(self):
        self.refuse(2, "--no-such-flag", "--no-such-flag")
        self.refuse(2, "--http-port", "--http-port", "70000")
        self.refuse(2, "/no/such/model", model="/no/such/model")
        self.refuse(2, "no-such-worker", "--worker-binary", "/no-such-worker")
        for flag, text in (("--help", "--local-ranks"), ("--version", "apb-server ")):
            done = subprocess.run([fixture.SERVER_BINARY, flag], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0)
            self.assertIn(text, done.stdout)

    def test_taken_ports(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for flag in ("--http-port", "--grpc-port", "--cluster-port"):
                self.refuse(2, str(port), flag, port)

    def test_broken_checkpoints(self):
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder, "model")
            shutil.copytree(fixture.MODEL, model)
            weights = model / "model.safetensors"
            weights.chmod(0o644)
            with open(weights, "r+b") as file:
                file.truncate(100000)
            self.refuse(3, "model.safetensors", model=model)
            (model / "config.json").write_text("{")
            self.refuse(3, "config.json", model=model)
            (model / "config.json").unlink()
            self.refuse(3, "config.json", model=model)


class RemoteGroupTest(unittest.TestCase):
    """Groups that are started by hand, as docs/architecture.md describes."""

    def start_group(self, server, *flags, model=fixture.MODEL, token="secret"):
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2",
                   fixture.WORKER_BINARY, "--model", str(model), "--server", f"127.0.0.1:{server.cluster_port}", *flags]
        group = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 text=True, env={**os.environ, "APB_GROUP_TOKEN": token},
                                 preexec_fn=fixture.die_with_parent)
        self.addCleanup(group.stdout.close)
        self.addCleanup(group.wait)
        self.addCleanup(group.kill)
        return group

    def test_server_waits_for_groups(self):
        with fixture.Server("--group-token", "secret", ranks=0, wait=False) as server:
            # Without workers everything but generation works.
            self.assertEqual([server.get(path)[0] for path in ("/livez", "/readyz", "/health", "/v1/models")],
                             [200, 503, 503, 200])
            status, headers, _ = server.request("POST", "/v1/chat/completions", json.dumps(SHORT))
            self.assertEqual(status, 503)
            self.assertGreater(int(headers["retry-after"]), 0)
            self.assertEqual(server.post("/tokenize", {"prompt": "A"})[0], 200)

            stranger = self.start_group(server, token="guess")
            self.assertNotEqual(stranger.wait(fixture.PATIENCE), 0)
            self.assertIn("token is not the server's", stranger.stdout.read())
            self.assertEqual(server.get("/readyz")[0], 503)

            group = self.start_group(server, "--group-id", "by-hand", "--virtual-hosts", "2")
            server.await_ready(group)
            self.assertEqual(ask(server), SAMPLE["expected"])
            self.assertEqual(server.metrics()['apb_rank_up{model="demo",group="by-hand",rank="1"}'], 1)

            # A group that gets a signal stops, and the server waits for the next group.
            group.terminate()
            group.wait(fixture.PATIENCE)
            fixture.wait_until(lambda: server.get("/readyz")[0] == 503, "not ready")
            self.start_group(server, "--group-id", "by-hand")
            fixture.wait_until(lambda: server.get("/readyz")[0] == 200, "ready again")
            self.assertEqual(ask(server), SAMPLE["expected"])

    def test_two_groups_share_the_work(self):
        with fixture.Server("--group-token", "secret", ranks=0, wait=False) as server:
            groups = [self.start_group(server, "--group-id", name) for name in ("a", "b")]
            fixture.wait_until(lambda: server.metrics().get("apb_rank_up") == 4, "two groups")
            series = [f'apb_prompt_tokens_computed_total{{model="demo",group="{name}"}}' for name in ("a", "b")]

            def both_have_computed():
                """Two requests at once go to two groups, unless a busy machine ends one before the other begins."""
                streams = [fixture.Stream(server, "/v1/chat/completions", MEDIUM) for _ in range(2)]
                for stream in streams:
                    stream.read_all()
                    self.assertTrue(stream.done)
                    stream.close()
                server.await_idle()
                values = server.metrics()
                return all(values.get(name, 0) > 0 for name in series)
            fixture.wait_until(both_have_computed, "the least loaded group is chosen")
            groups[0].kill()
            fixture.wait_until(lambda: server.metrics()["apb_rank_up"] == 2, "one group lost")
            self.assertEqual(server.get("/readyz")[0], 200)
            self.assertEqual(ask(server), SAMPLE["expected"])

    def test_group_with_another_model_is_refused(self):
        with tempfile.TemporaryDirectory() as folder, \
                fixture.Server("--group-token", "secret", ranks=0, wait=False) as server:
            model = pathlib.Path(folder, "model")
            shutil.copytree(fixture.MODEL, model)
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps({**config, "rope_theta": 12345.0}))
            group = self.start_group(server, model=model)
            self.assertNotEqual(group.wait(fixture.PATIENCE), 0)
            self.assertIn("another model", group.stdout.read())
            self.assertEqual(server.get("/readyz")[0], 503)


class ApiKeyTest(unittest.TestCase):
    def test_keys(self):
        with fixture.Server("--api-key", "first", "--api-key", "second") as server, \
                grpc.insecure_channel(server.grpc_address) as channel:
            for headers, status in (({}, 401), ({"Authorization": "Bearer wrong"}, 401),
                                    ({"Authorization": "Bearer first"}, 200),
                                    ({"Authorization": "bearer second"}, 200)):
                self.assertEqual(server.request("GET", "/v1/models", headers=headers)[0], status, headers)
                self.assertEqual(server.request("POST", "/v1/chat/completions", json.dumps(SHORT), headers)[0], status)
            self.assertEqual([server.get(path)[0] for path in ("/health", "/livez", "/readyz", "/metrics")],
                             [200, 200, 200, 401])
            info = channel.unary_unary("/apb.inference.v1.InferenceService/GetServerInfo", lambda x: x, lambda x: x)
            with self.assertRaises(grpc.RpcError) as caught:
                info(b"")
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAUTHENTICATED)
            info(b"", metadata=[("authorization", "Bearer second")])
            status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
            self.assertEqual(status, SERVING)


if __name__ == "__main__":
    unittest.main(verbosity=2)
