"""One process at a time in a folder."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from fitv2.errors import UserError
from fitv2.system.locks import locked

HOLD = "import sys; from pathlib import Path; from fitv2.system.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1]), 'a training'): print('held', flush=True); sys.stdin.read()"


def test_a_folder_in_use_is_refused_until_its_process_is_gone_even_by_a_kill(tmp_path):
    folder = tmp_path / "new" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use"), locked(folder, "a training"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(folder, "a training"):
        pass


def test_waiting_for_a_folder(tmp_path):
    told, order = threading.Event(), []

    def second():
        with locked(tmp_path, "a study", wait=told.set):
            order.append("second")

    with locked(tmp_path, "a study"):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
