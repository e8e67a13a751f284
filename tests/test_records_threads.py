"""Records are read by several threads at once, as in a batch."""

from __future__ import annotations

import subprocess
import sys

# Types that no thread has met, and threads that take turns all the time: the conversion crashes if nothing prevents it.
AT_ONCE = """
import sys
from dataclasses import make_dataclass
from threading import Barrier, Thread
from ofg_deploy.records import fitted

sys.setswitchinterval(1e-6)
for number in range(40):
    inner = make_dataclass(f"Inner{number}", [(f"n{i}", int) for i in range(12)])
    kind = make_dataclass(f"Outer{number}", [(f"k{i}", list[inner]) for i in range(6)])
    content = {f"k{i}": [{f"n{j}": i + j for j in range(12)}] for i in range(6)}
    meet, found = Barrier(8), []
    def convert():
        meet.wait()
        found.append(fitted(content, kind, "x"))
    threads = [Thread(target=convert) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f.k5[0].n11 for f in found] == [16] * 8
"""


def test_threads_meet_a_type_for_the_first_time() -> None:
    done = subprocess.run([sys.executable, "-c", AT_ONCE], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
