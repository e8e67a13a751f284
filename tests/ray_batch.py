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

from ofg_deploy.batch.pairs import from_folders
from ofg_deploy.batch.record import Record
from ofg_deploy.batch.work import Means
from ofg_deploy.cli.verbs.batch import Running, register
from ofg_deploy.serve.engine import Engine, open_engine
from ofg_deploy.serve.job import Job


def open_telling(model: Path, *_: Any) -> list[Engine]:
    """An engine that tells which node runs it; on the node to be killed the second pair does not come to an end."""
    import ray

    engine = open_engine(model, "cpu", 1)
    whole = engine.predict
    log = model.parent / f"ran-{ray.get_runtime_context().get_node_id()}"

    def predict(moving: Any, fixed: Any) -> Any:
        with log.open("a") as stream:
            stream.write("pair\n")
        doomed = log.name == (model.parent / "doomed").read_text()
        if doomed and log.read_text().count("pair") == 2:
            time.sleep(60)
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
        log = model.parent / f"ran-{second.node_id}"
        (model.parent / "doomed").write_text(log.name)
        whole = Record.add
        killed = []

        def add(record: Record, outcome: Any) -> None:
            whole(record, outcome)
            if record.counts()["done"] == 3:
                while not log.exists() or log.read_text().count("pair") < 2:
                    time.sleep(0.05)
                killed.append(record.counts())
                cluster.remove_node(second, allow_graceful=False)

        Record.add = add  # type: ignore[method-assign]
        pairs = from_folders(fixed, moving, out, Job, {})
        means = Means(model, "cpu", 1, None, "onnxruntime", 2, 1, out, open=open_telling)
        record = register(pairs, out, means, Running(workers=2, executor="ray", address=cluster.address), [])
        print("killed after", killed, "of", record.counts(), record.facts and record.facts.engines, "engines")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
