"""report.html of a run: one file that needs no network and no other file."""

from collections.abc import Callable
from pathlib import Path

from input_pipeline.manifest import Manifest
from train_lib.reporting.about import data_section, settings_section, time_section
from train_lib.reporting.classes import head_sections
from train_lib.reporting.curves import curves_section
from train_lib.reporting.inputs import RunInputs, as_dict, read_run
from train_lib.reporting.page import Section, duration, number, whole, write_page
from train_lib.reporting.score_table import headline, scores_section
from train_lib.reporting.structured_section import structure_section
from train_lib.reporting.thumbnails import thumbnailer
from train_lib.run_dir.seen_rows import marks
from train_lib.runtime.progress import epochs

# In the order of the page. To add a section, write a function that returns it (several, or none
# where the run has nothing to show) and add its name here.
SECTIONS: tuple[Callable[[RunInputs], list[Section]], ...] = (
    scores_section,
    structure_section,
    curves_section,
    head_sections,
    data_section,
    time_section,
    settings_section,
)


def write_report(workdir: str | Path, *, manifest: Manifest, read_image: Callable,
                 title: str | None = None, max_errors: int = 24) -> Path:
    """Writes workdir/report.html from the files of a run, and returns its path.

    Reads config.json, metrics.jsonl, result.json, predictions/test.npz (else val.npz) and
    heatmaps.npz. A file that is missing or damaged is named in its section.

    Args:
        workdir: of the run.
        manifest: the run's data, with the column `split`.
        read_image: location -> uint8 [H, W, 3], RGB. A picture it fails on is left blank.
        title: heading; by default the workdir's name.
        max_errors: errors shown, over all heads; at least four per head.
    """
    workdir = Path(workdir)
    inputs = read_run(workdir, manifest, thumbnailer(read_image), max_errors)
    path = workdir / 'report.html'
    write_page(path, 'run.html.jinja', title=title or workdir.resolve().name or 'Report',
               subtitle=_subtitle(inputs.config, inputs.result),
               status=inputs.result.get('status', ''), headline=headline(inputs),
               facts=_facts(inputs.result), marks=marks(inputs.result),
               sections=[section for make in SECTIONS for section in make(inputs)])
    return path


def _subtitle(config: dict, result: dict) -> str:
    model = config.get('model')
    name = model.get('name') if isinstance(model, dict) else model
    return ' · '.join(str(part) for part in (name, result.get('device')) if part)


def _facts(result: dict) -> list[tuple[str, str]]:
    facts = [('time', duration(as_dict(result.get('seconds')).get('total')))]
    for label, key in [('epochs', 'epochs'), ('steps', 'steps'), ('best step', 'best_step'),
                       ('parameters', 'parameters')]:
        value = number(result.get(key))
        text = epochs(value) if key == 'epochs' and value is not None else whole(value)
        facts.append((label, text))
    return [(label, text) for label, text in facts if text != '–']
