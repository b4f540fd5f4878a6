"""The daemon as `privsep-ike run` starts it, but for what a plan says: a child is captured, or one check is taken out.

    python -I -B launch.py PLAN --config FILE --secrets FILE --run-dir DIR

A plan is a JSON file: `captured` names modules whose process executes what an attacker sends it (`captured.py`), and
`weaken` maps a module ("monitor", "worker", "keyd", "monitor.userspace") to Python that runs in its process first. That
is how a control takes one layer off; children that the plan does not name start exactly as they ship.
"""

import json
import os
import sys
from pathlib import Path

CAPTURED = str(Path(__file__).with_name("captured.py"))
MODULE = 4
"""Where `privsep.spawn` has the module's name: python -I -B -m MODULE ..."""


def main() -> int:
    plan_file = sys.argv.pop(1)
    plan = json.loads(Path(plan_file).read_text())
    touched = {*plan["captured"], *plan["weaken"]}
    spawn = os.posix_spawn

    def posix_spawn(path, argv, env, **more):
        module = argv[MODULE]
        if module in touched:
            argv = [*argv[: MODULE - 1], CAPTURED, plan_file, module, *argv[MODULE + 1 :]]
        return spawn(path, argv, env, **more)

    os.posix_spawn = posix_spawn
    import monitor.__main__ as entry

    exec(plan["weaken"].get("monitor", ""), {"entry": entry})
    return entry.main()


if __name__ == "__main__":
    sys.exit(main())
