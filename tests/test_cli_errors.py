"""How the command line ends: a sentence for users' mistakes, a traceback for faults of ours, nothing for Ctrl-C."""

import os
import signal
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from fitv2.errors import UserError
from tiny import command_line

SAMPLE = ("sample", "--labels", "bag", "--size", "8x8", "--steps", "1")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`fitv2 ARGUMENTS` in the test's folder: (exit code or sentence, what stands on stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple:
        monkeypatch.setattr(sys, "argv", sys.argv)
        with pytest.raises(SystemExit) as end:
            command_line(*arguments)
        return end.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def sample(run, monkeypatch):
    """`fitv2 sample` whose model fails with an error."""

    def sample(error: BaseException, *options: str) -> tuple:
        def fail(*_) -> None:
            raise error

        monkeypatch.setattr("fitv2.sampling.generate.generate", fail)
        return run(*SAMPLE, *options)

    return sample


@pytest.mark.parametrize("error", [UserError("too small"), OSError(28, "No space left on device")])
def test_a_mistake_is_a_sentence_and_with_debug_its_traceback_too(sample, error):
    told, shown = sample(error)
    assert told == f"fitv2: {error}" and "Traceback" not in shown
    told, shown = sample(error, "--debug")
    assert told == f"fitv2: {error}" and "Traceback" in shown


def test_debug_shows_what_a_sentence_leaves_out(run, tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").touch()
    told, shown = run("--debug", "sample", "--model", ".")
    assert "damaged" in told and "JSONDecodeError: Expecting" in shown


@pytest.mark.parametrize("error", [ValueError("shapes (3,) (4,)"), RuntimeError("expected a"), KeyError("b")])
def test_a_fault_of_ours_keeps_its_traceback_and_says_how_to_report_it(sample, error):
    told, shown = sample(error)
    assert "Traceback" in shown and str(error) in shown
    assert version("fitv2") in told and "report" in told and "fitv2 sample --labels bag" in told


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")],
)
def test_too_little_memory_is_a_sentence(sample, error):
    told, shown = sample(error)
    assert "not enough memory" in told and "Traceback" not in shown


def test_ctrl_c_is_said_and_has_its_own_exit_code(sample):
    code, shown = sample(KeyboardInterrupt())
    assert code == 130 and "interrupted" in shown and "Traceback" not in shown


def test_a_signal_in_the_middle_of_loading():
    child = subprocess.Popen([sys.executable, "-m", "fitv2.cli", *SAMPLE], stderr=subprocess.PIPE, text=True)
    while "torch" not in Path(f"/proc/{child.pid}/maps").read_text():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, shown = child.communicate()
    assert child.returncode == 130 and "Traceback" not in shown


def test_a_reader_that_has_gone_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fitv2.cli", "--help"]
    child = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    assert child.stderr == ""


@pytest.mark.parametrize(("options", "shown"), [([], False), (["--debug"], True)])
def test_warnings_of_libraries_are_shown_with_debug_only(run, monkeypatch, options, shown):
    def warn(*_) -> None:
        warnings.warn("about pixels", UserWarning, stacklevel=1)
        raise UserError("end")

    monkeypatch.setattr("fitv2.sampling.generate.generate", warn)
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(*SAMPLE, *options)
    assert any("about pixels" in str(warning.message) for warning in caught) == shown
