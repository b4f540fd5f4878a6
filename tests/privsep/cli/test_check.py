"""`check`, `run` and `selftest`: what they say before any process of ours starts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ETC = Path(__file__).parents[3] / "etc"
DONE, FAILED, USAGE, INVALID = range(4)


@pytest.fixture
def config(tmp_path):
    """The shipped samples, as an operator would install them."""
    for name, mode in (("gateway.toml", 0o644), ("secrets.toml", 0o600)):
        shutil.copy(ETC / name, tmp_path / name)
        (tmp_path / name).chmod(mode)
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
def test_check_json_is_one_document(cli, config):
    done = cli("check", "--config", config, "--json")
    assert done.returncode == DONE
    document = json.loads(done.stdout)
    assert document.pop("dataplane") is not None
    assert document == {"schema_version": 1, "problems": []}


def asked(config, **changes):
    """What this machine would do with a changed configuration, by the command behind `check`."""
    text = config.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    words = [sys.executable, "-I", "-B", "-m", "monitor.check", "--config", str(config)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.root
@needs_root
def test_check_says_which_data_plane_this_machine_would_use_and_what_the_kernel_lacks(config):
    told = asked(config)
    assert told.startswith(("kernel, because the kernel carries", "userspace, because the kernel"))
    assert told.startswith("kernel") or "CONFIG_" in told
    insists = asked(config, **{'dataplane = "auto"': 'dataplane = "kernel"'})
    assert insists == told if told.startswith("kernel") else insists.startswith("none, because dataplane = ")
    assert asked(config, **{'"kernel"': '"userspace"'}) == "userspace, because the configuration says so"


@pytest.mark.root
@needs_root
def test_check_without_the_privilege_says_that_it_cannot_tell(cli, config):
    words = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    words += [sys.executable, "-I", "-B", "-m", "monitor.check", "--config", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "cannot be told, because only root with CAP_NET_ADMIN may ask the kernel\n"


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
