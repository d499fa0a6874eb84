"""Locks — held by one, and free when it lets go."""

import os
import subprocess
import sys

from zarrow._storage.lock import FileLock


def test_a_lock_is_free_though_a_copy_of_its_descriptor_is_open(tmp_path):
    """As in a program that is being started just then: it gets all descriptors until it begins."""
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    copy = os.dup(lock._file.fileno())
    try:
        assert not FileLock(tmp_path / "lock").acquire()
        lock.release()
        assert FileLock(tmp_path / "lock").acquire()
    finally:
        os.close(copy)


def test_a_forked_child_that_ends_does_not_take_the_lock_from_its_parent(tmp_path):
    """It closes what it inherited, and no more."""
    code = """if True:
        import os, sys
        from zarrow._storage.lock import FileLock
        lock = FileLock(sys.argv[1])
        assert lock.acquire()
        if not os.fork():
            lock.release()
            os._exit(0)
        assert os.wait()[1] == 0
        assert not FileLock(sys.argv[1]).acquire()
        lock.release()
        assert FileLock(sys.argv[1]).acquire()
    """
    subprocess.run([sys.executable, "-c", code, tmp_path / "lock"], check=True)
