"""What the screen shows before the first step."""

import io
import logging
import re
import sys
import time

import pytest

from train_lib.runtime import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger='train_lib')
    return lambda: [record.getMessage() for record in caplog.records]


def test_the_seconds_of_compiling_are_in_the_log(lines):
    with progress.compiling():
        pass
    line, = lines()
    assert re.fullmatch(r'compile  \d\.\d s', line)


def test_a_long_compilation_is_announced(lines, monkeypatch):
    monkeypatch.setattr(progress, 'LONG', 0.01)
    with progress.compiling():
        time.sleep(0.3)
    first, last = lines()
    assert first.startswith('compile  the training step') and re.search(r' \d\.\d s$', last)


def test_a_terminal_counts_the_seconds(lines, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, 'stderr', screen)
    with progress.compiling():
        time.sleep(0.8)
    assert 'compiling 00:0' in screen.getvalue()
    assert len(lines()) == 1


def test_a_compilation_that_fails_has_no_seconds(lines):
    with pytest.raises(ValueError, match='no'), progress.compiling():
        raise ValueError('no')
    assert lines() == []


def test_other_processes_are_silent(lines):
    with progress.compiling(enabled=False):
        pass
    assert lines() == []
