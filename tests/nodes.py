"""A Ray cluster on this machine, whose nodes can be killed."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import tiny

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
room = {"object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**room, "num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(**room, num_cpus=1) for _ in range(2)]
print("ready", cluster.address, sep="\\n", flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
    else:
        nodes.append(cluster.add_node(**room, num_cpus=1))
    print(line, end="", flush=True)
cluster.shutdown()
"""


class Nodes:
    """Two nodes with a CPU each, beside the head at `address`, which has none."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.address = process.stdout.readline().strip()

    def kill(self) -> None:
        """Kill the oldest node and all that runs on it."""
        self._do("kill")

    def add(self) -> None:
        """Start another node."""
        self._do("add")

    def _do(self, what: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{what}\n"


@contextmanager
def two_nodes(**environment: str) -> Iterator[Nodes]:
    """Run a cluster of two nodes."""
    with tiny.started(CLUSTER, **environment) as process:
        try:
            yield Nodes(process)
        finally:
            process.communicate(timeout=60)  # it shuts the cluster down once nobody can ask it for anything
