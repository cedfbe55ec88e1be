"""The Triton kernels: in the interpreter (another process, as Triton reads the switch when imported), and on a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

CASES = [str(Path(__file__).with_name(name)) for name in ("triton_cases.py", "step_cases.py")]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run_cases(**env):
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *CASES]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@needs_triton
def test_in_interpreter():
    run_cases(TRITON_INTERPRET="1", ATTLAS_KERNELS="triton", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_gpu():
    run_cases(TRITON_INTERPRET="0", ATTLAS_KERNELS="triton")


def test_torch_path_never_imports_triton():
    code = (
        "import sys, torch\nfrom attlas.kernels import topk_encode\n"
        "topk_encode(torch.randn(2, 4), torch.randn(4, 8), torch.zeros(8), 2)\n"
        "assert not any(m.split('.')[0] == 'triton' and 'kernels' in m for m in sys.modules)\n"
        "assert 'attlas.kernels.topk_encode_triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"ATTLAS_KERNELS": "auto"})


def test_choice_errors(monkeypatch):
    from attlas.errors import KernelError
    from attlas.kernels import topk_encode

    monkeypatch.setenv("ATTLAS_KERNELS", "cuda")
    with pytest.raises(KernelError, match="torch, triton or auto"):
        topk_encode(torch.randn(2, 4), torch.randn(4, 8), torch.zeros(8), 2)
    monkeypatch.setenv("ATTLAS_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(KernelError, match=r"CPU|not installed"):
        topk_encode(torch.randn(2, 4), torch.randn(4, 8), torch.zeros(8), 2)


def test_too_few_resources_fall_back_and_log_once(caplog):
    from attlas.kernels.dispatch import or_torch, warn_once

    class OutOfResources(Exception):
        """As Triton's own: raised at launch."""

    def kernel():
        raise OutOfResources("out of resource: shared memory, Required: 300000, Hardware limit: 232448.")

    warn_once.cache_clear()
    with caplog.at_level("WARNING", logger="attlas.kernels"):
        assert [or_torch(kernel, lambda: 7) for _ in range(3)] == [7, 7, 7]
    assert len(caplog.records) == 1
    assert "shared memory" in caplog.text
    with pytest.raises(ZeroDivisionError):
        or_torch(lambda: 1 // 0, lambda: 7)


@needs_triton
def test_the_error_is_named_as_triton_names_it():
    from triton.runtime.errors import OutOfResources

    assert OutOfResources.__name__ == "OutOfResources"
