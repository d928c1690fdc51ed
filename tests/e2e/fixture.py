"""Shared by the end-to-end tests: a server with its ranks on free ports, plain HTTP, metrics, processes, prompts.

The binaries come from APB_SERVER_BINARY, APB_WORKER_BINARY and APB_ON_CPU_PATH, which CTest sets.
"""
import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "reference_model" / "checkpoint"
MODEL_NAME = "demo"
SERVER_BINARY = os.environ.get("APB_SERVER_BINARY", "")
WORKER_BINARY = os.environ.get("APB_WORKER_BINARY", "")
ON_CPU_PATH = os.environ.get("APB_ON_CPU_PATH", "")
# Seconds; far more than any step takes, so that no test fails because the machine is busy.
PATIENCE = 120
# A failed test shows so many last bytes of the server's log; the reason comes after the output of
# earlier steps.
LOG_TAIL = 8000

sys.path.insert(0, str(ROOT / "tests" / "reference_model"))
import make_prompt as prompts  # noqa: E402

COUNT_TOKENS = prompts.counter(MODEL)


def make_prompt(tokens, depth=0.5, seed=1, **options):
    """Returns a request with a hidden fact, and the expected answer; see tests/reference_model/make_prompt.py."""
    return prompts.make_prompt(tokens, depth, seed, model=MODEL_NAME, count=COUNT_TOKENS, **options)


def make_stubs():
    """Makes gRPC's Python modules of proto/ and puts them on sys.path. They live as long as the returned folder object."""
    from grpc_tools import protoc
    folder, source = tempfile.TemporaryDirectory(prefix="apb-stubs-"), ROOT / "proto"
    files = [*source.glob("apb/common/v1/*.proto"), source / "apb/inference/v1/inference_service.proto"]
    if protoc.main(["protoc", f"-I{source}", f"--python_out={folder.name}", f"--grpc_python_out={folder.name}",
                    *map(str, files)]):
        sys.exit("protoc failed")
    sys.path.insert(0, folder.name)
    return folder


def wait_until(condition, what, timeout=PATIENCE, pause=0.05):
    """Returns the first true value of condition(); fails after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(pause)


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def process_table():
    """Returns pid -> (parent, name, state) of every process."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                text = pathlib.Path("/proc", entry, "stat").read_text()
                name = text[text.index("(") + 1:text.rindex(")")]
                state, parent = text[text.rindex(")") + 2:].split()[:2]
                table[int(entry)] = (int(parent), name, state)
    return table


def descendants(pid):
    table, found, ends = process_table(), [], [pid]
    while ends:
        parent = ends.pop()
        children = [p for p, (its_parent, _, state) in table.items() if its_parent == parent and state != "Z"]
        found += children
        ends += children
    return found


def is_alive(pid):
    return process_table().get(pid, (0, "", "Z"))[2] != "Z"


