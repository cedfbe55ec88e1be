"""Fresh processes that do not import torch and transformers each: one process does, and every job is a fork of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FORKER = """
import json, os, sys, traceback
import torch, transformers
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, GPT2LMHeadModel
assert not any(name.partition(".")[0] == "attlas" for name in sys.modules)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        status = 1
        os.dup2(os.open(job["stderr"], os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(2, 1)
        try:
            os.environ.update(job["env"])
            os.chdir(job["cwd"])
            sys.argv = ["-c", *job["argv"]]
            exec(job["code"], {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Strangers:
    """`subprocess.run` for `python -c CODE ARGUMENT ...`, as far as `attlas.analyses.pruning.reopen` uses it.

    Args:
        folder: for what the processes write on stderr, and the code that transformers copies out of checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forker: subprocess.Popen[str] | None = None

    def run(self, argv: Sequence[str], cwd: str, env: Mapping[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        python, dash_c, code, *arguments = argv
        assert (python, dash_c) == (sys.executable, "-c")
        if self._forker is None:  # where the code is copied to is read at import
            started = {**env, "HF_MODULES_CACHE": str(self._folder / "modules")}
            command = [python, "-c", _FORKER]
            pipe = subprocess.PIPE
            self._forker = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=started, cwd=self._folder)
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        stderr = self._folder / "stderr"
        stderr.write_text("")
        job = {"code": code, "argv": arguments, "cwd": cwd, "env": dict(env), "stderr": str(stderr)}
        self._forker.stdin.write(json.dumps(job) + "\n")
        self._forker.stdin.flush()
        status = int(self._forker.stdout.readline())
        return subprocess.CompletedProcess(list(argv), status, "", stderr.read_text())

    def close(self) -> None:
        if self._forker is not None and self._forker.stdin is not None:
            self._forker.stdin.close()
            self._forker.wait()
