"""The command line: parse, call, print."""

from __future__ import annotations

import errno
import importlib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nas.errors import NasError

app = typer.Typer(
    name="nas",
    help="Train one transformer supernet, search it for each of your devices, export the models you choose.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

ExperimentName = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="A .py file, or a name in experiments/, such as digits.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/digits.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting; may be given several times."),
]
RunDir = Annotated[Path, typer.Option(help="Where run directories lie.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what is there.")]
IfChanged = Annotated[
    Literal["refuse", "new", "continue"],
    typer.Option(help="Where code, data or settings differ from those the run was begun with."),
]
Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster, auto or ray://HOST:PORT; default: workers on this machine."),
]
Recipe = Annotated[bool, typer.Option("--recipe", help="With the settings that `nas tune` found best.")]
DeviceName = Annotated[
    str | None, typer.Option("--device", help="A device of the experiment; default: its first.")
]


@app.command()
def run(
    experiment: ExperimentName,
    settings: Set = None,
    device: DeviceName = None,
    address: Address = None,
    run_dir: RunDir = Path("runs"),
    resume: Resume = False,
    if_changed: IfChanged = "refuse",
    recipe: Recipe = False,
) -> None:
    """All phases: train, profile, search, verify.

    Example: nas run digits --set training.epochs=20 --set seed=7
    """
    phases, found, source = _load(experiment, settings, run_dir, recipe)
    chosen = found.device(device)
    options = {"resume": resume, "if_changed": if_changed, "address": address}
    with phases.open_run(found, source, run_dir, begins=True, **options) as opened:
        phases.all_phases(opened, chosen)


@app.command()
def train(
    experiment: ExperimentName,
    settings: Set = None,
    address: Address = None,
    run_dir: RunDir = Path("runs"),
    resume: Resume = False,
    if_changed: IfChanged = "refuse",
    recipe: Recipe = False,
) -> None:
    """Train the supernet.

    Example: nas train digits --set training.epochs=20
    """
    phases, found, source = _load(experiment, settings, run_dir, recipe)
    options = {"resume": resume, "if_changed": if_changed, "address": address}
    with phases.open_run(found, source, run_dir, begins=True, **options) as opened:
        phases.train_supernet(opened)


@app.command()
def profile(
    experiment: ExperimentName,
    settings: Set = None,
    device: DeviceName = None,
    run_dir: RunDir = Path("runs"),
    resume: Resume = False,
    if_changed: IfChanged = "refuse",
) -> None:
    """Time subnets on a device and fit its latency model.

    Example: nas profile digits --device torch
    """
    phases, found, source = _load(experiment, settings, run_dir)
    chosen = found.device(device)
    options = {"resume": resume, "if_changed": if_changed}
    with phases.open_run(found, source, run_dir, **options) as opened:
        phases.profile_device(opened, chosen)


@app.command()
def search(
    experiment: ExperimentName,
    settings: Set = None,
    device: DeviceName = None,
    address: Address = None,
    run_dir: RunDir = Path("runs"),
    resume: Resume = False,
    if_changed: IfChanged = "refuse",
) -> None:
    """Search the front for a device with the run's supernet, and verify it; profiles where needed.

    Example: nas search digits --device torch
    """
    phases, found, source = _load(experiment, settings, run_dir)
    chosen = found.device(device)
    options = {"resume": resume, "if_changed": if_changed, "address": address}
    with phases.open_run(found, source, run_dir, needs_weights=True, **options) as opened:
        phases.profile_device(opened, chosen, needed=True)
        phases.search_front(opened, chosen)
        phases.finish_device(opened, chosen)


@app.command()
def verify(
    experiment: ExperimentName,
    settings: Set = None,
    device: DeviceName = None,
    run_dir: RunDir = Path("runs"),
    if_changed: IfChanged = "refuse",
) -> None:
    """Extract, evaluate and time the finalists of a search; write front.json and report.html.

    Example: nas verify digits
    """
    phases, found, source = _load(experiment, settings, run_dir)
    chosen = found.device(device)
    options = {"resume": True, "if_changed": if_changed}
    with phases.open_run(found, source, run_dir, needs_weights=True, **options) as opened:
        phases.finish_device(opened, chosen)


