"""Preparation that is killed, shared by processes or out of disk space ends at the same bytes."""

import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from fitv2.data.decode import decode
from fitv2.data.formats import UnreadableImage
from fitv2.data.latent_shards import LatentShards
from image_files import saved
from image_folders import bad_files, contents, good_files, noise, write_files
from tiny import command_line, exit_code, process, run_together, tiny_autoencoder

SETTINGS = ["--max-tokens", "16", "--shard-size", "5", "--workers", "2"]


def finish(command: list[str], out: Path, expected: dict[str, bytes]) -> None:
    """Runs the command to its end, which must be the expected bytes."""
    assert exit_code(command_line, "prepare", *command, "--out", str(out)) == 0
    assert contents(out) == expected


def killed_at(operation: int, out: str, *arguments: str) -> None:
    """`fitv2 prepare ARGUMENTS` that dies right before its n-th operation on files of `out`, for `process`."""
    left = [operation]

    def count(event, details):
        if event in ("os.rename", "os.remove", "os.mkdir") or (event == "open" and out in str(details[0])):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    command_line("prepare", *arguments, "--out", out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[list[str], dict[str, bytes]]:
    """A command without --out, and what it makes when nobody interrupts it: moments, duplicates and bad files."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_autoencoder().save_pretrained(folder / "vae")
    root = write_files(folder / "images", good_files(30) | {f"cat/{n}": c for n, (c, _) in bad_files().items()})
    for i in range(0, 30, 6):
        shutil.copy(sorted((root / "cat").glob("*.png"))[i % 4], root / "dog" / f"copy{i}.png")
    command = [str(root), *SETTINGS, "--autoencoder", str(folder / "vae")]
    assert exit_code(command_line, "prepare", *command, "--out", str(folder / "out")) == 0
    return command, contents(folder / "out")


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_at_the_same_bytes(tmp_path, whole):
    command, expected = whole
    moments, kills = random.Random(0), 0
    out = tmp_path / "out"
    for _ in range(5):
        shards = len(list(out.glob("shards/*.jsonl")))
        child = process(command_line, "prepare", *command, "--out", str(out))
        while child.is_alive() and len(list(out.glob("shards/*.jsonl"))) <= shards:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
    assert kills >= 3
    finish(command, out, expected)


@pytest.mark.slow
def test_killed_between_two_file_operations_it_ends_at_the_same_bytes(tmp_path, whole):
    command, expected = whole
    moments, kills = random.Random(1), 0
    for operation in moments.sample(range(1, 60), 7):
        code = exit_code(killed_at, operation, str(tmp_path / "out"), *command)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
    assert kills >= 4
    finish(command, tmp_path / "out", expected)


@pytest.mark.slow
def test_two_processes_make_the_same_bytes_as_one(tmp_path, whole):
    command, expected = whole
    run_together(2, command_line, "prepare", *command, "--out", str(tmp_path / "out"))
    assert contents(tmp_path / "out") == expected


def full_disk(limit: int, outputs: Path, *arguments: str) -> None:
    """`fitv2 ARGUMENTS` that can write no file beyond a limit of bytes, for `process`."""
    os.dup2(os.open(outputs, os.O_WRONLY | os.O_CREAT), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    command_line(*arguments)


def test_a_full_disk_is_one_sentence_and_costs_nothing(tmp_path):
    root, out = write_files(tmp_path / "images", good_files(12)), tmp_path / "out"
    command = ["prepare", str(root), "--out", str(out), *SETTINGS, "--autoencoder", "pixels", "--patch-size", "4"]
    assert exit_code(command_line, *command) == 0
    before = contents(out)
    write_files(root, {f"cat/00{i}a.png": saved(noise(60, 60, 50 + i)) for i in range(8)})
    assert exit_code(full_disk, 2000, tmp_path / "stderr", *command) == 1
    message = (tmp_path / "stderr").read_text()
    assert "Traceback" not in message, message
    assert "File too large" in message
    after = contents(out)
    assert {name: after[name] for name in before} == before
    assert not any(name.startswith(".") for name in after.keys() - {".lock"})
    assert exit_code(command_line, *command) == 0 and len((out / "index.jsonl").read_bytes().splitlines()) == 20


def test_what_was_skipped_is_tried_again(fitv2, tmp_path, monkeypatch):
    """The shards of the finished set stay as they are until the one with more images is finished."""
    write_files(tmp_path / "images", good_files(12) | {"cat/bad.png": b"x"})
    command = ["prepare", "images", *SETTINGS, "--autoencoder", "pixels", "--patch-size", "4", "--json", "--out"]
    webp, shards = b"WEBP", tmp_path / "out/shards"

    def without_a_package(file, mode):
        if webp in file.getvalue()[:16]:
            raise UnreadableImage("it needs a package")
        return decode(file, mode)

    monkeypatch.setattr("fitv2.prepare.encode.decode", without_a_package)
    report = fitv2(*command, "out").json
    assert (report["images"], report["encoded"], report["skipped"]) == (8, 8, 5)
    before = contents(shards)
    report = fitv2(*command, "out").json
    assert (report["encoded"], report["reused"]) == (0, 0) and contents(shards) == before
    monkeypatch.setattr("fitv2.prepare.encode.decode", decode)
    with monkeypatch.context() as full:
        full.setattr("fitv2.prepare.run.write_files", fail_to_write)
        assert "No space left" in fitv2(*command, "out").sentence
    assert before.items() <= contents(shards).items() and len(LatentShards(tmp_path / "out")) == 8
    report = fitv2(*command, "out").json
    assert (report["images"], report["skipped"]) == (12, 1) and len(LatentShards(tmp_path / "out")) == 12
    for out in ("out", "fresh"):
        assert fitv2(*command, out).json["images"] == 12
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def fail_to_write(*arguments) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_for_the_last_file_costs_nothing(fitv2, tmp_path, monkeypatch):
    write_files(tmp_path / "images", good_files(6))
    command = ["prepare", "images", "--out", "out", *SETTINGS, "--autoencoder", "pixels", "--patch-size", "4"]
    fitv2(*command)
    write_files(tmp_path / "images", {"cat/new.png": saved(noise(20, 20))})
    write_text = Path.write_text

    def full(path, *arguments, **options):
        return fail_to_write() if "dataset.json" in path.name else write_text(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        assert "No space left" in fitv2(*command).sentence
    assert len(LatentShards(tmp_path / "out")) == 6
    fitv2(*command)
    assert len(LatentShards(tmp_path / "out")) == 7


def test_a_folder_of_another_program_among_the_shards_stays(fitv2, tmp_path):
    write_files(tmp_path / "images", good_files(3))
    command = ["prepare", "images", "--out", "out", *SETTINGS, "--autoencoder", "pixels", "--patch-size", "4"]
    fitv2(*command)
    (tmp_path / "out/shards/.ipynb_checkpoints").mkdir()
    fitv2(*command).ok()
    assert (tmp_path / "out/shards/.ipynb_checkpoints").is_dir()
