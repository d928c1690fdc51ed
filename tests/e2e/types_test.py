"""Checkpoints of other types, and quantized weights.

Goal: a checkpoint in float16, in float32, or with norms of another type than config.json says answers like the bfloat16
checkpoint from which it was made; so does one whose weights are quantized while they are loaded. The server says in which
types it computes. Method: copies of the demo model are written in these types and served on the CPU with several --dtype;
the model is served with --quantize; unsupported types are refused with a reason.
"""
import json
import pathlib
import re
import struct
import tempfile
import unittest

import fixture
import numpy as np


def read_tensors(path):
    """Reads a file of BF16 tensors; returns name -> float32 array, and the file's metadata."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "BF16", (name, entry)
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        bits = np.frombuffer(data[begin:end], "<u2").astype("<u4") << 16
        tensors[name] = bits.view("<f4").reshape(entry["shape"])
    return tensors, metadata


def write_tensors(path, tensors, metadata):
    header, blobs, at = {"__metadata__": metadata}, [], 0
    for name, array in tensors.items():
        blob = array.tobytes()
        header[name] = {"dtype": {"f2": "F16", "f4": "F32"}[array.dtype.str[1:]], "shape": list(array.shape),
                        "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def copy_of_model(folder, type_of, config_type):
    """Copies the demo model with each tensor in the NumPy type type_of(name). config_type None: config.json has no type."""
    for source in fixture.MODEL.iterdir():
        target = pathlib.Path(folder, source.name)
        if source.suffix == ".safetensors":
            tensors, metadata = read_tensors(source)
            write_tensors(target, {name: x.astype(type_of(name)) for name, x in tensors.items()}, metadata)
        elif source.name == "config.json":
            config = json.loads(source.read_text())
            del config["torch_dtype"]
            target.write_text(json.dumps(config if config_type is None else {**config, "torch_dtype": config_type}))
        else:
            target.write_bytes(source.read_bytes())


def answers(server):
    sample = fixture.make_prompt(3000, seed=71)
    for strategy in ("full", "apb"):
        status, answer = server.post("/v1/chat/completions", {
            "model": "demo", "messages": sample["messages"], "temperature": 0, "max_tokens": 40,
            "apb": {"strategy": strategy}})
        assert status == 200, (strategy, answer)
        yield strategy, answer["choices"][0]["message"]["content"], sample["expected"]


class TypesTest(unittest.TestCase):
    def check(self, type_of, config_type, dtype, computed, converts):
        with tempfile.TemporaryDirectory(prefix="apb-types-") as folder:
            copy_of_model(folder, type_of, config_type)
            with fixture.Server("--worker-args", f"--calibration off --dtype {dtype}", model=folder) as server:
                for strategy, answer, expected in answers(server):
                    self.assertEqual(answer, expected, (config_type, dtype, strategy))
                self.assertTrue(any(f'dtype="{computed}"' in series and series.startswith("apb_model_info")
                                    for series in server.metrics()))
                log = server.log()
                self.assertIn(f"weights: {computed}", log)
                self.assertEqual(bool(re.search("[1-9][0-9]* tensors of another type converted", log)), converts, log)
                self.assertEqual(f"type is {config_type}, {computed} is used" in log,
                                 config_type not in (None, computed), log)

    def test_float16_becomes_bfloat16_on_the_cpu(self):
        self.check(lambda name: "<f2", "float16", "auto", "bfloat16", True)

    def test_float32(self):
        self.check(lambda name: "<f4", "float32", "auto", "float32", False)

    def test_float32_as_bfloat16(self):
        self.check(lambda name: "<f4", "float32", "bfloat16", "bfloat16", True)

    def test_mixed_and_unsaid(self):
        self.check(lambda name: "<f4" if "norm" in name else "<f2", None, "auto", "bfloat16", True)

    def test_refused(self):
        with fixture.Server("--worker-args=--dtype float16", ranks=1, wait=False) as server:
            self.assertTrue(fixture.wait_until(lambda: re.search("the CPU does not compute in", server.log()), "reason"))
        with fixture.Server("--worker-args=--dtype float8", ranks=1, wait=False) as server:
            self.assertTrue(fixture.wait_until(lambda: re.search("--dtype", server.log()), "reason"))


class QuantizeTest(unittest.TestCase):
    def test_int8_and_int4(self):
        for way, products in (("int8", "0 int4 and 29 int8"), ("int4", "28 int4 and 1 int8")):
            arguments = f"--calibration off --decode sliced --quantize {way}"
            with fixture.Server("--worker-args", arguments) as server:
                for strategy, answer, expected in answers(server):
                    self.assertEqual(answer, expected, (way, strategy))
                self.assertTrue(any(f'weight_type="{way}"' in series and series.startswith("apb_model_info")
                                    for series in server.metrics()))
                self.assertIn(f"quantized weights: of 29 products {products}", server.log())

    def test_refused(self):
        cases = (({"quant_method": "fp8"}, "'fp8' is not supported"),
                 ({"quant_method": "awq", "bits": 3, "group_size": 128}, "bits: 3 is not supported"))
        for config, reason in cases:
            with tempfile.TemporaryDirectory(prefix="apb-types-") as folder:
                for source in fixture.MODEL.iterdir():
                    pathlib.Path(folder, source.name).symlink_to(source)
                path = pathlib.Path(folder, "config.json")
                path.unlink()
                text = json.loads((fixture.MODEL / "config.json").read_text())
                path.write_text(json.dumps({**text, "quantization_config": config}))
                with fixture.Server(ranks=1, wait=False, model=folder) as server:
                    self.assertTrue(fixture.wait_until(lambda: reason in server.log(), reason))


if __name__ == "__main__":
    unittest.main()
