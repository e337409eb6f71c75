"""The command line as a whole: fast help, names of options, and what is loaded."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main

from fitv2.cli import app, progress
from fitv2.cli.base_command import METAVARS, RENAMED, current
from fitv2.model.config import EXTRAPOLATIONS
from fitv2.sampling.solver_names import SOLVER_NAMES

FITV2 = str(Path(sys.executable).with_name("fitv2"))


def loaded_by(*arguments: str) -> set[str]:
    """The modules that `fitv2 ARGUMENTS` has loaded at its end."""
    code = (
        f"import sys; from fitv2.cli import main; sys.argv = {['fitv2', *arguments]!r}\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(shown.splitlines()[-1].split())


def test_the_version_is_that_of_the_package():
    shown = subprocess.run([FITV2, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown == f"fitv2 {version('fitv2')}\n"


def test_images_are_counted_in_a_line_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    with progress.image_progress("making", 8) as done:
        done(8)
    assert capsys.readouterr().err == "", "it was finished soon"
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    for shown in (True, False):
        with progress.image_progress("making", 8, shown) as done:
            for count in (0, 2, 6):
                done(count)
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(",")[0] for line in lines] == ["making: 2 of 8"] * shown


def test_help_is_not_much_slower_than_the_library_that_prints_it():
    """In processor time, turn by turn: half a second or less on a fast machine, more on a slow or busy one."""

    def spent(*words: str) -> tuple[float, str]:
        before = os.times()
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system, shown

    ratios = []
    for _ in range(3):
        library, _ = spent(sys.executable, "-c", "import typer.rich_utils")
        ours, shown = spent(FITV2, "--help")
        ratios.append(ours / library)
        assert "sample" in shown and "train" in shown
    assert min(ratios) < 3


@pytest.mark.parametrize("command", ["train", "profile", "evaluate"])
def test_help_loads_nothing_heavy(command):
    loaded = {name.partition(".")[0] for name in loaded_by(command, "--help")}
    assert "fitv2" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "accelerate", "safetensors", "torchdiffeq", "matplotlib"}


def test_sampling_does_not_load_what_is_for_training_or_compiling(tmp_path):
    """torch's compiler alone takes a second and a half."""
    loaded = loaded_by("sample", "--labels", "bag", "--steps", "1", "--out", str(tmp_path))
    assert "fitv2.sampling.generate" in loaded
    assert not loaded & {"torch._dynamo", "accelerate", "diffusers", "matplotlib"}


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("--solver", SOLVER_NAMES),
        ("--extrapolation", EXTRAPOLATIONS),
        ("--attention-scale", ["none", "pro1", "paper"]),
        ("--precision", ["fp32", "bf16"]),
    ],
)
def test_names_of_options_are_those_that_exist(fitv2, option, names):
    wrong = fitv2("sample", option, "eular")
    told = " ".join(wrong.err.replace("│", " ").split())
    assert wrong.code == 2 and all(f"'{name}'" in told for name in names)
    assert ("did you mean euler? Choose from 'euler'" in told) == (option == "--solver")


@pytest.mark.parametrize(
    ("option", "start", "names"),
    [
        ("solver", "eul", ["euler", "euler-maruyama"]),
        ("extrapolation", "vision-p", ["vision-pi", "vision-parts"]),
        ("precision", "b", ["bf16"]),
    ],
)
def test_the_completion_knows_the_names_of_options(option, start, names):
    code = "import sys; from fitv2.cli import main; sys.argv = ['fitv2']; main()"
    asked = {"COMP_WORDS": f"fitv2 sample --{option} {start}", "COMP_CWORD": "3", "_FITV2_COMPLETE": "complete_bash"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked)
    assert shown.stdout.split() == names, shown.stderr


def test_a_kind_of_value_has_one_word_in_all_commands():
    commands = typer.main.get_command(app).commands.values()
    parameters = [parameter for command in commands for parameter in command.params if not parameter.hidden]
    words: dict[str, set[str]] = {}
    for option in (parameter for parameter in parameters if parameter.opts[0].startswith("-")):
        words.setdefault(option.name, set()).add(option.metavar)
        # Without a word, typer shows the type, such as <list[str]>.
        assert option.metavar or not option.multiple, option.name
    assert {name: words for name, words in words.items() if len(words) > 1} == {"labels": {None, "NAME,..."}}
    assert set(METAVARS) <= {parameter.name for parameter in parameters}


def test_a_letter_stands_for_one_option_in_all_commands():
    meanings: dict[str, set[str]] = {}
    commands = typer.main.get_command(app).commands
    for option in (p for command in commands.values() for p in command.params if not p.hidden):
        for letter in (name for name in option.opts if name.startswith("-") and not name.startswith("--")):
            meanings.setdefault(letter, set()).update(name for name in option.opts if name.startswith("--"))
    assert {"-n", "-s", "-r", "-m", "-o"} <= meanings.keys()
    assert {letter: names for letter, names in meanings.items() if len(names) > 1} == {}
    for command, older in RENAMED.items():
        options = {name for option in commands[command].params for name in option.opts}
        assert older.keys().isdisjoint(options) and options.issuperset(older.values())


@pytest.mark.parametrize(
    ("command", "words", "today", "notes"),
    [
        ("train", "-r a -n -smodel.width=8 -s a=-s", "--recipe a --dry-run --set=model.width=8 --set a=-s", 4),
        ("study", "mixed -n 3", "mixed --seeds 3", 1),
        ("inspect", "a --budget 9", "a --max-tokens-per-batch 9", 1),
        ("profile", "-m -- -m", "--measure -- -m", 1),
        ("sample", "-n 3 --precision float32", "-n 3 --precision fp32", 1),
        ("sample", "--num=3 --full-every 2 --num-images 4", "--per-class=3 --cache-interval 2 --num-images 4", 2),
        ("evaluate", "--number 3 --num=4", "--num-images 3 --num-images=4", 2),
        ("profile", "--precision=no --precision bf16", "--precision=fp32 --precision bf16", 1),
    ],
)
def test_what_was_renamed_still_works_with_a_note(capsys, command, words, today, notes):
    assert [*current(command, words.split())] == today.split()
    assert capsys.readouterr().err.count("is now called") == notes


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ([""], ""),
        (["--out", "x", "--model", ""], " after --model"),
        (["--autoencoder="], " after --autoencoder"),
        (["--prompt", "", "--negative-prompt=", "-p", "", "--out", ""], " after --out"),
    ],
)
def test_an_empty_word_is_refused_except_for_a_prompt(words, where):
    """It would be the built-in model, the model's own autoencoder or the current folder."""
    command = typer.main.get_command(app).commands["sample"]
    with pytest.raises(typer.BadParameter, match=f"^a word{where} is empty"):
        command.make_context("sample", words)


def test_a_command_takes_a_former_short_option(fitv2):
    shown = fitv2("train", "-r", "fashion-tiny", "-n", "-s", "training.steps=700", "--json").ok()
    assert '"steps": 700' in shown.out and "--recipe" in shown.err
