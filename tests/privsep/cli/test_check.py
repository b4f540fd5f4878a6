"""`check`, `run` and `selftest`: what they say before any process of ours starts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ETC = Path(__file__).parents[3] / "etc"
README = ETC.parent / "README.md"
DONE, FAILED, USAGE, INVALID = range(4)
SAMPLE, SECRET = "REPLACE ME by the output of: privsep-ike genpsk", "f9Kc0ZrY3mUq7WbL1xTn5Hd8JvGs2AeP"


@pytest.fixture
def config(tmp_path):
    """The shipped samples, as an operator would install them, with a secret of his own."""
    for name, mode in (("gateway.toml", 0o644), ("secrets.toml", 0o600)):
        shutil.copy(ETC / name, tmp_path / name)
        (tmp_path / name).chmod(mode)
    change(tmp_path / "secrets.toml", {SAMPLE: SECRET})
    return tmp_path / "gateway.toml"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who must own secrets.toml")


@pytest.mark.root
@needs_root
def test_the_shipped_samples_pass(cli, config):
    done = cli("check", "--config", config)
    first, second = done.stdout.splitlines()
    assert (done.returncode, first) == (DONE, f"{config}: 1 connection, 1 child, no problem found")
    assert second.startswith("dataplane: ")
    assert cli("check", "--config", config, "--secrets", config.with_name("secrets.toml")).returncode == DONE


@pytest.mark.root
@needs_root
def test_the_readmes_first_steps_work_as_they_are_written(cli, tmp_path):
    """With the sample's secret `check` says what to do; with that of `genpsk` it finds no problem."""
    text = README.read_text().partition("\n## Run it\n")[2].partition("\n## ")[0]
    text = text.partition("\n    pip install ")[0]
    steps = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    installs = [
        step.replace("/etc/privsep-ike", f"{tmp_path}/privsep-ike") for step in steps if step.startswith("install ")
    ]
    assert [step.partition("#")[0].split()[1] for step in steps[len(installs) :]] == [
        *("genpsk", "check", "run", "up", "status", "audit")
    ]
    for step in installs:
        subprocess.run(step.split(), check=True, cwd=README.parent)
    config, secrets = tmp_path / "privsep-ike" / "gateway.toml", tmp_path / "privsep-ike" / "secrets.toml"
    done = cli("check", "--config", config)
    assert (done.returncode, done.stderr.count("\n")) == (INVALID, 1)
    assert done.stderr.endswith("one of your own would be right: privsep-ike genpsk\n")
    change(secrets, {SAMPLE: cli("genpsk").stdout.removesuffix("\n")})
    done = cli("check", "--config", config)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        DONE,
        f"{config}: 1 connection, 1 child, no problem found",
    )


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("name", ["gateway.toml", "secrets.toml"])
def test_what_others_could_replace_is_refused_with_the_mode_that_is_right(cli, config, name):
    config.with_name(name).chmod(0o666)
    done = cli("check", "--config", config)
    assert done.returncode == INVALID
    assert f"{config.with_name(name)}:1: has mode 0666" in done.stderr
    config.with_name(name).chmod(0o600)
    config.parent.chmod(0o777)
    done = cli("check", "--config", config)
    assert done.returncode == INVALID
    assert f"is in {config.parent} of mode 0777, where others can replace it; 0755 would be right" in done.stderr


@pytest.mark.root
@needs_root
def test_check_json_is_one_document(cli, config):
    change(config, {'local     = "192.0.2.1"': 'local     = "127.0.0.1"'})
    done = cli("check", "--config", config, "--json")
    assert done.returncode == DONE
    document = json.loads(done.stdout)
    assert document.pop("dataplane") is not None
    assert document == {"schema_version": 1, "problems": [], "warnings": [], "obstacles": []}


def change(config, changes):
    """The configuration with other words in it."""
    text = config.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)


