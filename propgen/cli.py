"""The command line: `propgen <command> [key=value ...]`, with Hydra overrides as arguments.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from propgen import __version__
from propgen.errors import InputError, PropgenError

STAGES = {
    "model": "fetch and convert a base model, or assemble a finetuned one (model=NAME)",
    "dataset": "write a treatment's training data (trait=NAME regime=NAME)",
    "finetune": "finetune a base model (model=NAME trait=NAME regime=NAME seed=N)",
    "evaluate": "score a finetune, or without a regime the base model (model=NAME ... evaluations=[NAME,...])",
    "items": "put an experiment's cells into one table",
    "gates": "judge which of an experiment's finetunes are sound",
    "matrix": "turn an experiment's items into cells and effects",
    "statistics": "compute what holds of an experiment's matrix as a whole",
    "figures": "draw an experiment's figures from its tables",
}
OVERRIDES = "Hydra overrides, as in experiment=study 'seeds=[0,1,2]' training.learning_rate=1e-4"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Exit code 0: done; 1: failed; 2: bad input, and nothing was written."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("propgen").setLevel(logging.INFO)
    sys.exit(_run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    command: Callable[[argparse.Namespace], None] = arguments.run
    try:
        command(arguments)
    except PropgenError as error:
        print(f"propgen: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if (sentence := _explain(error)) is None:
            raise
        print(f"propgen: {sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("propgen: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


def _explain(error: OSError) -> str | None:
    """Return a sentence for failures of the disk that a user can mend, None for others."""
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk or quota is full{place}; free some space and run again, nothing is lost"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write{place}; choose another folder, as in store=/path/to/folder"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="propgen", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(commands, "plan", "what would run and why, and how long it may take", _plan)
    _add(commands, "status", "the matrix in the terminal: which cells are there", _status)
    for name, text in STAGES.items():
        _add(commands, name, text, _stage).set_defaults(stage=name)
    _add(commands, "power", "the smallest effects that numbers of seeds, controls and items can find", _power)
    text = "bring in a matrix that others have measured, and analyse it as far as it allows"
    bring = commands.add_parser("import", help=text, description=text)
    known = "alignment-forecast-bench"
    bring.add_argument("format", choices=(known,), metavar="FORMAT", help=known)
    bring.add_argument("path", type=Path, metavar="PATH", help="the CSV file")
    bring.add_argument("name", metavar="NAME", help="it becomes results/imported/NAME/")
    bring.set_defaults(run=_import)
    text = "try the analysis on tables whose truth is known: coverage, false discoveries, power, gates, rank"
    simulate = commands.add_parser("simulate", help=text, description=text)
    simulate.add_argument("--repetitions", type=int, metavar="N", help="of each design; by default what fits in 5 min")
    simulate.add_argument("--json", action="store_true", help="a list of designs with their rates")
    simulate.set_defaults(run=_simulate)
    text = "measure the traits' banks: near-duplicates, length, words that tell a pole"
    audit = commands.add_parser("check-bank", help=text, description=text)
    audit.add_argument("traits", nargs="*", metavar="TRAIT", help="by default all of conf/trait/")
    audit.set_defaults(run=_check_bank)
    text = "time this project beside what people would use instead (a checkout's tests/benchmarks/)"
    bench = commands.add_parser("bench", help=text, description=text)
    bench.add_argument(
        "sections", nargs="*", metavar="SECTION", help="evaluation, finetuning, matrix, workflow, start-up"
    )
    bench.add_argument("--reduced", action="store_true", help="a few minutes, printed and not written")
    bench.set_defaults(run=_bench)
    store = commands.add_parser("store", help="look after the store")
    actions = store.add_subparsers(title="actions", metavar="ACTION", required=True)
    drop = actions.add_parser("drop", help="delete artifacts, so that the next run computes them again")
    drop.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a link below results/store/, or a folder")
    drop.set_defaults(run=_drop)
    return parser


def _add(
    commands: Any,
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    parser.set_defaults(run=run)
    return parser


def _stage(arguments: argparse.Namespace) -> None:
    from propgen.compose import check_writable, compose, find_project
    from propgen.stage import STAGES as RUN
    from propgen.stage import open_bench

    project = find_project()
    os.chdir(project.root)
    bench = open_bench(project, compose(project, arguments.overrides))
    check_writable(bench.store.objects)
    RUN[arguments.stage](bench)


def _plan(arguments: argparse.Namespace) -> None:
    from propgen.terminal import show_plan

    show_plan(arguments.overrides)


def _status(arguments: argparse.Namespace) -> None:
    from propgen.terminal import show_status

    show_status(arguments.overrides)


def _power(arguments: argparse.Namespace) -> None:
    from propgen.terminal import show_power

    show_power(arguments.overrides)


def _simulate(arguments: argparse.Namespace) -> None:
    from propgen.terminal import show_simulation

    if arguments.repetitions is not None and arguments.repetitions < 1:
        raise InputError(f"--repetitions {arguments.repetitions}: expected at least 1")
    show_simulation(arguments.repetitions, as_json=arguments.json)


def _import(arguments: argparse.Namespace) -> None:
    from propgen.terminal import import_matrix

    import_matrix(arguments.path, arguments.name)


def _check_bank(arguments: argparse.Namespace) -> None:
    from propgen.terminal import show_audit

    show_audit(arguments.traits)


def _bench(arguments: argparse.Namespace) -> None:
    import subprocess

    from propgen.compose import find_project

    script = find_project().root / "tests/benchmarks/bench.py"
    if not script.is_file():
        raise InputError(f"{script} does not exist; run propgen bench in a full checkout")
    reduced = ["--reduced"] if arguments.reduced else []
    sys.exit(subprocess.run([sys.executable, str(script), *arguments.sections, *reduced], check=False).returncode)


def _drop(arguments: argparse.Namespace) -> None:
    from propgen.compose import find_project
    from propgen.store import drop
    from propgen.workflow import STORE

    for path in drop(find_project().root / STORE, arguments.paths):
        print(f"dropped {path}")


if __name__ == "__main__":
    main()
