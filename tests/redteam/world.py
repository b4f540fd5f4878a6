"""The gateway under attack: a real daemon one of whose processes is captured, an honest peer with a tunnel that must go
on working, and an attacker who sends code.

A `World` is started once for each plan (who is captured, what is taken out) and shared by all scenarios that need it.
"""

import itertools
import json
import re
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from captured import MAGIC
from lab import LEFT, LEFT_HOST, PSK, RIGHT, RIGHT_HOST, Network, Ours, run, wait_for

from privsep.cli.control import ask

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
ATTACKER = "192.0.2.66"
"""Where the code comes from: another address of the honest peer's namespace, which no connection names."""
SECOND, SECOND_HOST, SECOND_PSK = "192.0.2.4", "10.4.0.1", "second peer's own, no secret in a test"
"""A peer that tests play themselves."""
IKE_PORT, NATT_PORT = 500, 4500
ANSWER_SECONDS = 20.0
CALM = "import monitor.supervisor; monitor.supervisor.HEALTHY_SECONDS = 0.0"
"""No growing pause between epochs, which many scenarios end; only the scenario about it goes without."""
LAUNCHER = Path(__file__).with_name("launch.py")

CONFIG = f"""\
[gateway]
dataplane = "userspace"
on_stop = "remove"
users = {{{{ worker = {{worker}}, keyd = {{keyd}}, userspace = {{userspace}} }}}}

[connection.peer]
version = "ikev1"
local = "{LEFT}"
remote = "{RIGHT}"
local_id = "{LEFT}"
remote_id = "{RIGHT}"
auth = "psk"
ike = ["{IKE}"]
[connection.peer.child.net]
local_ts = ["{LEFT_HOST}/32"]
remote_ts = ["{RIGHT_HOST}/32"]
esp = ["{ESP}"]
start = "wait"

[connection.second]
version = "ikev1"
local = "{LEFT}"
remote = "{SECOND}"
local_id = "{LEFT}"
remote_id = "{SECOND}"
auth = "psk"
ike = ["{IKE}", "aes128-sha256-curve25519", "aes128-sha256-ecp256"]
[connection.second.child.net]
local_ts = ["10.1.0.0/24"]
remote_ts = ["10.4.0.0/24"]
esp = ["{ESP}", "aes128-sha256-modp2048"]
start = "wait"
[connection.second.child.port]
local_ts = ["{LEFT_HOST}/32[tcp/443]"]
remote_ts = ["10.5.0.0/24[tcp]"]
esp = ["{ESP}"]
start = "wait"

[connection.lax]
version = "ikev1"
local = "{LEFT}"
remote = "192.0.2.0/24"
local_id = "{LEFT}"
remote_id = "any"
auth = "psk"
ike = ["{IKE}", "aes128-sha1-modp2048"]
[connection.lax.child.net]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.8.0.0/16"]
esp = ["{ESP}", "aes128-sha1"]
start = "wait"

[connection.host]
version = "ikev1"
local = "{LEFT}"
remote = "198.51.100.7"
local_id = "{LEFT}"
remote_id = "any"
auth = "psk"
ike = ["{IKE}"]
encap = "off"
[connection.host.child.net]
mode = "transport"
local_ts = ["{LEFT}/32"]
remote_ts = ["198.51.100.7/32"]
esp = ["{ESP}"]
start = "wait"

[connection.named]
local = "{LEFT}"
remote = "localhost"
[connection.named.child.net]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.7.0.0/16"]
"""
SECRETS = f"""\
[[psk]]
connection = "peer"
secret = "{PSK}"
[[psk]]
connection = "second"
secret = "{SECOND_PSK}"
[[psk]]
connection = "lax"
secret = "{PSK}"
[[psk]]
connection = "host"
secret = "{PSK}"
[[psk]]
connection = "named"
secret = "{PSK}"
"""


@dataclass(frozen=True)
class Plan:
    """Who is captured, and what is taken out where (module and Python that runs in it first)."""

    captured: tuple[str, ...] = ("worker",)
    weaken: tuple[tuple[str, str], ...] = (("monitor", CALM),)

    def without(self, **code: str) -> "Plan":
        """The same with something taken out: `worker=`, `keyd=`, `monitor=`, `esp=`."""
        names = {"esp": "monitor.userspace"}
        more = {names.get(process, process): text for process, text in code.items()}
        before = dict(self.weaken)
        return Plan(self.captured, tuple((before | {m: before.get(m, "") + "\n" + t for m, t in more.items()}).items()))

    def text(self) -> str:
        """As `launch.py` reads it."""
        return json.dumps({"captured": self.captured, "weaken": dict(self.weaken)})


class Killed(Exception):
    """The captured process ended instead of answering; `how` as the monitor logged it."""

    def __init__(self, how: str, seconds: float) -> None:
        super().__init__(how)
        self.how, self.seconds = how, seconds


class Victim(Ours):
    """The gateway under attack, started by a plan."""

    plan = Plan()

    def launch(self) -> None:
        """As `privsep-ike run`, by way of the launcher."""
        (self.site.directory / "plan.json").write_text(self.plan.text())
        super().launch()

    def words(self, *words: str) -> list[str]:
        if words[0] != "run":
            return super().words(*words)
        plan = str(self.site.directory / "plan.json")
        return self.site.command(
            sys.executable, "-I", "-B", "-W", "ignore", str(LAUNCHER), plan, *words[1:], "--run-dir", str(self.run_dir)
        )


