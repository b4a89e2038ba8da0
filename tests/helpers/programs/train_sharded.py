"""examples/train.py with FSDP2 over gloo on CPUs, where Accelerate does not offer it: what it does on accelerators."""

import functools

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from omit_hf.command_line import run_script
from omit_hf.command_line.train import main

PLUGIN = FullyShardedDataParallelPlugin(
    fsdp_version=2,
    auto_wrap_policy="transformer_based_wrap",  # by the model's _no_split_modules
    state_dict_type="FULL_STATE_DICT",
    cpu_ram_efficient_loading=False,
)


def sharding(begin):
    @functools.wraps(begin)
    def begun(self, *args, **options):
        begin(self, *args, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, PLUGIN

    return begun


AcceleratorState.__init__ = sharding(AcceleratorState.__init__)

if __name__ == "__main__":
    run_script(main)
