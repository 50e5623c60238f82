from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.engines import open_engine, register_engine
from edge_runtime.errors import BundleError, InputError


def test_inputs_are_read_from_the_buffer_or_copied_into_it(tiny_bundle: Bundle) -> None:
    engine = open_engine(tiny_bundle, threads=1)
    adapter = np.array([1, 1, 1, 0, 0, 0], np.float32)
    image = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), np.uint8)
    copied = {k: v.copy() for k, v in engine.infer({"image": image, "adapter": adapter}).items()}
    buffers = {name: engine.input_buffer(name) for name in engine.inputs}
    np.copyto(buffers["image"], image)
    np.copyto(buffers["adapter"], adapter)
    direct = engine.infer(buffers)
    for name, values in copied.items():
        np.testing.assert_array_equal(values, direct[name])
    expected = image[0].reshape(-1, 3) / 255
    np.testing.assert_allclose(
        direct["statistics"], [*expected.mean(0), *expected.var(0)], rtol=1e-3
    )
    assert engine.name == "onnxruntime-cpu-fp32"
    engine.close()


def test_outputs_reuse_their_memory(tiny_bundle: Bundle) -> None:
    engine = open_engine(tiny_bundle, threads=1)
    feed = {name: engine.input_buffer(name) for name in engine.inputs}
    first = engine.infer(feed)["statistics"]
    feed["image"][:] = 255
    assert np.shares_memory(first, engine.infer(feed)["statistics"])
    assert first[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backend": "tensorrt"}, r"'tensorrt' is not available on this machine"),
        ({"backend": "abacus"}, r"'abacus' is not available.*onnxruntime"),
        ({"precision": "fp16"}, "no fp16"),
        ({"precision": "int8"}, r"no model\.int8-cpu\.onnx"),
        ({"precision": "int3"}, "'int3' is unknown"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_an_error(
    tiny_bundle: Bundle, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        open_engine(tiny_bundle, **options)


def test_auto_takes_the_quantised_file_where_it_was_kept(
    tmp_path: Path, network: bytes, fields: dict[str, Any]
) -> None:
    bundle = create_bundle(
        tmp_path / "q.bundle", fields, {"model.onnx": network, "model.int8-cpu.onnx": network}
    )
    assert open_engine(bundle).name.endswith("int8")
    assert open_engine(bundle, precision="fp32").name.endswith("fp32")


def test_a_wrong_input_is_refused(tiny_bundle: Bundle) -> None:
    engine = open_engine(tiny_bundle, threads=1)
    adapter = engine.input_buffer("adapter")
    with pytest.raises(InputError, match=r"input 'image' is uint8 \(2, 2\)"):
        engine.infer({"image": np.zeros((2, 2), np.uint8), "adapter": adapter})


def test_a_file_that_is_no_network_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    bundle = create_bundle(tmp_path / "bad.bundle", fields, {"model.onnx": b"not a network"})
    with pytest.raises(BundleError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        open_engine(bundle)


def test_a_backend_registers_itself(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_runtime import engines

    monkeypatch.setattr(engines, "_FACTORIES", dict(engines._FACTORIES))
    sentinel: Any = object()
    register_engine("mine")(lambda bundle, precision, threads: sentinel)
    assert open_engine(tiny_bundle, "mine") is sentinel
