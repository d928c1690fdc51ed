"""Tensor parallelism and the two ways of decoding.

Goal: however the ranks divide heads, context and weights, every strategy gives the right answer, and an impossible
division is refused with a reason. Method: servers of 2 and 4 ranks with different divisions; prompts with a known
answer.
"""
import re
import subprocess
import unittest

import fixture


def answers(server):
    sample = fixture.make_prompt(3000, seed=51)
    for strategy in ("full", "apb", "star", "ring_kv", "ring_q", "token_ring", "ulysses"):
        status, answer = server.post("/v1/chat/completions", {
            "model": "demo", "messages": sample["messages"], "temperature": 0, "max_tokens": 40,
            "apb": {"strategy": strategy}})
        assert status == 200, (strategy, answer)
        yield strategy, answer["choices"][0]["message"]["content"], sample["expected"]


class MeshTest(unittest.TestCase):
    def check(self, ranks, *arguments):
        # So that every strategy computes the prompt itself.
        arguments = ("--no-prefix-caching", *arguments)
        with fixture.Server("--worker-args", " ".join(arguments), ranks=ranks) as server:
            self.assertEqual(len(server.workers()), ranks)
            for strategy, answer, expected in answers(server):
                self.assertEqual(answer, expected, (ranks, arguments, strategy))
            server.await_idle()

    def test_sliced_decode(self):
        self.check(2, "--decode", "sliced")

    def test_tensor_parallel(self):
        self.check(2, "--tensor-parallel", "2")

    def test_context_and_tensor_parallel_sliced(self):
        self.check(4, "--tensor-parallel", "2", "--decode", "sliced")

    def test_refused(self):
        for ranks, arguments, reason in (
                (2, "--tensor-parallel 3", r"--tensor-parallel 3: does not divide the 2 ranks"),
                (4, "--tensor-parallel 4", r"KV heads do not divide"),
                (1, "--decode maybe", r"--decode")):
            with fixture.Server(f"--worker-args={arguments}", ranks=ranks, wait=False) as server:
                found = fixture.wait_until(lambda: re.search(reason, server.log()), reason)
                self.assertTrue(found)

    def test_help_names_the_options(self):
        text = subprocess.run([fixture.WORKER_BINARY, "--help"], capture_output=True, text=True, check=True).stdout
        self.assertIn("--tensor-parallel", text)
        self.assertIn("--decode", text)


if __name__ == "__main__":
    unittest.main()
