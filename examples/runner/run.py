"""The training loop of all examples, and what comes before and after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from runner.controls import raw_input, untrained
from runner.data.dataset import Dataset, subsample, thin
from runner.domain import Domain, Task
from runner.errors import one_line_errors
from runner.evaluate import evaluate
from runner.feed import feed
from runner.methods import Method, build_method
from runner.options import build_parser, refuse_unused
from runner.pace import Pace
from runner.ranks import as_main_decides, is_main, join_ranks, main_first, refuse_norm, wrap_in_ddp
from runner.recipe import build_inputmix, build_mix, build_optimizer
from runner.report.board import Board
from runner.report.mixed import save_mixed, some_of
from runner.report.results import Results
from runner.settings import Settings, settle
from runner.state.experiment import Experiment
from runner.state.place import hold
from runner.steps import Steps


def run(domain: Domain, argv: Sequence[str] | None = None) -> None:
    """All that a script does; ends with one line where its options or its data will not do."""
    with one_line_errors():
        compare(*prepare(domain, parse(domain, argv)))


def parse(domain: Domain, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What the command line says, None where it leaves the choice to the recipe."""
    parser = build_parser(
        domain.name, description=domain.description, data_help=domain.data_help, augmentations=domain.augmentations
    )
    domain.add_options(parser)
    return vars(parser.parse_args(argv))


def prepare(
    domain: Domain, given: Mapping[str, Any], load: Callable[[Mapping[str, Any]], Dataset] | None = None
) -> tuple[Settings, Task]:
    """Load the data, by default as the domain does, and settle everything that training asks for."""
    device, ranks = join_ranks(given["device"])
    refuse_norm(given["bn"], given["method"], device, ranks)
    with main_first():
        data = (load or domain.load)(given)
    if is_main():
        for note in data.notes:
            print(f"{data.name}: {note}", file=sys.stderr)
    recipe = domain.recipe(data.name, device)
    refuse_unused({**given, "arch": given.get("arch") or recipe.get("arch")}, domain.named)
    settings = settle(domain.settings, given, recipe, domain=domain.name, data=data, device=device, ranks=ranks)
    return settings, domain.task(settings, data.to(device))


def compare(settings: Settings, task: Task) -> None:
    """Train with each mix and seed, and report."""
    with hold(settings.out):
        results = _compare(settings, task)
        if is_main():
            results.finish()


def add_missing(settings: Settings, task: Task) -> None:
    """Train with each mix and seed that ``results.json`` lacks; what it has is not looked at again."""
    with hold(settings.out):
        _compare(settings, task, again=False)


def _compare(settings: Settings, task: Task, *, again: bool = True) -> Results:
    train_on = subsample(task.data, settings.data_fraction, settings.class_fraction)
    if settings.pretrain_rows:
        train_on = thin(train_on, settings.pretrain_rows)
    judge_on = thin(task.data, settings.probe_rows) if settings.probe_rows else task.data
    results = Results(settings, task.data.name, task.raw_name)
    if settings.controls and is_main():
        _judge_controls(results, settings, replace(task, data=judge_on))
    for seed in range(settings.seeds):  # a command that is cut short has as many runs of each mix
        for mix in settings.mix:
            experiment = Experiment(settings, mix, seed)
            if as_main_decides(not again and is_main() and results.has(experiment)):
                continue
            encoder, pace = pretrain(experiment, task, train_on)
            if is_main():
                results.add(experiment, evaluate(encoder, judge_on, task.to_input, settings.probe), pace)
    return results


def _judge_controls(results: Results, settings: Settings, task: Task) -> None:
    if not results.has_control("raw", 0):
        results.add_control("raw", 0, raw_input(task, settings.probe))
    for seed in range(settings.seeds):
        if not results.has_control("untrained", seed):
            batch_size = min(settings.batch_size, len(task.data.train_y))
            metrics = untrained(task, seed, batch_size, settings.device, settings.probe)
            results.add_control("untrained", seed, metrics)


def pretrain(experiment: Experiment, task: Task, data: Dataset) -> tuple[nn.Module, Pace]:
    """Train one encoder from scratch, or on from its checkpoint; return it and how fast that went."""
    settings = experiment.settings
    torch.manual_seed(experiment.seed)
    encoder = task.build_encoder()
    method = _on_device(settings, encoder)
    imix = build_mix(experiment.mix, settings.alpha, settings.lambda_per, table=not task.pictures)
    inputmix = build_inputmix(settings.inputmix)
    optimizer, schedule = build_optimizer(
        method.parameters(),
        lr=settings.lr,
        batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        steps_per_epoch=len(data.train_x) // settings.batch_size,
        milestones=settings.milestones,
    )
    train = wrap_in_ddp(method, settings.device, sync_norm=settings.bn == "sync", seed=experiment.seed)
    parts = {"method": method, "optimizer": optimizer, "schedule": schedule, "input": task.to_input}
    board = Board(experiment.folder, on=settings.tensorboard)
    steps = Steps(experiment, rows=len(data.train_x), parts=parts, board=board)
    if imix is not None and settings.mix_at is None and task.pictures and experiment.seed == 0:
        save_mixed(
            experiment.folder / "mixed.png", imix, task.to_input(some_of(data.train_x).to(settings.device)), board
        )

    both_views = feed(task, data.train_x, steps)
    for rows in steps:
        # Both at once: the rows that InputMix blends in come from either.
        view_1, view_2 = inputmix(both_views(rows)).chunk(2)
        with torch.autocast(settings.device.type, torch.bfloat16, enabled=settings.amp == "bf16"):
            loss = train(view_1, view_2, imix, data.train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        method.after_step()
        steps.record(loss)
    return encoder, steps.pace


def _on_device(settings: Settings, encoder: nn.Module) -> Method:
    method = build_method(
        settings.method,
        encoder,
        temperature=settings.temperature,
        queue=settings.queue,
        momentum=settings.momentum,
        projection_bn=settings.projection_bn,
        prediction_bn=settings.prediction_bn,
        mix_at=settings.mix_at,
        gather=settings.ranks > 1,
        shuffle=settings.bn == "shuffle",
    )
    method.to(settings.device, memory_format=_layout(settings.device)).train()
    if settings.compile:
        encoder.compile()
    return method


def _layout(device: torch.device) -> torch.memory_format:
    """Channels last where that is faster, but for processors with AVX2 alone.

    There PyTorch 2.14 destroys its memory in the gradient of a 1 x 1 convolution of stride 2 with two channels.
    """
    is_sound = device.type == "cuda" or (device.type == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX2")
    return torch.channels_last if is_sound else torch.preserve_format
