"""Serving with each code path of the CPU backend.

Goal: on every code path that this CPU has, the demo model answers right, exactly and with APB. With a path that the CPU
lacks, or an unknown one in APB_CPU_ISA, the server says which paths there are and ends; with an unknown --cpu-isa it
reports the ranks' error and tries again. Method: servers with --cpu-isa and with APB_CPU_ISA.
"""
import os
import subprocess
import unittest
from unittest import mock

import fixture

PATHS = ("amxbf16", "avx512bf16", "avx512vnni", "avx512", "avx2", "portable")


def arguments(isa):
    return f"--worker-args=--decode replicated --cpu-isa {isa}"


class IsaTest(unittest.TestCase):
    def refusal(self, *flags):
        """Starts a server that cannot start; returns the text that it prints."""
        done = subprocess.run(fixture.server_command(*flags), capture_output=True, text=True,
                              timeout=fixture.PATIENCE)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertNotIn("ready http", done.stdout)
        return done.stderr

    def check(self, isa, *flags):
        """Checks one answer of an exact and of an approximate strategy. The sample is short, because portable code is slow."""
        sample = fixture.make_prompt(1500, seed=23)
        with fixture.Server(*flags, virtual_hosts=2) as server:
            self.assertIn(f"backend=cpu/{isa} ", server.log())
            for strategy in ("full", "apb"):
                status, answer = server.post("/v1/chat/completions", {
                    **sample["request"], "temperature": 0, "max_tokens": 40, "apb": {"strategy": strategy}})
                self.assertEqual(status, 200, answer)
                self.assertEqual(answer["choices"][0]["message"]["content"], sample["expected"], (isa, strategy))

    def test_every_path(self):
        lacking = []
        for isa in PATHS:
            probe = subprocess.run([fixture.ON_CPU_PATH, isa, "PROBE=1", "true"], capture_output=True, text=True)
            if probe.returncode == 0:
                self.check(isa, arguments(isa))
            else:
                lacking.append(isa)
        self.assertNotIn("portable", lacking)
        if lacking:
            text = self.refusal(arguments(lacking[0]))
            self.assertIn(f"CPU code path {lacking[0]}: this CPU cannot run it; it runs ", text)
            self.assertIn("features: ", text)

    def test_environment(self):
        with mock.patch.dict(os.environ, APB_CPU_ISA="portable"):
            self.check("portable", "--worker-args=--decode replicated")
        with mock.patch.dict(os.environ, APB_CPU_ISA="mmx"):
            self.assertIn("APB_CPU_ISA=mmx: there is no such code path; it runs ", self.refusal())

    def test_a_name_that_does_not_exist(self):
        """The ranks refuse a wrong option: the server says so to every client that asks, and tries again."""
        with fixture.Server(arguments("sse9"), wait=False) as server:
            def reason():
                status, text = server.get("/health")
                self.assertEqual(status, 503)
                return text if "could not start, 2 times" in text else None
            text = fixture.wait_until(reason, "a second failed start")
            self.assertIn("--cpu-isa", text)
            self.assertIn("sse9", text)
            self.assertIn("--cpu-isa", server.log())


if __name__ == "__main__":
    unittest.main(verbosity=2)
