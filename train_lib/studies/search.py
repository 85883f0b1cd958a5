"""A search: trials of proposed settings, hopeless ones of which stop early, then a fair comparison.

Trials come in brackets. Those of a bracket are proposed together once all before them are over.
Each is one run with the search's seed. At a rung, a share of the run, it saves and pauses; when all
of its bracket have come so far, the best 1 / factor of them by the score on the validation rows go
on, bit for bit as if they had never paused, and the others are over: 'stopped at rung 1'. This is
successive halving (Jamieson and Talwalkar, arXiv 1502.07943). ASHA (Li et al., arXiv 1810.05934)
would not wait, but then what is stopped would depend on which process was faster.

The best score of many trials is too good: it is the largest of many noisy numbers, on rows that
chose. So no score of a trial is a result. When all trials are over, the best one's settings and the
config's own, the reference, train anew with seeds that no trial had, and what is shown is their
difference on the test rows, paired by seed. All runs have one split, so the test rows chose
nothing.

    search/bracket_<b>.json          what was proposed
    trial_<k>/seed_<s>/              a trial, as any cell
        rung_<r>.json                it has come to this rung: step, score
        cell.json                    status 'done', 'failed' or 'stopped', with the rung
    reference/, winner/              the comparison, an ordinary study
"""

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.atomic_files import write_json
from train_lib.run_dir.metrics_log import METRICS
from train_lib.runtime.errors import ConfigError
from train_lib.studies import ledger
from train_lib.studies.definition import Arm, Cell, Study, configured
from train_lib.studies.search_space import PROPOSERS, Known

REFERENCE, WINNER = 'reference', 'winner'
FOLDER = 'search'


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is known of one proposal.

    Attributes:
        cell: its run.
        bracket: its number, from 0.
        rungs: scores at rungs 1, 2, ... as far as it has come; NaN for one that is not finite.
        status: 'done', 'failed', 'stopped', or '' as long as it is not over.
        score: at its end, NaN before that.
        error: one line about a failure, else ''.
    """

    cell: Cell
    bracket: int
    rungs: tuple[float, ...]
    status: str
    score: float
    error: str = ''

    def at(self, rung: int) -> float | None:
        """The score at a rung, from 1; that of the end if it ended before; None if not there."""
        if rung <= len(self.rungs):
            return self.rungs[rung - 1]
        return self.score if self.status == 'done' else None


def score_name(study: Study) -> str:
    """The score that decides: the study's metric, on the validation rows."""
    return f'val.{study.metric.partition(".")[2]}'


def trials_of(study: Study, workdir: Path) -> list[Trial]:
    """All trials so far, in their order. A bracket that is due is proposed, and kept."""
    search = study.search
    assert search is not None
    found: list[Trial] = []
    bracket = 0
    while len(found) < search.trials:
        if found and any(not trial.status for trial in found):
            break  # the next bracket may learn from these
        proposals = _proposed(study, workdir, bracket, found)
        if not proposals:
            break
        for changes in proposals:
            number = len(found) + 1
            name = f'trial {number:03}'
            key = f'{name} {changes}'
            if key not in study.made:
                study.made[key] = Arm(name, name.replace(' ', '_'), changes,
                                      configured(name, changes, study.base))
            cell = Cell(study.made[key], search.seed, None, search.rungs, score_name(study))
            found.append(_trial(cell, bracket, workdir))
        bracket += 1
    return found


def _proposed(study: Study, workdir: Path, bracket: int, known: Sequence[Trial]) -> list[dict]:
    """The proposals of a bracket: those that are kept, else new ones."""
    search = study.search
    assert search is not None
    path = workdir / FOLDER / f'bracket_{bracket}.json'
    if not path.exists():
        n = min(search.per_bracket, search.trials - len(known))
        sign = -1 if study.less_is_better else 1
        proposals = PROPOSERS[search.proposer](search.space, search.seed, [Known(
            trial.cell.arm.changes, sign * trial.score if trial.status == 'done' else None,
            {rung: sign * value for rung, value in enumerate(trial.rungs, 1)
             if math.isfinite(value)}) for trial in known], n)
        if not proposals:
            return []
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'{path.name}-{uuid.uuid4().hex}')
        temporary.write_text(json.dumps(proposals, indent=1) + '\n')
        try:
            os.link(temporary, path)  # of several processes the first one counts
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return [{key: search.as_listed(key, value) for key, value in changes.items()}
            for changes in json.loads(path.read_text())]


