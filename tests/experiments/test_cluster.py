"""Studies on the means of several machines: drivers on one PostgreSQL, and a Ray cluster of two
nodes whose workers and driver are killed. All servers listen on loopback and end with the tests."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import study_driver
from study_driver import alive, behave, finish, names, started, wait_for

from fastfood.experiments.trials.database import sqlite_url
from fastfood.experiments.trials.record import open_record

TRIALS = 2 + 2 * 2 * 2 * 2


@pytest.fixture
def study(tmp_path):
    behave(tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def driver(study):
    with study_driver.drivers(study) as start:
        yield start


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """The URL of an empty PostgreSQL database on loopback."""
    pytest.importorskip("psycopg", reason="needs the package psycopg")
    found = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if not any(found):
        pytest.skip("needs PostgreSQL's initdb (Debian's package postgresql)")
    programs = Path([path for path in found if path][-1]).parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/postgres.XXXXXX"], text=True)[:-1])
    as_user = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            shutil.chown(folder, "postgres")
        except LookupError:
            pytest.skip("as root this needs a user postgres")
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    password, data = secrets.token_hex(8), folder / "data"
    (folder / "password").write_text(password)
    os.chmod(folder / "password", 0o644)

    def run(*command):
        subprocess.run(
            [str(part) for part in command], check=True, cwd=folder, capture_output=True, **as_user
        )

    run(programs / "initdb", "-D", data, "-U", "me", "-A", "scram-sha-256", "--no-sync",
        f"--pwfile={folder / 'password'}")  # fmt: skip
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    try:
        run(programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        yield f"postgresql://me:{password}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop"],
            capture_output=True, cwd=folder, **as_user,
        )  # fmt: skip
        shutil.rmtree(folder)


def test_three_drivers_at_once_on_postgresql_do_everything_once(driver, study, postgres):
    behave(study, threads=2)
    ended = [finish(process) for process in [driver(postgres, 60) for _ in range(3)]]
    assert [code for code, _, _ in ended] == [0] * 3, ended
    assert len(names(study)) == len(set(names(study))) == TRIALS
    entries = open_record(postgres, "made up").states().values()
    assert {entry.state for entry in entries} == {"complete"} and len(entries) == TRIALS
    assert sum(entry.attempts for entry in entries) == TRIALS


def test_a_killed_drivers_trials_are_taken_over_by_another_one(driver, study, postgres):
    behave(study, threads=2, sleep=60, study="another")
    killed = driver(postgres, 1)
    wait_for(lambda: len(started(study)) == 2)
    behave(study, threads=2, study="another")
    other = driver(postgres, 1)
    wait_for(lambda: len(started(study)) == TRIALS)  # all except the trials that are held up
    assert len(set(names(study))) == TRIALS and other.poll() is None
    killed.kill()
    killed.communicate()
    code, out, err = finish(other)
    assert code == 0, err
    entries = open_record(postgres, "another").states().values()
    assert {entry.state for entry in entries} == {"complete"} and len(entries) == TRIALS
    assert (
        len(names(study)) == TRIALS + 2 and sum(entry.attempts for entry in entries) == TRIALS + 2
    )


CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """The address of a Ray cluster of two nodes of one core each, and variables for its drivers."""
    pytest.importorskip("ray", reason="needs the package ray")
    folder = tmp_path_factory.mktemp("ray")
    variables = study_driver.package_without_torch(folder) | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # everything on loopback
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=os.environ | variables, text=True, cwd=folder,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        lines = iter(process.stdout.readline, "")
        address = next(line.split()[1] for line in lines if line.startswith("address "))
        yield address, variables
        process.stdin.close()
        process.wait(30)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def test_a_ray_study_survives_the_death_of_a_worker_and_of_its_driver(driver, study, ray_cluster):
    address, variables = ray_cluster
    url = sqlite_url(study / "trials.db")
    changes = {"ray": address, "workers": None}
    behave(study, sleep=0.3, changes=changes)
    killed = driver(url, 0, **variables)
    wait_for(lambda: len(started(study)) >= 5)
    os.kill(int(started(study)[-1][1]), signal.SIGKILL)
    wait_for(lambda: len(started(study)) >= 9)
    killed.kill()
    out, err = killed.communicate()
    assert " killed" in out, err
    kept = out.count("%")
    assert 0 < kept < TRIALS
    behave(study, fail="said-100-0.2-1", changes=changes)
    code, out, err = finish(driver(url, 0, **variables))
    assert code == 1 and "failed: RuntimeError: this trial fails" in out, err
    record = open_record(url, "made up")
    states = [entry.state for entry in record.states().values()]
    assert states.count("complete") == TRIALS - 1 and states.count("failed") == 1
    # again: the killed worker's trial, and what was running or not written down at the kill
    assert TRIALS < len(names(study)) <= TRIALS + 1 + 4
    assert len(set(names(study))) == TRIALS
    wait_for(lambda: not any(alive(int(pid)) for _, pid in started(study)[:4]), seconds=20)


def test_ray_is_asked_for_and_missed_by_name(tmp_path, monkeypatch):
    from fastfood.experiments.trials import workers

    settings = study_driver.measures(tmp_path, ray="auto")[0].settings
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="^ray: wanted the package ray .*got none"):
        workers.open_workers(settings, "cpu")
