"""A Ray cluster of two nodes on loopback, run by a Python that has Ray: `python ray_cluster.py`.

It says what is there as a line of JSON, address and node ids by what a node has, at the start and after each line on its
standard input: `lose NAME` kills the node that has this, `add NAME` starts one. It ends with its standard input.
"""

import json
import os
import sys

# Before Ray is loaded. The second one is Ray's way to say that every node is at 127.0.0.1.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

from ray.cluster_utils import Cluster

STORE_BYTES = 80_000_000


def arguments(name: str) -> dict[str, object]:
    """A node with room for two agents of a class, and of class a10 a GPU that nobody looks at."""
    return {
        "num_cpus": 4,
        "num_gpus": 1 if name == "a10" else 0,
        "resources": {name: 2},
        "labels": {"class": name},
        "object_store_memory": STORE_BYTES,
    }


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args=arguments("a100")
        | {"include_dashboard": False, "dashboard_agent_listen_port": 0},
    )
    nodes = {"a100": cluster.head_node, "a10": cluster.add_node(**arguments("a10"))}
    try:
        while True:
            told = {name: node.node_id for name, node in nodes.items()}
            sys.stdout.write(json.dumps({"address": cluster.address, "nodes": told}) + "\n")
            sys.stdout.flush()
            words = sys.stdin.readline().split()
            if not words:
                return
            order, name = words
            if order == "lose":
                cluster.remove_node(nodes.pop(name), allow_graceful=False)
            else:
                nodes[name] = cluster.add_node(**arguments(name))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
