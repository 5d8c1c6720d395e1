"""How a command starts and ends: values that need no conversion, and the quick way out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from hypothesis import given, strategies as st

from fishertope.cli._plain_values import leave_plain

SEEN = {}


def _command(
    paths: Annotated[list[Path], typer.Argument()],
    word: Annotated[str, typer.Option("--word")] = "usual",
    maybe: Annotated[str | None, typer.Option("--maybe")] = None,
    folder: Annotated[Path | None, typer.Option("--folder")] = None,
    there: Annotated[Path | None, typer.Option("--there", exists=True)] = None,
    words: Annotated[list[str] | None, typer.Option("--words")] = None,
    numbers: Annotated[list[int] | None, typer.Option("--numbers", min=0)] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=9)] = 3,
    rate: Annotated[float, typer.Option("--rate")] = 0.5,
    kind: Annotated[Literal["a", "b"], typer.Option("--kind")] = "a",
    flag: Annotated[bool, typer.Option("--flag/--no-flag")] = False,
) -> None:
    SEEN["values"] = dict(locals())


def _made():
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(_command)
    return typer.main.get_command(app)


def _run(command, arguments):
    """Exit code and values; ``None`` where it was refused."""
    SEEN.clear()
    try:
        command(args=arguments, prog_name="x")
    except SystemExit as ended:
        return ended.code, SEEN.get("values")
    raise AssertionError("a command ends the process")


LINES = [
    ["a", "b"],
    [],
    ["a", "--word", "ß", "--maybe", ""],
    ["a", "--folder", "/tmp", "--there", "/tmp"],
    ["a", "--there", "/not/there"],
    ["a", "--words", "x", "--words", "y", "--numbers", "1", "--numbers", "02"],
    ["a", "--numbers", "-1"],
    ["a", "--count", "9"],
    ["a", "--count", "10"],
    ["a", "--count", "many"],
    ["a", "--rate", "1e-3", "--flag", "--kind", "b"],
    ["a", "--kind", "c"],
    ["a", "--nothing"],
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_plain_values_are_those_that_typer_makes(line, capsys):
    theirs = _run(_made(), line)
    said = capsys.readouterr()
    assert _run(leave_plain(_made()), line) == theirs
    assert capsys.readouterr() == said
    assert (theirs[0] == 0) == (theirs[1] is not None)


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))))
def test_any_words_are_those_that_typer_makes(words):
    line = ["a", *(part for w in words for part in ("--words", w))]
    assert _run(leave_plain(_made()), line) == _run(_made(), line)


def test_a_command_of_strings_and_paths_does_not_import_pydantic(tmp_path):
    code = (
        "import sys; from fishertope.cli import main\n"
        "try: main(['merge', 'no-such-plan.yaml', '--out', 'out'])\n"
        "except SystemExit as e: print(e.code, 'pydantic' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["1", "False"]


def _process(*arguments, code="from fishertope.cli import program; program()", **kwargs):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"COLUMNS": "100"}, **kwargs,
    )  # fmt: skip


def test_the_quick_end_keeps_output_codes_and_handlers(tmp_path):
    done = _process("backends", "--json")
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("}")
    assert _process("--nothing").returncode == 2
    refused = _process("merge", "nothing.yaml", "--out", "out", cwd=tmp_path)
    assert refused.returncode == 1
    assert "Error" in refused.stderr
    handled = _process(
        "backends", "--json",
        code="import atexit; atexit.register(print, 'handled')\n"
        "from fishertope.cli import program; program()",
    )  # fmt: skip
    assert handled.returncode == 0
    assert handled.stdout.endswith("handled\n")


def test_a_thread_that_still_runs_is_waited_for():
    code = (
        "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(1), print('waited'))).start()\n"
        "from fishertope.cli import program; program()\n"
    )
    assert _process("--version", code=code).stdout.endswith("waited\n")


def test_a_profiler_still_writes_its_table(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "cProfile", "-o", "profile", "-m", "fishertope", "--version"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0
    assert (tmp_path / "profile").stat().st_size > 0


def test_garbage_is_looked_for_late_once_and_then_as_usual():
    code = (
        "import gc; usual = gc.get_threshold()\n"
        "from fishertope.cli import _collect_later; _collect_later()\n"
        "print(gc.get_threshold()[0]); kept = [[] for _ in range(60_000)]\n"
        "print(gc.get_threshold() == usual, len(gc.callbacks))\n"
    )
    assert _process(code=code).stdout.split() == ["50000", "True", "0"]
