"""Ranks on two machines.

Goal: a group whose ranks share only a network gives right answers with every strategy, prints the cost of each on that
link, and ends cleanly when the link is cut. Method: two network namespaces joined by a veth pair with 1 Gbit/s and 1 ms
delay (netem; only the rate, by tbf, if the kernel has no netem). Each has one rank, and mpirun starts them as on two
machines. Where namespaces are forbidden, the test prints so and is skipped (exit code 77).
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

import fixture

SKIPPED = 77
# Pid of the outer process, which the inner one inherits.
RUN = os.environ.setdefault("APB_TWO_HOSTS", str(os.getpid()))
INSIDE = RUN != str(os.getpid())
NAMES = (f"apb-{RUN}-1", f"apb-{RUN}-2")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
MPI = ["--allow-run-as-root", "--bind-to", "none", "--host", f"{ADDRESSES[0]}:1,{ADDRESSES[1]}:1",
       "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "10.231.77.0/24",
       "--mca", "oob_tcp_if_include", "10.231.77.0/24"]


# ---- outside: makes the hosts ----

def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def remove_hosts():
    for name in NAMES:
        ip("netns", "del", name, check=False)


def make_hosts():
    """Makes the hosts and their link; returns a description of the link."""
    for name in NAMES:
        ip("netns", "add", name)
    ip("link", "add", "apb-veth-1", "netns", NAMES[0], "type", "veth", "peer", "name", "apb-veth-2", "netns", NAMES[1])
    for i, (name, address) in enumerate(zip(NAMES, ADDRESSES), 1):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", f"apb-veth-{i}")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", f"apb-veth-{i}", "up")
    for shape, text in ((["netem", "delay", "1ms", "rate", "1gbit"], "1 Gbit/s, 1 ms delay"),
                        (["tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms"],
                         "1 Gbit/s, no delay: this kernel has no netem")):
        done = [subprocess.run(["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", f"apb-veth-{i}", "root", *shape],
                               capture_output=True).returncode for i, name in enumerate(NAMES, 1)]
        if done == [0, 0]:
            return text
    return "not shaped: this kernel has neither netem nor tbf"


def outside():
    try:
        remove_hosts()
        link = make_hosts()
    except (OSError, subprocess.CalledProcessError) as error:
        remove_hosts()
        print("skipped: network namespaces cannot be made here:", getattr(error, "stderr", "") or error)
        return SKIPPED
    try:
        print("link:", link, flush=True)
        return subprocess.run(["ip", "netns", "exec", NAMES[0], sys.executable, __file__, *sys.argv[1:]],
                              check=False).returncode
    finally:
        remove_hosts()


# ---- inside the first host: the server, the leader, the test ----

class Group:
    """A worker group with one rank on each host."""

    def __init__(self, server, *flags):
        self._folder = tempfile.TemporaryDirectory(prefix="apb-e2e-")
        agent = pathlib.Path(self._folder.name, "rsh")  # mpirun calls: rsh <host> <command ...>
        agent.write_text(f'#!/bin/sh\nhost=$1; shift\n[ "$host" = {ADDRESSES[0]} ] && name={NAMES[0]} || name={NAMES[1]}\n'
                         'exec ip netns exec "$name" sh -c "$*"\n')
        agent.chmod(0o755)
        self.log_path = pathlib.Path(self._folder.name, "group.log")
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                ["mpirun", *MPI, "--mca", "plm_rsh_agent", str(agent), "-n", "2", fixture.WORKER_BINARY,
                 "--model", str(fixture.MODEL), "--server", f"127.0.0.1:{server.cluster_port}", "--group-id", "two-hosts",
                 "--threads", "1", "--no-prefix-caching", *flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=fixture.die_with_parent)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            print(f"--- log of the group\n{self.log_path.read_text(errors='replace')[-6000:]}", file=sys.stderr)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:  # it lost the other host's daemon with the link
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()


def ask(server, sample, strategy):
    """Streams an answer; returns (status, answer, seconds to the first token)."""
    start = time.monotonic()
    stream = fixture.Stream(server, "/v1/chat/completions", {
        "model": "demo", "messages": sample["messages"], "temperature": 0, "max_tokens": 40,
        "apb": {"strategy": strategy}})
    first = None
    while (event := stream.read_event()) is not None:
        if first is None and fixture.text_of([event]):
            first = time.monotonic() - start
    stream.close()
    return stream.response.status, fixture.text_of(stream.events), first


def sent_bytes(server):
    return sum(value for series, value in server.metrics().items() if series.startswith("apb_collective_bytes_total{"))


class TwoHostsTest(unittest.TestCase):
    def setUp(self):
        self.server = self.enterContext(fixture.Server(ranks=0, wait=False))

    def ready(self):
        fixture.wait_until(lambda: self.server.get("/readyz")[0] == 200, "a ready group")

    def test_answers(self):
        sample = fixture.make_prompt(6000, seed=61)
        for decode in ("replicated", "sliced"):
            with Group(self.server, "--decode", decode):
                self.ready()
                for strategy in ("full", "apb", "star", "ring_kv", "ring_q", "token_ring", "ulysses"):
                    before = sent_bytes(self.server)
                    status, answer, first = ask(self.server, sample, strategy)
                    self.assertEqual((status, answer), (200, sample["expected"]), strategy)
                    fixture.wait_until(lambda: sent_bytes(self.server) > before, "bytes sent in the metrics")
                    print(f"{decode:10} {strategy:10} first token {first * 1e3:7.0f} ms", flush=True)
            fixture.wait_until(lambda: self.server.get("/readyz")[0] == 503, "the group's end")

    def test_cut_link(self):
        with Group(self.server, "--collective-timeout", "3"):
            self.ready()
            sample = fixture.make_prompt(3000, seed=62)
            self.assertEqual(ask(self.server, sample, "ring_kv")[0], 200)
            ip("link", "set", "apb-veth-1", "down")
            try:
                status, answer = self.server.post("/v1/chat/completions", {
                    "model": "demo", "messages": sample["messages"], "max_tokens": 10, "apb": {"strategy": "ring_kv"}})
                self.assertEqual(status, 503, answer)
                # Both ranks give up, each at its own deadline. (mpirun itself waits for the other
                # host's daemon.)
                fixture.wait_until(lambda: not any(name == "apb-worker" and state != "Z" and self.is_mine(pid)
                                                   for pid, (_, name, state) in fixture.process_table().items()),
                                   "both ranks ended")
            finally:
                ip("link", "set", "apb-veth-1", "up")
            self.assertEqual(self.server.get("/livez")[0], 200)
        with Group(self.server):  # the next group serves
            self.ready()
            self.assertEqual(ask(self.server, sample, "ring_kv")[1], sample["expected"])

    @staticmethod
    def is_mine(pid):
        try:
            return b"two-hosts" in pathlib.Path("/proc", str(pid), "cmdline").read_bytes()
        except OSError:
            return False


if __name__ == "__main__":
    if not INSIDE:
        sys.exit(outside())
    unittest.main()
