"""Builds and registers the emulated accelerator: a torch device for tests where there is no GPU."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

NAME = "emulated"
SOURCE = Path(__file__).with_name("emulated.cpp")
BUILDS = Path(__file__).parents[2] / ".cache" / "accelerator"
TORCH = Path(torch.__file__).parent
COMPILER = os.environ.get("CXX", "c++")
FLAGS = (
    *("-std=c++20", "-O1", "-fPIC", "-shared", "-w"),
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
)


def why_not() -> str | None:
    """Say why there can be no emulated accelerator here, if so."""
    if not sys.platform.startswith("linux"):
        return "the emulated accelerator is built on Linux only"
    if shutil.which(COMPILER) is None:
        return f"no GPU, and no C++ compiler ({COMPILER}) to build the emulated one with"
    return None


def build() -> Path:
    """Compile the device for this torch, once; a worker beside us waits for it."""
    import fcntl  # which Windows does not have

    decides = (torch.__version__, COMPILER, *FLAGS)
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(decides).encode())
    library = BUILDS / f"{NAME}-{key.hexdigest()[:16]}.so"
    BUILDS.mkdir(parents=True, exist_ok=True)
    with open(BUILDS / "lock", "w") as lock:  # let go by the system, whatever ends us
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            half = library.with_suffix(".half")
            command = [COMPILER, *FLAGS, "-isystem", TORCH / "include", SOURCE, "-o", half]
            subprocess.run([*command, f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"], check=True)
            half.rename(library)
    return library


class Module(ModuleType):
    """What torch asks of a device's module, ``torch.cuda`` for one."""

    present = False  # "auto" is the CPU for tests that did not ask for an accelerator

    def is_available(self) -> bool:
        return self.present

    def device_count(self) -> int:
        return int(self.present)

    def current_device(self) -> int:
        return 0

    def device(self, _: object) -> AbstractContextManager:
        return nullcontext()  # there is one device only

    def synchronize(self, _: object = None) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        torch.ops.emulated.seed(seed % 2**63)

    def get_rng_state(self, _: object = NAME) -> torch.Tensor:
        return torch.ops.emulated.state()

    def set_rng_state(self, state: torch.Tensor, _: object = NAME) -> None:
        torch.ops.emulated.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def _is_in_bad_fork(self) -> bool:
        return False


@cache
def register() -> Module:
    """Make the device known to torch, for the rest of the process."""
    library = build()
    torch.utils.rename_privateuse1_backend(NAME)
    torch.ops.load_library(library)
    module = Module(f"torch.{NAME}")
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    torch.ops.emulated.start()
    return module


@contextmanager
def present() -> Iterator[str]:
    """Have the accelerator here for as long as the context lasts; gives its name."""
    module = register()
    module.present = True
    try:
        yield NAME
    finally:
        module.present = False


@contextmanager
def without_double() -> Iterator[None]:
    """Refuse float64 on the device, as Apple's mps does."""
    torch.ops.emulated.without_double(True)
    try:
        yield
    finally:
        torch.ops.emulated.without_double(False)
