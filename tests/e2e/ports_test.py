"""Which ports a server with local ranks opens, and to whom.

Goal: only the two APIs listen beyond loopback, and only if they are told to. Method: the TCP and UDP sockets that the
kernel lists (/proc/net) for the processes of a running server with its ranks; the same where loopback is the only
network.
"""
import ctypes
import ipaddress
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import fixture

LISTEN = "0A"
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def address_of(text):
    """0100007F:1F90 -> (127.0.0.1, 8080): 32-bit words in the machine's byte order, then the port. gRPC listens on IPv4
    addresses in their IPv6 form."""
    words, port = text.split(":")
    raw = b"".join(bytes.fromhex(words[i:i + 8])[::-1] for i in range(0, len(words), 8))
    address = ipaddress.ip_address(raw)
    return getattr(address, "ipv4_mapped", None) or address, int(port, 16)


def open_ports(pid):
    """Yields (process name, protocol, address, port) of each socket, of a process and those below it, that receives from
    others: listening TCP sockets and unconnected UDP sockets."""
    table = fixture.process_table()
    owners = {}
    for process in [pid, *fixture.descendants(pid)]:
        folder = pathlib.Path("/proc", str(process), "fd")
        for entry in os.listdir(folder):
            try:
                target = os.readlink(folder / entry)
            except OSError:
                continue  # closed meanwhile
            if match := re.fullmatch(r"socket:\[(\d+)\]", target):
                owners[match.group(1)] = table[process][1]
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        path = pathlib.Path("/proc", str(pid), "net", protocol)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            takes = fields[3] == LISTEN if protocol.startswith("tcp") else address_of(fields[2])[1] == 0
            if takes and fields[9] in owners:
                yield owners[fields[9]], protocol, *address_of(fields[1])


def beyond_loopback(pid):
    return sorted((name, port) for name, _, address, port in open_ports(pid) if not address.is_loopback)


def alone_on_loopback():
    """Runs in the child: makes a network of its own in which only loopback is up. A user other than root becomes root in it."""
    user, libc = os.geteuid(), ctypes.CDLL(None)
    if libc.unshare(CLONE_NEWNET if user == 0 else CLONE_NEWUSER | CLONE_NEWNET) != 0:
        raise PermissionError("unshare")
    if user != 0:
        pathlib.Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    fixture.die_with_parent()


class PortsTest(unittest.TestCase):
    def check_inside(self, server, ranks):
        """Checks that the test sees the ports: mpirun listens for its ranks, the server for clients and for the group."""
        self.assertEqual(len(server.workers()), ranks)
        ports = list(open_ports(server.process.pid))
        self.assertIn("mpirun", {name for name, *_ in ports})
        self.assertLessEqual({server.http_port, server.grpc_port, server.cluster_port}, {port for *_, port in ports})

    def test_private_unless_told_otherwise(self):
        with fixture.Server() as server:
            self.check_inside(server, 2)
            self.assertEqual(beyond_loopback(server.process.pid), [])

    def test_told_otherwise(self):
        with fixture.Server("--host", "0.0.0.0", ranks=4, virtual_hosts=1) as server:
            self.check_inside(server, 4)
            self.assertEqual(beyond_loopback(server.process.pid),
                             sorted(("apb-server", port) for port in (server.http_port, server.grpc_port)))

    def test_loopback_is_the_only_network(self):
        with tempfile.TemporaryFile() as log:
            try:
                server = subprocess.Popen(fixture.server_command(ranks=1), stdin=subprocess.DEVNULL, stdout=log,
                                          stderr=subprocess.STDOUT, preexec_fn=alone_on_loopback)
            except subprocess.SubprocessError:
                self.skipTest("no network of one's own here")

            def text():
                return os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")
            try:
                fixture.wait_until(lambda: "ready http" in text() or server.poll() is not None or
                                   "worker group ended" in text(), "an end of the start")
                self.assertIn("ready http", text())
                self.assertIn("mpirun", {name for name, *_ in open_ports(server.pid)})
                self.assertEqual(beyond_loopback(server.pid), [])
            finally:
                server.terminate()
                server.wait(fixture.PATIENCE)
            self.assertEqual(server.returncode, 0, text())


if __name__ == "__main__":
    unittest.main(verbosity=2)