def asked(config, **changes):
    """What this machine would do with a changed configuration, by the command behind `check`."""
    change(config, changes)
    words = [sys.executable, "-I", "-B", "-m", "monitor.check", "--config", str(config)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.root
@needs_root
def test_check_says_which_data_plane_this_machine_would_use_and_what_the_kernel_lacks(config):
    told = asked(config)["dataplane"]
    assert told.startswith(("kernel, because the kernel carries", "userspace, because the kernel"))
    assert told.startswith("kernel") or "CONFIG_" in told
    insists = asked(config, **{'dataplane = "auto"': 'dataplane = "kernel"'})["dataplane"]
    assert insists == told if told.startswith("kernel") else insists.startswith("none, because dataplane = ")
    assert asked(config, **{'"kernel"': '"userspace"'})["dataplane"] == "userspace, because the configuration says so"


@pytest.mark.root
@needs_root
def test_check_without_the_privilege_says_that_it_cannot_tell(cli, config):
    words = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    words += [sys.executable, "-I", "-B", "-m", "monitor.check", "--config", str(config)]
    machine = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert machine["dataplane"] == "cannot be told, because only root with CAP_NET_ADMIN may ask the kernel"
    assert machine["obstacles"] == ["only root with CAP_NET_ADMIN may ask the kernel"]


@pytest.mark.root
@needs_root
def test_check_strict_fails_where_run_on_this_machine_does(cli, config):
    checked = {options: cli("check", "--config", config, *options) for options in ((), ("--strict",))}
    assert [done.returncode for done in checked.values()] == [DONE, DONE]
    change(config, {"[gateway]": '[gateway]\nlisten = ["203.0.113.77"]', '"192.0.2.1"': '"203.0.113.77"'})
    lenient, strict = cli("check", "--config", config), cli("check", "--config", config, "--strict")
    assert (lenient.returncode, strict.returncode) == (DONE, FAILED)
    told = "`run` would fail on this machine: no interface has 203.0.113.77; `gateway.listen` must name addresses"
    assert told in lenient.stderr
    assert strict.stderr == lenient.stderr
    ran = cli("run", "--config", config, "--run-dir", config.parent / "run")
    assert (ran.returncode, "no interface has this address" in ran.stderr) == (FAILED, True)
    document = json.loads(cli("check", "--config", config, "--strict", "--json").stdout)
    assert [text.partition(";")[0] for text in document["obstacles"]] == ["no interface has 203.0.113.77"]


@pytest.mark.root
@needs_root
def test_check_strict_fails_on_a_kernel_that_cannot_carry_what_it_must(cli, config):
    if cli("check", "--config", config).stdout.splitlines()[1].startswith("dataplane: kernel"):
        pytest.skip("this kernel carries ESP")
    change(config, {'dataplane = "auto"': 'dataplane = "kernel"'})
    lenient, strict = cli("check", "--config", config), cli("check", "--config", config, "--strict")
    assert (lenient.returncode, strict.returncode) == (DONE, FAILED)
    (told,) = (line for line in strict.stderr.splitlines() if line.startswith("`run` would fail"))
    assert "CONFIG_INET_ESP" in told
    change(config, {'"kernel"': '"userspace"'})
    assert cli("check", "--config", config, "--strict").returncode == DONE


@pytest.mark.root
@needs_root
def test_trying_what_run_needs_leaves_the_machine_as_it_was(cli, config):
    """The TUN device, the firewall table and the network namespace of a trial go with it."""
    change(config, {'dataplane = "auto"': 'dataplane = "userspace"\negress = "restricted"'})
    before = [os.listdir("/sys/class/net"), os.readlink("/proc/self/ns/net")]
    assert cli("check", "--config", config, "--strict").returncode == DONE
    assert [os.listdir("/sys/class/net"), os.readlink("/proc/self/ns/net")] == before


@pytest.mark.root
@needs_root
def test_what_is_only_doubtful_is_a_warning_for_people_and_for_programs(cli, config):
    """A `local` that no interface has yet may come; a short secret may be all that the peer takes."""
    secrets = config.with_name("secrets.toml")
    secrets.write_text('[[psk]]\nids = ["gw1.example.org"]\nsecret = "aB3$short"\n')
    done = cli("check", "--config", config)
    line = next(number for number, text in enumerate(config.read_text().splitlines(), 1) if text.startswith("local "))
    assert (done.returncode, [told.partition(": ")[0] for told in done.stderr.splitlines()]) == (
        DONE,
        [f"{secrets}:3", f"{config}:{line}"],
    )
    assert "no interface of this machine has 192.0.2.1" in done.stderr
    document = json.loads(cli("check", "--config", config, "--json").stdout)
    assert [(each["file"], each["line"]) for each in document["warnings"]] == [(str(secrets), 3), (str(config), line)]


def test_every_problem_of_the_configuration_is_a_line(cli, config):
    lines = config.read_text().replace('"trap"', '"tarp"').replace('"psk"', '"kps"')
    config.write_text(lines)
    done = cli("check", "--config", config)
    told = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(told)) == (INVALID, "", 2)
    numbers = [number for number, line in enumerate(lines.splitlines(), 1) if "kps" in line or "tarp" in line]
    assert [line.partition(": ")[0] for line in told] == [f"{config}:{number}" for number in numbers]
    assert told[1].endswith("'tarp' is not known; did you mean 'trap'?")
    document = json.loads(cli("check", "--config", config, "--json").stdout)
    assert [(problem["file"], problem["line"]) for problem in document["problems"]] == [
        (str(config), number) for number in numbers
    ]


