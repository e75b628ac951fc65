"""Every public module works where it is the only one that was imported, and imports no more than
it needs."""

from __future__ import annotations

import importlib.util
import pkgutil
import subprocess
import sys

import asng_ext

# Every module gets a process of its own, forked when PyTorch is there, which takes seconds to load,
# and asng_ext itself, which comes first with each of them.
CODE = """
import importlib, os, sys, traceback
import torch

LARGE = {"torch._dynamo", "scipy", "sklearn", "pandas", "matplotlib"}  # seconds each, or nearly
NEEDED = ("asng_ext.integrations.", "asng_ext.training.synced_batch_norm")

def check(name):
    importlib.import_module(name)
    large = LARGE & sys.modules.keys()
    assert name.startswith(NEEDED) or not large, f"{name} imports {large}"
    libraries = sys.modules.get("asng_ext.ops._libraries")
    if libraries is None or not libraries.available():
        return
    x, weight = torch.ones(1, 4, 4, 1, requires_grad=True), torch.ones(1, 1, 3, 3)
    torch.ops.asng.cae_encode(x, weight, 1).sum().backward()
    assert x.grad is not None, "cae_encode has no derivative"
    weight.requires_grad_()
    torch.ops.asng.stem(x.detach(), weight, *torch.ones(2, 1), False)[0].sum().backward()
    assert weight.grad is not None, "stem has no derivative"

failed = []
check("asng_ext")
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            check(name)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        failed.append(name)
sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
"""


def _can_be_imported(name: str) -> bool:
    """Not an integration of a package that is not installed."""
    integration = name.removeprefix("asng_ext.integrations.")
    return integration == name or importlib.util.find_spec(integration) is not None


def test_each_alone_imports_little_and_differentiates() -> None:
    modules = pkgutil.walk_packages(asng_ext.__path__, "asng_ext.")
    public = [m.name for m in modules if "._" not in m.name and _can_be_imported(m.name)]
    assert "asng_ext.cae_ops" in public
    command = [sys.executable, "-c", CODE, *public]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
