"""The recording of processes sees the ones that are started."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from hvlc.chat.renderer import COMMAND
from tests.fuzz.processes import recorded_processes

PLANTED: dict[str, Callable[[], object]] = {
    "subprocess": lambda: subprocess.run([sys.executable, "--version"], check=True, capture_output=True),
    "shell": lambda: os.system("true"),
    "spawn": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
}


@pytest.mark.parametrize("way", PLANTED)
def test_a_started_process_is_recorded(way: str) -> None:
    with recorded_processes() as outer, recorded_processes() as found:
        PLANTED[way]()
    assert len(found) == 1
    assert outer == found
    PLANTED[way]()
    assert len(found) == 1


def test_without_a_process_nothing_is_recorded() -> None:
    with recorded_processes() as found:
        compile("1 + 1", "<text>", "eval")
    assert found == []


def test_the_renderer_of_templates_is_not_recorded_and_its_interpreter_alone_is() -> None:
    with recorded_processes() as found:
        subprocess.run([*COMMAND, "1500000000"], stdin=subprocess.DEVNULL, check=True, capture_output=True)
        subprocess.run([sys.executable, "-P", "-c", ""], check=True)
    assert len(found) == 1
