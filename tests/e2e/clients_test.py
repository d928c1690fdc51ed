"""Many clients at once, some of which disconnect.

Goal: every request is answered or cancelled, a greedy answer is the same as when its request runs alone, and in the end
no KV block is in use. Method: 240 requests, 24 at a time, about half of them broken off at a random event; a server
without a prefix cache gives the answers to compare with.
"""
import concurrent.futures
import random
import time
import unittest

import fixture

REQUESTS, AT_ONCE, DISTINCT = 240, 24, 30


class ManyClientsTest(unittest.TestCase):
    def test_answers_and_cancellations(self):
        rng = random.Random(17)
        bodies = []
        for i in range(DISTINCT):
            sample = fixture.make_prompt(rng.choice((80, 150, 300, 600, 1500)), rng.random(), seed=100 + i)
            strategy = rng.choice(("full", "apb", "star", "auto"))
            bodies.append({**sample["request"], "apb": {"strategy": strategy}})
        with fixture.Server("--worker-args", "--no-prefix-caching") as server:
            alone = [server.post("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]
                     for body in bodies]
            self.assertEqual(server.metrics()["apb_cached_prompt_tokens_total"], 0)
        with fixture.Server() as server:
            before = server.metrics()
            plan = [(rng.randrange(DISTINCT), rng.choice((None, None, 0, rng.randrange(1, 12))))
                    for _ in range(REQUESTS)]

            def run(which, events_until_gone):
                stream = fixture.Stream(server, "/v1/chat/completions", {**bodies[which], "return_progress": True})
                try:
                    if stream.response.status != 200:
                        return "refused", stream.response.read()
                    while events_until_gone is None or len(stream.events) < events_until_gone:
                        if stream.read_event() is None:
                            break
                    if stream.done:
                        return "answered", (which, fixture.text_of(stream.events))
                    return ("gone" if events_until_gone is not None else "broken"), stream.events[-1:]
                finally:
                    stream.close()

            with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
                results = list(pool.map(lambda item: run(*item), plan))
            # Idle ranks report every five seconds, so the next report is from after the last
            # request.
            time.sleep(5.5)
            after = server.metrics()
        kinds = [kind for kind, _ in results]
        self.assertEqual(set(kinds), {"answered", "gone"}, [r for r in results if r[0] in ("refused", "broken")][:3])
        self.assertGreater(kinds.count("answered"), REQUESTS / 4)
        for kind, detail in results:
            if kind == "answered":
                self.assertEqual(detail[1], alone[detail[0]], bodies[detail[0]]["apb"])

        def counted(outcome):
            def total(values):
                return sum(v for k, v in values.items() if k.startswith("apb_requests_total{") and
                           f'outcome="{outcome}"' in k)
            return total(after) - total(before)
        self.assertEqual(counted("ok") + counted("cancelled"), REQUESTS)
        self.assertEqual(counted("error") + counted("rejected"), 0)
        self.assertGreaterEqual(counted("ok"), kinds.count("answered"))
        self.assertGreater(after["apb_cached_prompt_tokens_total"], 0)
        self.assertEqual((after["apb_num_requests_running"], after["apb_num_requests_waiting"]), (0, 0))
        used = sum(v for k, v in after.items() if k.startswith("apb_kv_cache_blocks{") and 'state="used"' in k)
        self.assertEqual(used, 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
