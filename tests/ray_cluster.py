"""A Ray cluster of two workers on this machine, for a test: says its address, and kills the worker of each node id that it is told."""

import sys

import ray
from ray.cluster_utils import Cluster


def main() -> None:
    """Until stdin ends."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [cluster.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]
    cluster.wait_for_nodes()
    print(cluster.address, *(worker.node_id for worker in workers), flush=True)
    for line in sys.stdin:
        (worker,) = [worker for worker in workers if worker.node_id == line.strip()]
        cluster.remove_node(worker, allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
