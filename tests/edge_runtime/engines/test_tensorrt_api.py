"""What the stubs and the fakes say of TensorRT, held against the names of the real bindings."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.imitation import API, GENERATIONS
from fakes.tensorrt import FakeTensorRT

ROOT = Path(__file__).resolve().parents[3]
STUB = ROOT / "typings" / "tensorrt" / "__init__.pyi"


def stub_names() -> dict[str, set[str]]:
    """Public attributes that the type stub gives each class."""
    names: dict[str, set[str]] = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef):
            fields = names.setdefault(node.name, set())
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    fields.add(inner.name)
                elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                    fields.add(inner.target.id)
                elif isinstance(inner, ast.Assign) and isinstance(inner.targets[0], ast.Name):
                    fields.add(inner.targets[0].id)
    return {kind: {n for n in fields if not n.startswith("_")} for kind, fields in names.items()}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_name_in_the_stub_is_in_every_generation(generation: str) -> None:
    api = API[generation]
    names = stub_names()
    assert len(names) > 20
    for kind, fields in names.items():
        if kind != "Dims":  # a tuple-like of pybind's own
            assert fields <= set(api[kind]), kind


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_name_in_the_fake_is_in_its_generation(generation: str) -> None:
    module = FakeTensorRT(generation, FakeCuda()).module
    for kind, names in API[generation].items():
        if kind == "__version__":
            continue
        fake = getattr(module, kind)
        own = {name for base in fake.__mro__[:2] for name in vars(base)} - {"fake", "trt", "names"}
        imitated = {name for name in own if not name.startswith("_")}
        assert imitated <= set(names), kind


def test_the_generations_differ_where_the_bindings_do() -> None:
    def module(generation: str):
        return FakeTensorRT(generation, FakeCuda()).module

    old, new = module("10.3"), module("11.4")
    assert int(old.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 1
    assert int(new.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 0
    assert hasattr(old.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    assert not hasattr(new.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    assert hasattr(old.BuilderFlag, "FP16") and not hasattr(new.BuilderFlag, "FP16")
    with pytest.raises(TypeError):
        1 << old.BuilderFlag.GPU_FALLBACK  # as with pybind's enums
    config = new.IBuilderConfig()
    with pytest.raises(AttributeError, match="no attribute 'int8_calibrator'"):
        config.int8_calibrator = None
    with pytest.raises(NotImplementedError, match="does not imitate 'avg_timing_iterations'"):
        _ = config.avg_timing_iterations


def check_types(project: Path) -> subprocess.CompletedProcess[str]:
    checker = Path(sysconfig.get_path("scripts")) / "basedpyright"
    if not checker.is_file():
        pytest.skip("basedpyright is not installed; make setup installs it")
    command = [str(checker), "--pythonpath", sys.executable, "-p", str(project)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=dict(os.environ)
    )


@pytest.mark.slow
def test_a_wrong_use_of_tensorrt_is_a_type_error(tmp_path: Path) -> None:
    """That the engines are right is a step of `make lint`; here, that it can tell wrong ones."""
    (tmp_path / "pyrightconfig.json").write_text(
        f'{{"include": ["."], "stubPath": "{ROOT}/typings", "typeCheckingMode": "basic", '
        f'"extraPaths": ["{ROOT}"], "reportMissingModuleSource": false}}'
    )
    source = (ROOT / "edge_runtime" / "engines" / "tensorrt.py").read_text()
    source = source.partition("@register_engine")[0]  # what follows is about the module itself
    for right, wrong, says in (
        ("execute_async_v3(", "execute_async_v2(", "execute_async_v2"),
        ("self._cuda.stream)", "self._cuda.name)", "stream_handle"),
        ("trt.TensorIOMode.INPUT", "trt.TensorIOMode.INPUTS", "INPUTS"),
        ("self._engine.num_io_tensors", "self._engine.num_bindings", "num_bindings"),
    ):
        assert right in source
        (tmp_path / "wrong.py").write_text(source.replace(right, wrong))
        result = check_types(tmp_path)
        assert result.returncode == 1 and says in result.stdout, result.stdout
    (tmp_path / "wrong.py").write_text(source)
    assert check_types(tmp_path).returncode == 0
