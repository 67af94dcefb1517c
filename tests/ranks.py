"""A script that trains recipes in forked processes: alone, and as several that know each other as torchrun's do."""

DRIVER = """
import json, os, sys, traceback
from pathlib import Path
import torch
from torch.distributed import TCPStore
torch.set_num_threads(1)
from edgeda.adapt import adapt
from edgeda.recipe import Recipe
from edgeda.watching import Deaf

def fork(values, folder, told):
    pid = os.fork()  # torch is imported once; every process is one of its own
    if not pid:
        os.environ.update({name: str(value) for name, value in told.items()})
        try:
            adapt(Recipe.model_validate(values), folder, Deaf())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

def train(values, folder, size):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_RUN_ID": "test"}
    pids = [fork(values, folder, {**told, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(size)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * size

for name, values in json.loads(sys.argv[1]).items():
    for size in (1, 2):
        train(values, Path(sys.argv[2]) / f"{name}-{size}", size)
"""
