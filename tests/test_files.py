import errno
import os
import subprocess
import sys

import pytest

from rlprune.files import create_held, hold, is_held, remove_temporaries


def test_a_held_file_is_whole_and_nobody_elses(tmp_path):
    path = tmp_path / "config.yaml"
    held = create_held(path, "seed: 0\n")
    assert (path.read_text(), is_held(path), list(tmp_path.iterdir())) == ("seed: 0\n", True, [path])
    with pytest.raises(BlockingIOError):
        hold(path)
    with pytest.raises(FileExistsError):
        create_held(path, "seed: 1\n")
    held.close()
    assert (path.read_text(), is_held(path), list(tmp_path.iterdir())) == ("seed: 0\n", False, [path])
    with hold(path):
        assert is_held(path)


def test_file_systems_without_links_or_locks_will_do(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr("fcntl.flock", refuse)
    path = tmp_path / "config.yaml"
    create_held(path, "seed: 0\n").close()
    with pytest.raises(FileExistsError):
        create_held(path, "seed: 1\n")
    with hold(path):
        assert not is_held(path)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("seed: 0\n", [path])


def test_a_lock_ends_with_its_process_though_a_worker_lives_on(tmp_path):
    path, worker = tmp_path / "config.yaml", tmp_path / "worker"
    code = (
        "import os, pathlib, signal, sys, time\nfrom rlprune.files import create_held, is_held\n"
        "path = pathlib.Path(sys.argv[1])\nheld = create_held(path, '')\nchild = os.fork()\n"
        "if not child:\n    time.sleep(20)\n    os._exit(0)\n"
        "pathlib.Path(sys.argv[2]).write_text(str(child))\ntime.sleep(0.2)\n"
        "assert is_held(path)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", code, path, worker], stderr=subprocess.DEVNULL, check=False)
    try:
        assert died.returncode == -9
        assert not is_held(path)
    finally:
        os.kill(int(worker.read_text()), 9)


def test_temporaries_of_the_killed_go_and_nothing_else(tmp_path):
    (tmp_path / "pruned").mkdir()
    names = (
        ".result-a1b2c3d_.json",
        "pruned/.plan-abcdefgh.json",
        ".step-0001-abcdefgh.safetensors",
        ".git-info",
        ".notes",
        "a-abcdefgh.json",
    )
    for name in names:
        (tmp_path / name).write_text(name)
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".git-info", ".notes", "a-abcdefgh.json", "pruned"]
