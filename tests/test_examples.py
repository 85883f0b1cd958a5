"""The examples run, and show what they say they show."""

import ast
import contextlib
import io
from pathlib import Path

from examples import own_loop

ROOT = Path(__file__).parents[1]


def test_a_loop_of_ones_own_learns():
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        accuracy = own_loop.main(epochs=3)
    assert accuracy > 0.4  # of ten classes; six epochs reach 0.97
    assert 'stage 1' in said.getvalue() and f'{accuracy:.3f}' in said.getvalue()


def test_it_stands_on_models_and_input_pipeline_alone():
    tree = ast.parse((ROOT / 'examples/own_loop.py').read_text('utf-8'))
    named = {node.module if isinstance(node, ast.ImportFrom) else alias.name
             for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
             for alias in node.names}
    ours = {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert {name.split('.')[0] for name in named} & ours == {'models', 'input_pipeline'}