@dataclass
class World:
    """One victim, one honest peer, one attacker."""

    network: Network
    victim: Victim
    honest: Ours
    attacker: socket.socket
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    @classmethod
    def start(cls, network: Network, plan: Plan, uid: int) -> "World":
        """All up, with the tunnel between victim and honest peer."""
        for address in (ATTACKER, SECOND):
            run("ip", "-n", network.right.namespace, "address", "add", f"{address}/24", "dev", "wire0")
        run("ip", "-n", network.right.namespace, "address", "add", f"{SECOND_HOST}/32", "dev", "lo")
        victim, honest = Victim(network.left), Ours(network.right)
        victim.plan = plan
        victim.config.write_text(CONFIG.format(worker=uid, keyd=uid + 1, userspace=uid + 2))
        victim.secrets.touch(mode=0o600)
        victim.secrets.write_text(SECRETS)
        honest.configure(IKE, ESP, uid=uid + 10)
        # it answers for its own address only: the others are the attacker's and the tests'
        text = honest.config.read_text().replace("[gateway]\n", f'[gateway]\nlisten = ["{RIGHT}"]\n')
        honest.config.write_text(text)
        attacker = network.right.enter(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        attacker.bind((ATTACKER, 0))
        attacker.settimeout(0.02)
        world = cls(network, victim, honest, attacker)
        for daemon in (victim, honest):
            daemon.launch()
        world.connect()
        return world

    def stop(self) -> None:
        """End everything that was started."""
        self.attacker.close()
        for daemon in (self.victim, self.honest):
            daemon.stop()

    def connect(self) -> None:
        """The bystander's tunnel. The responder installs a moment after the initiator says that it is up."""
        # a victim whose worker had only just begun could not tell it that the earlier one is gone
        self.honest.cli("down", "peer", check=False)
        self.honest.cli("up", "peer/net")
        assert wait_for(self.bystander_works), self.victim.text()

    def bystander_works(self) -> bool:
        """Whether the honest peer's tunnel carries packets, whatever happened to the captured process."""
        # a new worker negotiates anew, and the moment until the peer has the new pair too may cost a packet
        return any(self.network.left.ping(RIGHT_HOST, count=1) for _ in range(3))

    # the attacker

    def attack(self, code: str, *, port: int = IKE_PORT, process: str = "worker", **facts: object) -> object:
        """What the code left in `result`, or the name of the error it met; Killed if the process ended of it."""
        number = next(self.numbers)
        pid = self.pid(process)
        packet = MAGIC + json.dumps({"id": number, "code": code, "facts": facts}).encode()
        self.attacker.sendto(packet, (LEFT, port))
        began = time.monotonic()
        while time.monotonic() - began < ANSWER_SECONDS:
            try:
                answer = json.loads(self.attacker.recv(65535)[len(MAGIC) :])
            except TimeoutError:
                if not _runs(pid):
                    raise Killed(self.end_of(pid), time.monotonic() - began) from None
                continue
            if answer["id"] == number:
                return answer["outcome"]
        raise AssertionError(f"neither an answer nor an end\n{self.victim.text()[-3000:]}")

    def attempt(self, code: str, **more: object) -> object:
        """As `attack`; an end of the process is its outcome, and a new one is waited for."""
        try:
            return self.attack(code, **more)
        except Killed as killed:
            self.recover()
            return killed.how

    def in_keyd(self, code: str, **facts: object) -> object:
        """Have a captured keyd execute code, sent to it by the captured worker. Killed if keyd ends of it."""
        pid, job = self.pid("keyd"), {"code": code, "facts": facts}
        outcome = self.attack("result = me.in_keyd(job)['outcome']", process="keyd", job=job)
        if outcome == "Lost: ":
            raise Killed(self.end_of(pid), 0.0)
        return outcome

    def in_esp(self, code: str, **facts: object) -> object:
        """Have a captured ESP process execute code."""
        return self.attack(code, port=NATT_PORT, process="userspace", **facts)

    # what is seen from outside

    def pid(self, process: str) -> int:
        return self.victim.processes()[process]

    def end_of(self, pid: int) -> str:
        """How the monitor says that the process ended."""
        pattern = re.compile(rf'process-ended process=\S+ pid={pid} how="([^"]*)"')
        assert wait_for(lambda: pattern.search(self.victim.text())), self.victim.text()[-3000:]
        return pattern.findall(self.victim.text())[-1]

    def recover(self) -> None:
        """Wait for the new pair."""

        def ready() -> bool:
            text = self.victim.text()
            if text.rfind("epoch-began") < max(text.rfind("epoch-ends"), text.rfind("process-ended")):
                return False
            status = ask(str(self.victim.run_dir), {"command": "status"}, seconds=10)["status"]
            return len(self.victim.processes()) == 4 and status["worker"] == "running"

        assert wait_for(ready, 30), self.victim.text()[-3000:]

    def log_since(self, mark: int) -> str:
        return self.victim.text()[mark:]

    def mark(self) -> int:
        """The end of the log as it stands."""
        return len(self.victim.text())

    def logged(self, mark: int, pattern: str) -> bool:
        """Whether a line of the log since the mark matches, soon."""
        return wait_for(lambda: re.search(pattern, self.log_since(mark), re.M), 5)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
