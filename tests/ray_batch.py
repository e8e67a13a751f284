"""A batch on two Ray nodes of this machine, one of which is killed; ``test_batch_ray.py`` starts this.

Arguments: fixed image, folder of moving ones, model, folder of the results.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for staying on the loopback address
}

from ofg_deploy.batch.command import Running, register
from ofg_deploy.batch.pairs import from_folders
from ofg_deploy.batch.record import Record
from ofg_deploy.batch.work import Means
from ofg_deploy.serve.engine import Engine, open_engine
from ofg_deploy.serve.job import Job


def open_slow(model: Path, *_: Any) -> list[Engine]:
    """An engine that takes its time, so that the node dies with pairs under way; tells who worked on something."""
    engine = open_engine(model, "cpu", 1)
    whole = engine.predict

    def predict(moving: Any, fixed: Any) -> Any:
        with (model.parent / f"ran-{os.getpid()}").open("a") as log:
            log.write("pair\n")
        time.sleep(0.2)
        return whole(moving, fixed)

    engine.predict = predict  # type: ignore[method-assign]
    return [engine]


def main() -> None:
    fixed, moving, model, out = map(Path, sys.argv[1:])
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False})
    try:
        second = cluster.add_node(**options)
        whole = Record.add
        killed = []

        def add(record: Record, outcome: Any) -> None:
            whole(record, outcome)
            if not killed and len(list(model.parent.glob("ran-*"))) == 2 and record.counts()["done"] >= 3:
                killed.append(record.counts())
                cluster.remove_node(second, allow_graceful=False)

        Record.add = add  # type: ignore[method-assign]
        pairs = from_folders(fixed, moving, out, Job, {})
        means = Means(model, "cpu", 1, None, "onnxruntime", 2, 1, out, open=open_slow)
        record = register(pairs, out, means, Running(workers=2, executor="ray", address=cluster.address), [])
        print("killed after", killed, "of", record.counts(), record.facts["runtime"]["engines"], "engines")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
