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

from commands import Result
from fitv2.errors import UserError, loading

SAMPLE = ("sample", "--labels", "bag", "--size", "8x8", "--steps", "1")
FITV2 = [sys.executable, "-m", "fitv2.cli"]


@pytest.fixture
def sample(fitv2, monkeypatch):
    """Runs `fitv2 sample OPTIONS` whose model calls `fail`."""

    def run(fail, *options: str) -> Result:
        monkeypatch.setattr("fitv2.images.make_images.generate", fail)
        return fitv2(*SAMPLE, *options)

    return run


def raises(error: BaseException):
    def fail(*_) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [UserError("too small"), OSError(28, "No space left on device")])
def test_a_mistake_is_a_sentence_and_with_debug_its_traceback_too(sample, error):
    assert sample(raises(error)).sentence == f"fitv2: {error}\n"
    shown = sample(raises(error), "--debug").err
    assert "Traceback" in shown and shown.endswith(f"\nfitv2: {error}\n")


def test_debug_shows_what_a_sentence_leaves_out(sample, tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").touch()
    shown = sample(raises(UserError("not reached")), "--debug", "--model", str(tmp_path)).err
    assert "damaged" in shown.splitlines()[-1] and "JSONDecodeError: Expecting" in shown


@pytest.mark.parametrize("error", [ValueError("shapes (3,) (4,)"), RuntimeError("expected a"), KeyError("b")])
def test_a_fault_of_ours_keeps_its_traceback_and_says_how_to_report_it(sample, error):
    result = sample(raises(error))
    *shown, told = result.err.splitlines()
    assert result.code == 1 and any("Traceback" in line for line in shown) and str(error) in result.err
    assert version("fitv2") in told and "report" in told and "fitv2 sample --labels bag" in told


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")]
)
def test_too_little_memory_is_a_sentence(sample, error):
    assert "not enough memory" in sample(raises(error)).sentence


def test_too_little_memory_for_a_model_does_not_say_that_it_is_damaged():
    with pytest.raises(RuntimeError, match="allocate"), loading("the autoencoder big"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(UserError, match="autoencoder old"), loading("the autoencoder old"):
        raise RuntimeError("size mismatch")


def test_ctrl_c_has_its_own_exit_code(sample):
    result = sample(raises(KeyboardInterrupt()))
    assert result.code == 130 and "interrupted" in result.err and "Traceback" not in result.err


def test_a_signal_in_the_middle_of_loading():
    child = subprocess.Popen([*FITV2, *SAMPLE], stderr=subprocess.PIPE, text=True)
    while "torch" not in Path(f"/proc/{child.pid}/maps").read_text():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, shown = child.communicate()
    assert child.returncode == 130 and "Traceback" not in shown


def test_a_reader_that_has_gone_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.run([*FITV2, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    assert child.stderr == ""


def test_an_output_that_was_never_open_is_no_error():
    child = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *FITV2, "--version"], stderr=subprocess.PIPE, text=True)
    assert (child.returncode, child.stderr) == (0, "")


@pytest.mark.parametrize(("options", "shown"), [([], False), (["--debug"], True)])
def test_warnings_of_libraries_are_shown_with_debug_only(sample, monkeypatch, options, shown):
    def warn(*_) -> None:
        warnings.warn("about pixels", UserWarning, stacklevel=1)
        raise UserError("end")

    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample(warn, *options)
    assert any("about pixels" in str(warning.message) for warning in caught) == shown
