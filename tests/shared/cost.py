"""What code costs, on a machine that others use too: the processor's time, compared with a like one of the same moment.

Seconds would tell of the machine. Of each the least of several is taken, in turns: a neighbour only ever adds.
"""

import time
from collections.abc import Callable

ROUNDS = 7


def ratio(work: Callable[[], object], unit: Callable[[], object], rounds: int = ROUNDS) -> float:
    """How many times as much `work` costs as `unit`."""
    least = [float("inf")] * 2
    for _ in range(rounds):
        for which, each in enumerate((work, unit)):
            began = time.process_time()
            each()
            least[which] = min(least[which], time.process_time() - began)
    return least[0] / least[1]
