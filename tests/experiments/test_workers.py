"""Tests of the processes that trials run in: the environment that they report, and that ending them
ends no other process."""

import multiprocessing
import sys
import time
from types import SimpleNamespace

import pytest

from fastfood.experiments.training import environment
from fastfood.experiments.trials.workers import Processes

PROPRIETARY = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC
GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)
"""
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
LARGE = SimpleNamespace(name="NVIDIA H200", total_memory=150_000_000_000)
SMALL = SimpleNamespace(name="NVIDIA A10", total_memory=24 << 30)


def fake_torch(*gpus, used=True):
    cuda = SimpleNamespace(
        is_initialized=lambda: used,
        device_count=lambda: len(gpus),
        get_device_properties=lambda index: gpus[index],
    )
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="12.9"))


@pytest.mark.parametrize(("text", "driver"), [(PROPRIETARY, "535.129.03"), (OPEN, "550.54.15")])
def test_each_kind_of_visible_gpu_is_named_once(monkeypatch, tmp_path, text, driver):
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(environment, "DRIVER", tmp_path / "version")
    monkeypatch.setitem(sys.modules, "torch", fake_torch(LARGE, SMALL, LARGE))
    found = environment.environment.__wrapped__()["hardware"]["gpus"]
    assert found == [
        {"name": "NVIDIA H200", "count": 2, "memory_gib": 139.7, "driver": driver, "cuda": "12.9"},
        {"name": "NVIDIA A10", "count": 1, "memory_gib": 24.0, "driver": driver, "cuda": "12.9"},
    ]


@pytest.mark.parametrize("torch", [None, fake_torch(), fake_torch(LARGE, used=False)])
def test_a_process_that_uses_no_gpu_names_none_and_does_not_look(monkeypatch, torch):
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert "gpus" not in environment.environment.__wrapped__()["hardware"]


def test_a_driver_that_does_not_say_its_version_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "DRIVER", tmp_path / "version")
    assert environment._driver() is None
    (tmp_path / "version").write_text("something else")
    assert environment._driver() is None


def sleep(settings, trial, floor):
    """Replaces a training that takes long."""
    time.sleep(60)


def test_stopped_workers_end_and_other_children_of_the_process_do_not():
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    other.start()
    workers = Processes(2, "cpu")
    try:
        futures = [workers.submit(sleep, None, None, None) for _ in range(2)]
        mine = set(multiprocessing.active_children()) - {other}
        workers.close(stop=True)
        assert len(mine) == 2 and not any(process.is_alive() for process in mine)
        other.join(0.5)  # as long as a signal may take
        assert other.is_alive() and all(future.done() for future in futures)
    finally:
        other.kill()
        other.join()