@app.command()
def export(
    run: RunPath,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help='On measured values, such as "latency_ms<=5".'),
    ] = None,
    best: Annotated[str | None, typer.Option(help="Objective to choose by; default: accuracy.")] = None,
    architecture_id: Annotated[
        str | None, typer.Option("--id", help="This point, in place of --where and --best.")
    ] = None,
    device: DeviceName = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="safetensors onnx pt2 onnx-portable onnx-fp32 onnx-fp16 openvino huggingface mlflow; "
            "default: the first three.",
        ),
    ] = None,
    if_changed: IfChanged = "refuse",
    more_formats: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Write a subnet as an ordinary model: safetensors, ONNX, torch.export archive, card.

    Example: nas export runs/digits --where "latency_ms<=0.1" --best accuracy
    """
    from nas.export import DEFAULT
    from nas.rundir import RunDirectory

    wanted = [*(formats or ()), *(more_formats or ())]  # --format onnx pt2
    if more_formats and not formats:
        raise NasError(f"`nas export` takes one run directory, but got {more_formats} beside it.")
    run = run.resolve()
    directory = RunDirectory(run)
    stored = directory.read()
    phases = importlib.import_module("nas.phases")
    chosen = None
    if architecture_id is None:
        chosen = phases.choose_entry(
            directory.read_front(), phases.objectives_of(stored), where or (), best, device
        )
    elif where or best:
        raise NasError("`--id` names one point, so --where and --best must not stand beside it.")
    found, source = phases.reopened(run, if_changed=if_changed)
    options = _of_a_run(run, if_changed)
    with phases.open_run(found, source, run.parent, **options) as opened:
        entry = chosen or phases.entry_of(opened, architecture_id, device)
        folder = phases.export_entry(opened, entry, wanted or DEFAULT)
    typer.echo(f"Exported {entry['id']} to {folder}:")
    for path in sorted(folder.iterdir()):
        files = path.rglob("*") if path.is_dir() else [path]
        typer.echo(f"  {path.name:<20} {sum(f.stat().st_size for f in files) / 1e3:>9.1f} kB")


@app.command()
def tune(
    experiment: ExperimentName,
    settings: Set = None,
    samples: Annotated[int, typer.Option(help="Configurations.")] = 24,
    epochs: Annotated[
        int, typer.Option(help="Of a training that is not ended, by the rule whose steps take least.")
    ] = 27,
    workers: Annotated[int, typer.Option(min=1, help="Processes of this machine.")] = 2,
    address: Address = None,
    run_dir: RunDir = Path("runs"),
) -> None:
    """Find a recipe by short trainings: learning rate, decay, rule of subnets, distillation, mixing.

    Example: nas tune digits --samples 24
    """
    from dataclasses import replace

    from nas.experiment import load_experiment
    from nas.settings import parse_assignments

    phases = importlib.import_module("nas.phases")
    found, source = load_experiment(experiment, parse_assignments(settings or []))  # whatever a run of it had
    what = phases.Tuning(samples, epochs)
    found = replace(found, name=f"{found.name}{phases.SUFFIX}")
    options = {"resume": True, "on_error": "FINISHED", "address": address}
    with phases.open_run(found, source, run_dir, **options) as opened:
        phases.tune_recipe(opened, what, workers)


@app.command()
def finetune(
    run: RunPath,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION", help="Of the front, those that meet it as inherited; default: all."
        ),
    ] = None,
    device: DeviceName = None,
    epochs: Annotated[int, typer.Option(help="At most.")] = 20,
    learning_rate: Annotated[float, typer.Option(help="Its peak, as a share of the supernet's.")] = 0.2,
    external: Annotated[float, typer.Option(help="Share of the loss that the largest subnet teaches.")] = 0.5,
    patience: Annotated[int, typer.Option(help="Epochs without a better score.")] = 5,
    scratch: Annotated[bool, typer.Option("--scratch", help="Train each from nothing too.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes of this machine.")] = 2,
    address: Address = None,
    if_changed: IfChanged = "refuse",
) -> None:
    """Train points of the front on as plain models, taught by the largest subnet, and verify the front again.

    Example: nas finetune runs/digits --where "latency_ms<=0.1" --epochs 10
    """
    phases = importlib.import_module("nas.phases")
    run = run.resolve()
    what = phases.Finetuning(epochs, learning_rate, external, patience, scratch)
    directory = importlib.import_module("nas.rundir").RunDirectory(run)
    directory.read()
    found, source = phases.reopened(run, if_changed=if_changed)
    front = phases.as_inherited(found, directory.read_front())
    entries = phases.entries_where(front, where or (), device)
    options = _of_a_run(run, if_changed) | {"address": address}
    with phases.open_run(found, source, run.parent, **options) as opened:
        phases.finetune(opened, entries, what, workers)
        phases.report(opened)


@app.command()
def assess(
    run: RunPath,
    bins: Annotated[int, typer.Option(help="Bins of cost.")] = 3,
    width: Annotated[float, typer.Option(help="Half of a bin, as a share of its middle.")] = 0.05,
    subnets: Annotated[int, typer.Option(help="Subnets in each bin.")] = 10,
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 2,
    unseen: Annotated[int, typer.Option(help="Subnets in each bin that training leaves out, beside.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes of this machine; 0: this one alone.")] = 2,
    address: Address = None,
    if_changed: IfChanged = "refuse",
) -> None:
    """Train subnets alone and compare: how far can the accuracy be trusted that they inherit?

    Example: nas assess runs/digits --subnets 5
    """
    phases = importlib.import_module("nas.phases")
    run = run.resolve()
    what = phases.Assessment(bins, width, subnets, seeds, unseen)
    found, source = phases.reopened(run, if_changed=if_changed)
    options = _of_a_run(run, if_changed) | {"address": address}
    with phases.open_run(found, source, run.parent, **options) as opened:
        phases.assess(opened, what, workers)


@app.command()
def show(
    run: RunPath,
    architecture_id: Annotated[
        str, typer.Argument(metavar="ID", help="Of a trial or finalist, or the beginning of it.")
    ],
    other: Annotated[
        str | None, typer.Argument(metavar="OTHER", help="Another: show what it changes in the first.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Write a picture of the architecture here.")] = None,
) -> None:
    """Show an architecture of a run as text or as a picture, or what differs between two.

    Example: nas show runs/digits e0e0b8 --svg e0e0b8.svg
    """
    from nas.difference import difference
    from nas.outline import outline
    from nas.reading import architecture_of, read_run

    if other is not None and svg is not None:
        raise NasError(f"`--svg` draws one architecture, but got {other} as well. Leave out one of the two.")
    view = read_run(run)
    name, architecture = architecture_of(view, architecture_id)
    if other is not None:
        second, changed = architecture_of(view, other)
        typer.echo(f"{name} → {second}\n{difference(architecture, changed)}")
        return
    typer.echo(f"{name}\n{outline(architecture)}")
    if svg is not None:
        picture = importlib.import_module("nas.report.architecture").architecture_svg(architecture)
        try:
            svg.write_text(picture + "\n", encoding="utf-8")
        except OSError as error:
            raise NasError(f"`--svg` must be a file that can be written: got {svg} ({error}).") from error
        typer.echo(f"Picture: {svg}")


@app.command()
def dashboard(
    run: RunPath,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")] = 8050,
) -> None:
    """Explore the front in a browser, also while the search runs.

    Example: nas dashboard runs/digits
    """
    from nas.rundir import RunDirectory

    RunDirectory(run).read()
    try:
        explorer = importlib.import_module("dashboards.explorer")
    except ModuleNotFoundError as error:
        raise NasError(f"The dashboard needs its extra: pip install 'nas[dashboard]' ({error}).") from error
    try:
        explorer.serve(run, port=port)
    except OSError as error:
        raise NasError(f"`--port` must be free: got {port} ({error}). Choose another.") from error


def _load(
    experiment: str, settings: list[str] | None, run_dir: Path, recipe: bool = False
) -> tuple[Any, Any, Any]:
    """The phases (their imports take seconds, which `--help` must not), the experiment, its source."""
    phases = importlib.import_module("nas.phases")
    given = settings or []
    if recipe:  # what is set besides counts more
        name = phases.remembered(run_dir, experiment, given)[0].name
        paths = [text.partition("=")[0].strip() for text in given]
        found = phases.recipe_settings(run_dir, name)
        left = {k: v for k, v in found.items() if not any(k.startswith(f"{path}.") for path in paths)}
        given = [*(f"{k}={v}" for k, v in left.items()), *given]
    return (phases, *phases.remembered(run_dir, experiment, given))


def _of_a_run(run: Path, if_changed: str) -> dict[str, Any]:
    """How a command about one run with weights opens it."""
    return {
        "resume": True,
        "needs_weights": True,
        "path": run,
        "on_error": "FINISHED",
        "if_changed": if_changed,
    }


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors that a user can mend are one message and exit code 2."""
    try:
        app(arguments)
    except NasError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"error: {error}. Make room, and go on: what was done until then is kept.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