def _trial(cell: Cell, bracket: int, workdir: Path) -> Trial:
    folder = workdir / cell.folder
    known = ledger.record(folder) or {}
    rungs = []
    for rung in range(1, len(cell.rungs) + 1):
        path = folder / f'rung_{rung}.json'
        if not path.exists():
            break
        value = json.loads(path.read_text())['value']
        rungs.append(math.nan if value is None else float(value))
    score = math.nan
    if known.get('status') == 'done':
        from train_lib.studies.cell_results import result_value  # which imports `definition` too

        found = result_value(json.loads((folder / 'result.json').read_text()), cell.metric)
        if found is None:
            raise ConfigError(f'config.study.metric: {cell.metric} is not a number in '
                              f'{folder / "result.json"}: a search needs validation rows '
                              f'(config.split.val).')
        score = float(found)
    return Trial(cell, bracket, tuple(rungs), known.get('status', ''), score,
                 known.get('error', ''))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What may happen to the trials of a search now.

    Attributes:
        open: trials that may begin, or go on to their next rung or to the end.
        stopped: (trial, rung) of those whose rung was judged, and that do not go on.
    """

    open: tuple[Trial, ...]
    stopped: tuple[tuple[Trial, int], ...]


def judge_rungs(trials: Sequence[Trial], rungs: int, factor: float, less_is_better: bool
                ) -> Verdict:
    """Who goes on: a function of the scores alone, not of the order in which they came.

    Args:
        trials: see `trials_of`.
        rungs: number of them.
        factor: at each rung the best 1 / factor go on, rounded up.
        less_is_better: whether the score is an error.
    """
    opened: list[Trial] = []
    stopped: list[tuple[Trial, int]] = []
    sign = 1 if less_is_better else -1
    for bracket in sorted({trial.bracket for trial in trials}):
        alive = [trial for trial in trials if trial.bracket == bracket]
        for rung in range(1, rungs + 1):
            # One that has failed counts where it had come to, so that a verdict stays what it was.
            alive = [trial for trial in alive if trial.status != 'failed'
                     or trial.at(rung) is not None]
            waiting = [trial for trial in alive if trial.at(rung) is None
                       and trial.status != 'stopped']
            if waiting:
                opened += waiting
                break
            # Those stopped at an earlier start stay so, whatever came in since.
            scores = [(sign * (trial.at(rung) or 0.0), place) for place, trial in enumerate(alive)
                      if json_number(trial.at(rung)) is not None]
            kept = {place for _, place in sorted(scores)[:math.ceil(len(alive) / factor)]}
            stopped += [(trial, rung) for place, trial in enumerate(alive)
                        if place not in kept and not trial.status]
            alive = [trial for place, trial in enumerate(alive)
                     if place in kept and trial.status != 'stopped']
        else:
            opened += [trial for trial in alive if not trial.status]
    return Verdict(tuple(opened), tuple(stopped))


def verdict_of(study: Study, trials: Sequence[Trial]) -> Verdict:
    """`judge_rungs` by the settings of a search."""
    search = study.search
    assert search is not None
    return judge_rungs(trials, len(search.rungs), search.factor, study.less_is_better)


def best_of(study: Study, trials: Sequence[Trial]) -> Trial | None:
    """The finished trial with the best score, of equal ones the first; None without any."""
    done = [trial for trial in trials if trial.status == 'done' and math.isfinite(trial.score)]
    sign = 1 if study.less_is_better else -1
    return min(done, key=lambda trial: sign * trial.score, default=None)


def are_over(study: Study, trials: Sequence[Trial]) -> bool:
    """Whether all trials of a search have come to an end."""
    return bool(trials) and all(trial.status for trial in trials)


def current(study: Study, workdir: Path) -> Study:
    """A study as it is now: of a search, with its trials so far and, once they are over, the cells
    of the comparison. Every other study is returned as it is.

    Raises:
        ConfigError: all trials have failed, or Optuna is missing.
    """
    if study.search is None:
        return study
    trials = trials_of(study, workdir)
    cells = [trial.cell for trial in trials]
    arms = [trial.cell.arm for trial in trials]
    if are_over(study, trials):
        compared = comparison(study, workdir, trials)
        cells, arms = [*cells, *compared.cells()], [*arms, *compared.arms]
    return dataclasses.replace(study, arms=tuple(arms), listed=tuple(cells))


def comparison(study: Study, workdir: Path, trials: Sequence[Trial]) -> Study:
    """The study that follows the trials: the reference and the winner, on the fresh seeds.

    Raises:
        ConfigError: all trials have failed.
    """
    best = best_of(study, trials)
    if best is None:
        failed = next((trial for trial in trials if trial.error), None)
        raise ConfigError(f'All trials of {workdir} have failed'
                          f'{f", the first by {failed.error}" if failed else ""}: change the '
                          f'space, and give a new --workdir.')
    arms = [Arm(REFERENCE, REFERENCE, {}, study.base)]
    # Of a grid, the reference may be the best itself.
    if best.cell.arm.config.to_json() != study.base.to_json():
        arms.append(Arm(f'{WINNER} ({best.cell.arm.name})', WINNER, best.cell.arm.changes,
                        best.cell.arm.config))
    return dataclasses.replace(study, arms=tuple(arms), listed=None, about=_about(study, trials))


def _about(study: Study, trials: Sequence[Trial]) -> str:
    """What the caption of the comparison says of the search."""
    search, best = study.search, best_of(study, trials)
    assert search is not None and best is not None
    stopped = sum(trial.status == 'stopped' for trial in trials)
    return (f' The winner is the best of {len(trials)} trials ({search.proposer}, '
            f'{stopped} stopped early) by {score_name(study)} with seed {search.seed}: '
            f'{best.score:.4f} there, which is the best of many and no result. The runs of this '
            f'table are new, with seeds that no trial had, on test rows that chose nothing.')


def open_cells_of(study: Study, workdir: Path) -> list[Cell]:
    """The cells of a search that are not over and may begin or go on now."""
    trials = trials_of(study, workdir)
    if not are_over(study, trials):
        return [trial.cell for trial in verdict_of(study, trials).open]
    return [cell for cell in comparison(study, workdir, trials).cells()
            if ledger.record(workdir / cell.folder) is None]


def unfinished_of(study: Study, workdir: Path) -> list[Cell]:
    """The cells of a search that are not over, as far as they are known."""
    return [cell for cell in current(study, workdir).cells()
            if ledger.record(workdir / cell.folder) is None]


def stop_hopeless(study: Study, workdir: Path, code: str) -> None:
    """Writes down which trials do not go on."""
    if study.search is None:
        return
    for trial, rung in verdict_of(study, trials_of(study, workdir)).stopped:
        lease = ledger.take(workdir / trial.cell.folder, code)
        if lease:
            ledger.finish(lease, 'stopped', rung=rung, score=json_number(trial.at(rung)))
            ledger.tidy(lease.folder, study.settings.keep_checkpoints)


def next_rung(cell: Cell, folder: Path) -> int:
    """The rung that a trial's run goes to now, from 1; 0 where it goes to the end."""
    for rung in range(1, len(cell.rungs) + 1):
        if not (folder / f'rung_{rung}.json').exists():
            return rung
    return 0


def json_number(value: float | None) -> float | None:
    """None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None


def note_rung(cell: Cell, folder: Path, rung: int, step: int, steps: int) -> None:
    """Writes down that a trial has come to a rung, `step` of `steps`, with the score of its
    validation there.

    Raises:
        ConfigError: the run has no such score.
    """
    name = cell.metric.partition('.')[2].replace('.', '/')
    rows = map(json.loads, (folder / METRICS).read_text().splitlines())
    row = next((row for row in rows if row['split'] == 'val' and row['step'] == step), {})
    if name not in row:
        raise ConfigError(f'config.study.search.rungs: {folder} has no {name} of a validation at '
                          f'step {step}: a search needs validation rows (config.split.val), and '
                          f'config.study.metric and config.eval.metric of one kind.')
    write_json(folder / f'rung_{rung}.json', dict(step=step, steps=steps, value=row[name]))
