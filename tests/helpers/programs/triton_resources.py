"""Compiles the Triton kernels for sm_90 as the host would launch them, on a machine without a GPU, and prints what each
takes, a JSON line for each compiled kernel:

    python tests/helpers/programs/triton_resources.py dtype:R:C:D[:forward] ...

Run it without TRITON_INTERPRET: what is interpreted cannot be compiled.
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from omit_hf.kernels.triton import dense, packing, transport

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Recorder:
    """Stands for a kernel, and compiles it instead of launching it."""

    def __init__(self, kernel, compiled: dict):
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *arguments, **options):
        signature, constants, attributes = {}, {}, {}
        for number, (parameter, value) in enumerate(zip(self.kernel.params, arguments, strict=True)):
            # as the launcher specialises: constants, 1 and None; and what is divisible by 16
            special = isinstance(value, int) and not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (special and value == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = POINTERS[value.dtype]
            else:
                signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
            if isinstance(value, torch.Tensor) or (special and value % 16 == 0):
                attributes[(number,)] = [["tt.divisibility", 16]]
        constexprs = {p.name: constants[p.name] for p in self.kernel.params if p.is_constexpr}
        key = json.dumps([self.kernel.__name__, constexprs, sorted(constants), str(attributes)], default=str)
        if key not in self.compiled:
            source = ASTSource(self.kernel, signature, constants, attributes)
            binary = triton.compile(source, target=TARGET, options=options)
            self.compiled[key] = {"kernel": self.kernel.__name__, **constexprs, **options, **_resources(binary)}


def _resources(binary) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        tools = triton.knobs.nvidia
        usage = subprocess.run(
            [tools.cuobjdump.path, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([tools.nvdisasm.path, "-c", file.name], capture_output=True, text=True, check=True).stdout
    count = {name: len(re.findall(rf"\b{name}\b", sass)) for name in ("HGMMA", "HMMA", "LDL", "STL")}
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    return {"registers": registers, "stack": stack, "shared": binary.metadata.shared, **count}


class Silent:
    """Stands for a kernel that makes tables, and does nothing."""

    def __getitem__(self, grid):
        return lambda *arguments: None


def resources(dtype: torch.dtype, regions: int, words: int, width: int, backward: bool = True) -> list[dict]:
    """What the kernels take for images and captions of that many rows: forward, then backward for all pairs and few."""
    compiled = {}
    recorded = [(dense, "packed_kernel"), (transport, "transport_kernel"), (transport, "gradient_kernel")]
    replaced = {(module, name): Recorder(getattr(module, name), compiled) for module, name in recorded}
    replaced |= {(packing, name): Silent() for name in ("place_kernel", "tile_kernel", "mass_kernel")}
    replaced[torch.cuda, "get_device_properties"] = lambda device: SimpleNamespace(multi_processor_count=132)
    with contextlib.ExitStack() as stack:
        for (module, name), stand_in in replaced.items():
            stack.enter_context(mock.patch.object(module, name, stand_in))
        image_rows = torch.zeros(8, regions, width, dtype=dtype, requires_grad=True)
        text_rows = torch.zeros(16, words, width, dtype=dtype, requires_grad=True)
        masses = [torch.ones(8, 1, regions, requires_grad=True), torch.ones(1, 16, words, requires_grad=True)]
        # 1/λ, n and the number of dustbins; not by `score_transport`, which wants a GPU
        settings = (50.0, 3, 1)
        scores = transport._TransportSimilarity.apply(image_rows, masses[0], text_rows, masses[1], settings)
        if backward:
            scores.backward(torch.eye(8, 16))
            sides = dense.pack_sides(image_rows.detach(), masses[0], text_rows.detach(), masses[1], settings[2])
            grads = torch.zeros(128, 128, dtype=dtype if dtype == torch.bfloat16 else torch.float32)
            written = dense.Backward(grads, (0, 1), [torch.zeros(128, 128)] * 2, ["item", "item"])
            dense.launch(torch.ones(8, 16), *sides, settings, written)
    return list(compiled.values())


if __name__ == "__main__":
    for case in sys.argv[1:]:
        dtype, *sizes = case.removesuffix(":forward").split(":")
        for each in resources(getattr(torch, dtype), *map(int, sizes), backward=not case.endswith(":forward")):
            print(json.dumps({"case": case, **each}), flush=True)
