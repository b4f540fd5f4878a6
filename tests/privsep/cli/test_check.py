"""`check`, `run` and `selftest`: what they say before any process of ours starts."""

import json
import os
import shutil
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
    assert (done.returncode, done.stdout) == (DONE, f"{config}: 1 connection, 1 child, no problem found\n")
    assert cli("check", "--config", config, "--secrets", config.with_name("secrets.toml")).returncode == DONE


@pytest.mark.root
@needs_root
def test_check_json_is_one_document(cli, config):
    done = cli("check", "--config", config, "--json")
    assert done.returncode == DONE
    assert json.loads(done.stdout) == {"schema_version": 1, "problems": []}


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