@pytest.mark.root
@needs_root
def test_problems_of_the_secrets_are_told_with_their_line_and_without_the_secret(cli, config):
    secrets = config.with_name("secrets.toml")
    secrets.write_text('[[psk]]\nids = ["gw1.example.org"]\nsecret = "hex:hunter2"\nsercet = "hunter2"\n')
    done = cli("check", "--config", config)
    assert done.returncode == INVALID
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [f"{secrets}:3", f"{secrets}:4"]
    assert "hunter2" not in done.stderr
    problems = json.loads(cli("check", "--config", config, "--json").stdout)["problems"]
    assert [(problem["file"], problem["line"]) for problem in problems] == [(str(secrets), 3), (str(secrets), 4)]


@pytest.mark.root
@needs_root
def test_secrets_that_others_could_read_are_refused(cli, config):
    secrets = config.with_name("secrets.toml")
    secrets.chmod(0o640)
    done = cli("check", "--config", config)
    assert done.returncode == INVALID
    assert done.stderr.startswith(f"{secrets}:1: has mode 0640; 0600 or stricter would be right")


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_configuration_that_is_not_there_is_invalid(cli, tmp_path, command):
    done = cli(command, "--config", tmp_path / "none.toml")
    assert done.returncode == INVALID
    assert done.stderr.startswith(f"{tmp_path}/none.toml:1: cannot be read")


@pytest.mark.parametrize("command", ["check", "run"])
def test_secrets_that_are_not_there_are_invalid(cli, config, command):
    config.with_name("secrets.toml").unlink()
    done = cli(command, "--config", config)
    assert done.returncode == INVALID
    assert done.stderr.startswith(f"{config.with_name('secrets.toml')}:1: cannot be read")


@pytest.mark.root
@needs_root
def test_run_refuses_an_invalid_configuration_as_check_does(cli, config):
    config.write_text(config.read_text().replace('"trap"', '"tarp"'))
    checked, ran = cli("check", "--config", config), cli("run", "--config", config, "--run-dir", config.parent / "run")
    assert ran.returncode == INVALID
    assert ran.stderr == checked.stderr
    assert not (config.parent / "run").exists()


def test_the_current_directory_and_environment_cannot_replace_our_modules(cli, config, tmp_path, monkeypatch):
    for package in ("keyd", "monitor"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit(99)")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    (tmp_path / "sitecustomize.py").write_text("")
    done = cli("selftest", PYTHONPATH=str(tmp_path))
    assert done.returncode == DONE
    assert done.stdout.splitlines()[-1].endswith(" passed, 0 failed")


def test_selftest_fails_on_a_wrong_answer(cli, tmp_path):
    cavs = tmp_path / "cavs.txt"
    cavs.write_text("not a CAVS file\n")
    assert cli("selftest", "--cavs", cavs).returncode == FAILED