def cpu_seconds(pid):
    fields = pathlib.Path("/proc", str(pid), "stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def server_command(*flags, model=MODEL, ranks=2, virtual_hosts=4):
    """The command line; `flags` override the defaults. With calibration off, `auto` chooses by fixed numbers."""
    defaults = {"--model": model, "--served-model-name": MODEL_NAME, "--http-port": 0, "--grpc-port": 0}
    if ranks:
        defaults.update({"--local-ranks": ranks, "--virtual-hosts": virtual_hosts, "--worker-binary": WORKER_BINARY,
                         "--worker-args": "--calibration off"})
    return [SERVER_BINARY, *(str(word) for flag, value in defaults.items() if flag not in flags
                             for word in (flag, value)), *map(str, flags)]


class Server:
    """A running apb-server. `with Server(...) as server:` stops it and asserts that no process is left behind."""

    def __init__(self, *flags, wait=True, **options):
        self._folder = tempfile.TemporaryDirectory(prefix="apb-e2e-")
        self._log = pathlib.Path(self._folder.name, "server.log")
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(server_command(*flags, **options), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        try:
            self.http_port = int(self.await_log(r"http=\S+:(\d+)"))
            self.grpc_port = int(self.await_log(r"grpc=\S+:(\d+)"))
            self.cluster_port = int(self.await_log(r"workers dial 127\.0\.0\.1:(\d+)"))
            if wait:
                self.await_ready()
        except BaseException:
            self.process.kill()
            self.process.wait()
            print(f"--- log of the server\n{self.log()[-LOG_TAIL:]}", file=sys.stderr)
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            print(f"--- log of the server\n{self.log()[-LOG_TAIL:]}", file=sys.stderr)
        try:
            self.stop()
        finally:
            self._folder.cleanup()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self):
        return f"127.0.0.1:{self.grpc_port}"

    def log(self):
        return self._log.read_text(errors="replace")

    def await_log(self, pattern, group=None, unless=None):
        """Waits for the pattern in the log and returns its first bracket. It fails at once when the server, or the `group` (the
        process that is to cause this line), has ended, or when a line of the log matches `unless`."""
        def found():
            ended = [(what, process.returncode) for what, process in (("server", self.process), ("group", group))
                     if process is not None and process.poll() is not None]
            log = self.log()
            match = re.search(pattern, log)
            if match is None and ended:
                what, code = ended[0]
                raise AssertionError(f"the {what} ended with {code} before {pattern} was in the server's log")
            if match is None and unless and (reason := re.search(unless, log)):
                raise AssertionError(f"no {pattern} in the server's log, but: {reason.group(0)}")
            return match
        return wait_until(found, f"{pattern} in the server's log").group(1)

    def await_ready(self, group=None):
        """Waits until the first group is ready. A failed start is not tried again here: the test fails with its reason."""
        self.await_log(r"(?m)^ready (http://\S+)$", group, unless=r"worker group ended with status .*")

    def stop(self, signal_number=signal.SIGTERM):
        """Stops the server and returns its exit code. Asserts that none of its processes is left."""
        if self.process.poll() is not None:
            return self.process.returncode
        children = descendants(self.process.pid)
        self.process.send_signal(signal_number)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        left = [pid for pid in children if is_alive(pid)]
        assert not left, f"processes {left} are left behind\n{self.log()}"
        return code

    def workers(self):
        """The pids of the ranks."""
        table = process_table()
        return sorted(p for p in descendants(self.process.pid) if table.get(p, ("", ""))[1] == "apb-worker")

    def request(self, method, path, body=None, headers=None, timeout=PATIENCE):
        """Sends one request on a connection of its own; returns (status, headers, body as text)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read().decode()
        finally:
            connection.close()

    def get(self, path):
        status, _, text = self.request("GET", path)
        return status, text

    def post(self, path, body):
        """Returns (status, parsed answer)."""
        status, _, text = self.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return status, json.loads(text)

    def metrics(self):
        """Returns `name{labels}` -> value, and `name` -> the sum over all its label sets."""
        values = {}
        for line in self.get("/metrics")[1].splitlines():
            if line and not line.startswith("#"):
                series, value = line.rsplit(" ", 1)
                name = series.split("{")[0]
                values[series] = float(value)
                if name != series:
                    values[name] = values.get(name, 0) + float(value)
        return values

    def await_idle(self, timeout=PATIENCE):
        """Waits until no request runs or waits and the ranks' last report says that every KV block is free."""
        def idle():
            values = self.metrics()
            return (values["apb_num_requests_running"] == 0 and values["apb_num_requests_waiting"] == 0
                    # It appears with the first report.
                    and values.get("apb_kv_cache_usage_ratio", 1) == 0)
        wait_until(idle, "no request in flight and an empty KV cache", timeout)


class Stream:
    """A streamed answer over plain HTTP: `events` holds the parsed data frames, `comments` counts the keep-alives."""

    def __init__(self, server, path, body):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE)
        self.connection.request("POST", path, json.dumps({**body, "stream": True}),
                                {"Content-Type": "application/json"})
        self.response = self.connection.getresponse()  # returns when the headers have come
        self.events = []
        self.comments = 0
        self.done = False

    def read_event(self):
        """Returns the next data frame, or None after [DONE] or at the end of the response."""
        while True:
            line = self.response.readline()
            if not line:
                return None
            if line.startswith(b":"):
                self.comments += 1
            elif line.startswith(b"data: [DONE]"):
                self.done = True
                return None
            elif line.startswith(b"data: "):
                self.events.append(json.loads(line[6:]))
                return self.events[-1]

    def read_all(self):
        while self.read_event() is not None:
            pass
        return self.events

    def close(self):
        """May be called in the middle of the answer."""
        self.response.close()
        self.connection.close()


def text_of(events):
    """The text of a stream of either completion endpoint."""
    text = ""
    for event in events:
        for choice in event.get("choices", []):
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
    return text
