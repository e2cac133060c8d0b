"""A study from its file to its record: what is stored already, what the file may change, and what a run would cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

from lrsearch import ahead, checkpoint
from lrsearch.analysis import wording
from lrsearch.analysis.searches import KNOWN_RANGES
from lrsearch.conductor import Conductor, Search, Signals, kind_of, with_batch_size
from lrsearch.config import OPEN, StudyConfig, diff, from_resolved, is_extension
from lrsearch.engine import GangRequest, prepare_all
from lrsearch.errors import StudyBusyError, StudyChangedError, StudyFailedError, UsageError, WorkloadError
from lrsearch.interfaces import Executor, ImportsLate, Observer, SharesTests, Strategy
from lrsearch.probing import start_executor
from lrsearch.range_test import evaluation_count
from lrsearch.schedules import plan_schedule
from lrsearch.storage.mirror_process import MirrorProcess
from lrsearch.storage.store import Store, StudyRow
from lrsearch.storage.upkeep import LEASE_SECONDS, Lease
from lrsearch.strategies import at_once
from lrsearch.strategies.space import BATCH_SIZE
from lrsearch.surroundings import noted
from lrsearch.timing import core_seconds
from lrsearch.trial import (
    Choice,
    Compiling,
    GangChoice,
    Preparation,
    Reading,
    StudyRecord,
    TrainingPlan,
    WorkloadFacts,
    has_same_data,
    likeness,
    planned_steps,
    pooled,
    range_test_steps,
)

LOOK_SECONDS = 2.0
"""How often a process that waits for a study looks whether its turn has come."""


def run_study(
    config: StudyConfig,
    store: Store,
    *,
    observer: Observer,
    extend: bool = False,
    fresh: bool = False,
    mirror_url: str | None = None,
    meanwhile: Callable[[], object] = lambda: None,
    conclude: Callable[[StudyRecord], object] = lambda record: None,
) -> StudyRecord:
    """Run or continue the study that `config` describes and return its record when all searches are done.

    A record that is not `finished` says that the file's budget ended the run. Where anything is to run, `meanwhile` is
    called before the executor is started, and `conclude` gets that record while the dashboard's tables are still being
    written; a study for which it raises goes on when the command is repeated.

    Raises StudyChangedError when the stored study of this name says something else (`extend` allows more seeds, trials
    or strategies, `fresh` starts a new version), StudyBusyError when another process runs it (on PostgreSQL that one
    is waited for), StudyFailedError when its trials keep failing, here or in a process that was waited for, DataError
    and WorkloadError before the first trial.
    On Ctrl-C, SIGTERM or SIGHUP the running attempt is closed with its cost, and KeyboardInterrupt or Terminated goes
    on to the caller.
    """
    store.absence.tell = observer.message
    study = _find_study(config.name, store)
    if study is not None and not fresh:
        config = _as_begun(config, study)
        _check_unchanged(config, study, extend=extend)
        if _is_done(config, study):
            return _done(study, store, observer)
    signals = Signals(store.absence.give_up)
    with signals.handled(), ExitStack() as stack:
        if study is not None and not fresh:
            lease = _take_lease(study, store, observer, signals, stack)
            study = _find_study(study.name, store, study.version) or study
            if _is_done(config, study):  # by the process that was waited for
                return _done(study, store, observer)
        # Which opens the dashboard's tables while this process, or those of the executor, import torch.
        mirror = None if mirror_url is None else MirrorProcess(mirror_url, store.turn)
        if mirror is not None:
            stack.callback(lambda: mirror.close(waits=not store.absence.is_given_up))
        with signals.interruptible():
            meanwhile()
            _import_for_strategies(config)
            config, executor = start_executor(config, _user_code(config), observer.message)
        stack.enter_context(closing(executor))
        observer.message("Preparing workload and device ...")
        with signals.interruptible():
            begun = () if study is None or fresh else study.config["strategies"]
            prepared = prepare(config, executor, begun)
        settled = _settled(config, prepared)
        if prepared.reading is not None:
            observer.message(_reading_text(prepared.reading))
        for text in dict.fromkeys(chain(_timed(config, settled), *map(_together, prepared.gangs.values()))):
            observer.message(text)
        # Nothing is stored before the workload has shown that it runs.
        if study is None or fresh:
            study = _create_study(settled, store, study)
            lease = _take_lease(study, store, observer, signals, stack)
            config = _as_begun(config, study)
            if config.training != settled.training:  # another process was faster, and timing told it otherwise
                with signals.interruptible():
                    prepared = prepare(config, executor, study.config["strategies"])
                settled = _settled(config, prepared)
        study = _as_the_file_says(config, store, observer, study, prepared.facts, extend=extend)
        if _is_done(config, study):
            return _done(study, store, observer)
        folder = config.checkpoint_folder(store.sqlite_file)
        for lost in store.reconcile(study.id, partial(checkpoint.kept, folder, tell=observer.message)):
            observer.message(f"Continuing after a kill: {lost} will run again; its seconds are charged.")
        _catch_up(mirror, signals, observer)
        conductor = Conductor(settled, store, study, lease, observer, mirror, signals, executor, prepared)
        try:
            try:
                with noted(partial(store.add_event, study.id, "surroundings"), config.folder, partial(_used, mirror)):
                    finished = conductor.run()
            finally:
                conductor.show_ended()
            record = replace(store.record(study.name, study.version), finished=finished)
            if finished:
                _check_any_model(record)
        except StudyFailedError as error:
            store.note_failure(study.id, str(error))
            _catch_up(mirror, signals, observer)
            raise
        with signals.interruptible():
            conclude(record)
        _catch_up(mirror, signals, observer)
        if conductor.show_missing():
            _catch_up(mirror, signals, observer)
        if not finished:
            return record
        store.finish_study(study.id, lease.owner)
    observer.study_finished(record)
    return record


def _import_for_strategies(config: StudyConfig) -> None:
    """Import what samplers need while nothing is on a bill; torch, which takes longer, is imported elsewhere by now."""
    for key, strategy in config.strategies.items():
        if isinstance(strategy, ImportsLate):
            strategy.import_all(Search(key, config.seeds[0], strategy).history(config, None))


def _catch_up(mirror: MirrorProcess | None, signals: Signals, observer: Observer) -> None:
    """Wait until the dashboard's tables are open and have all that was published."""
    if mirror is not None:
        with signals.interruptible():
            mirror.finish(observer.message)


def _used(mirror: MirrorProcess | None) -> float:
    """Return the processor seconds that this process, the one of the mirror and those that have ended have used."""
    return core_seconds() + (0.0 if mirror is None else mirror.core_seconds)


def _user_code(config: StudyConfig) -> Path | None:
    """Return the folder of the user's own modules, where the workload names one."""
    folder = config.workload_choice().settings.get("python_path")
    return None if folder is None else Path(folder)


def _is_done(config: StudyConfig, study: StudyRow) -> bool:
    return study.finished and study.fingerprint == config.fingerprint()


def _done(study: StudyRow, store: Store, observer: Observer) -> StudyRecord:
    observer.message(f"Study {study.name!r} version {study.version} is finished; nothing to run.")
    return store.record(study.name, study.version)


def _create_study(config: StudyConfig, store: Store, before: StudyRow | None) -> StudyRow:
    """Store the study, or its next version.

    Raises StudyBusyError when another process was faster; but on PostgreSQL, where one can wait for it, its study is
    returned unless there was one `before`.
    """
    try:
        after = before.version if before else 0
        return store.create_study(config.name, config.resolved(), config.fingerprint(), after=after)
    except StudyBusyError:
        begun = _find_study(config.name, store)
        if store.sqlite_file is not None or before is not None or begun is None:
            raise
        return begun


def _take_lease(study: StudyRow, store: Store, observer: Observer, signals: Signals, stack: ExitStack) -> Lease:
    """Take the study's lease and keep it until the end of `stack`; on PostgreSQL wait for whoever has it.

    Raises StudyBusyError on SQLite, which is for one machine: there the other process is at hand. Raises
    StudyFailedError when the study failed while it was waited for: its next trials would fail here as well.
    """
    lease = Lease(store, study.id, observer.message)
    holder, turn = "", 0
    while True:
        try:
            lease.take()
            break
        except StudyBusyError as error:
            if store.sqlite_file is not None:
                raise
            ahead.end()  # for hours, maybe
            if error.holder != holder:
                holder, turn = error.holder, turn or error.turn
                observer.message(
                    f"Study {study.name!r} is being run by {holder}. Waiting until it ends; if it dies, this process "
                    f"takes the study over {LEASE_SECONDS:.0f} s after its last sign of life. Ctrl-C leaves."
                )
        with signals.interruptible():
            time.sleep(LOOK_SECONDS)
    stack.enter_context(lease.kept())
    if holder:
        failure = store.failure_since(study.id, turn)
        if failure is not None:
            raise StudyFailedError(f"Study {study.name!r} has failed in the process that was waited for. {failure}")
        observer.message(f"The lease of {holder} has ended: it is this process's turn.")
    return lease


def _find_study(name: str, store: Store, version: int | None = None) -> StudyRow | None:
    """Return the stored study as this version would store it: with the defaults of keys that came after it."""
    study = store.find_study(name, version)
    if study is None:
        return None
    try:
        stored = from_resolved(study.config)
    except UsageError:  # by a newer version or with a plug-in that is gone: then it differs, and the diff says how
        return study
    return replace(study, config=stored.resolved(), fingerprint=stored.fingerprint())


def _as_begun(config: StudyConfig, study: StudyRow) -> StudyConfig:
    """Return the study with what was chosen when it began, where the file leaves it to us."""
    try:
        return config.as_begun(from_resolved(study.config))
    except UsageError:  # as in `_find_study`
        return config


def _check_any_model(record: StudyRecord) -> None:
    """Raise StudyFailedError when every training run of the study failed: then there is nothing to report."""
    trials = [trial for trial in record.trials if trial.stage == "train"]
    errors = [trial.result.error for trial in trials if trial.status == "failed" and trial.result is not None]
    if trials and len(errors) == len(trials):
        raise StudyFailedError(
            f"All {len(trials)} training runs failed, the last one so: {errors[-1]} "
            "They are stored: mend the cause, then start a new version with --fresh."
        )


def _check_unchanged(config: StudyConfig, study: StudyRow, *, extend: bool) -> None:
    """Raise StudyChangedError unless `study` is what the file says, or less than that and `extend` is allowed."""
    resolved = config.resolved()
    if study.fingerprint == config.fingerprint() or (extend and is_extension(study.config, resolved)):
        return
    way_out = (
        "Undo the change, add to the study with --extend, or start a new version with --fresh."
        if is_extension(study.config, resolved)
        else "Undo the change, or start a new version with --fresh, which keeps the old one; --extend can add seeds, "
        "trials and strategies only."
    )
    raise StudyChangedError(
        f"The study file differs from the stored study {study.name!r} version {study.version}:\n"
        f"{_changes(study, resolved)}\n{way_out}"
    )


def _check_same_task(study: StudyRow, facts: WorkloadFacts) -> None:
    """Raise StudyChangedError where model or data, which the study file only names, are others than they were."""
    was = study.facts
    if was is None:
        return
    sizes = ("train_count", "validation_count", "test_count", "input_shape", "class_count", "parameter_count")
    changes = [
        f"{size.replace('_', ' ')} {getattr(was, size)} -> {getattr(facts, size)}"
        for size in sizes
        if getattr(was, size) != getattr(facts, size)
    ]
    if changes:
        raise StudyChangedError(
            f"The model or the data differ from those of the stored study {study.name!r} version {study.version}: "
            f"{', '.join(changes)}. Trials of both would not compare: undo the change, or start a new version with "
            "--fresh."
        )


def _changes(study: StudyRow, resolved: dict[str, Any]) -> str:
    return "\n".join(f"  {line}" for line in diff(study.config, resolved))


def _settled(config: StudyConfig, prepared: Preparation) -> StudyConfig:
    return config.settled(**{name: getattr(prepared, name) for name in OPEN})


def prepare(config: StudyConfig, executor: Executor, begun: Collection[str] = ()) -> Preparation:
    """Load the workload and take two throw-away steps, with every optimizer and at every end of the batch sizes.

    What a study that begins leaves open is timed; one of which ways have `begun` has been settled, or goes by the
    device as before.
    Raises what the user must mend before any trial can run.
    """
    slots, begins = executor.slot_count, not begun
    requests = _gang_requests(config, slots)
    open_to: tuple[Compiling, ...] = ()
    if begins and config.training.compile == "auto":
        open_to = ("graphs", "on") if config.gangs == "off" else ("graphs", "gangs")
    seed, epochs = config.seeds[0], config.planned_epochs() / slots if begins else 0.0
    work = partial(prepare_all, _variants(config), seed, requests, epochs, open_to=open_to, slots=slots)
    everywhere = executor.prepare(work)
    if not all(has_same_data(one, everywhere[0]) for one in everywhere):
        raise WorkloadError(
            "The data of the workload are others in each process, so trials could not be compared: seed what chance "
            "they draw, as in np.random.default_rng(0), and sort what has no order of its own, such as sets and lists "
            "of files."
        )
    prepared = pooled(everywhere)
    if open_to and prepared.compile in ("on", "graphs"):  # everywhere, also where timing has found otherwise
        executor.prepare(partial(prepare_all, _variants(_settled(config, prepared)), seed))
    for key, strategy in config.strategies.items():
        schedules = _schedules(config, key, strategy, begins=key not in begun)
        for schedule, facts in product(schedules, _facts(config, key, prepared.facts, begins=key not in begun)):
            _check_schedule(config, key, schedule, facts)
    metric = prepared.facts.metric
    if config.target is not None and config.target.metric != metric:
        raise UsageError(
            f"target.metric must be {metric!r}, which the workload measures, got {config.target.metric!r}."
        )
    if config.target is not None and config.workload_choice().settings.get("metric") is None:  # which may be in percent
        _check_target(config.target.value, prepared.facts)
    return prepared


def _check_target(value: float, facts: WorkloadFacts) -> None:
    """Raise UsageError for a target that the metric cannot reach; of one whose range nobody knows nothing is said."""
    known, chance = KNOWN_RANGES.get(facts.metric), facts.chance
    if known is None or chance is None or not known.low <= chance <= known.high:
        return
    if not known.low <= value <= known.high:
        bound = f"at most {known.high:g}" if value > known.high else f"at least {known.low:g}"
        hint = ": give 0.95 for 95 %" if known.high == 1 < value else ""
        raise UsageError(f"target.value must be {bound}, beyond which {facts.metric} never lies, got {value:g}{hint}.")


def _variants(config: StudyConfig) -> list[tuple[Choice, TrainingPlan]]:
    """Return the workload and the training of the study, and of its ways that have others."""
    workload, plan = config.workload_choice(), config.training_plan()
    return [
        (workload, plan),
        *(
            (with_batch_size(workload, batch_size), replace(plan, optimizer=optimizer or plan.optimizer))
            for optimizer, batch_size in config.variants()
        ),
    ]


def _timed(config: StudyConfig, settled: StudyConfig) -> Iterator[str]:
    """Yield what timing has chosen where training is `auto`; of what is so by default, only what torch does not do."""
    chosen = {key: getattr(settled.training, key) for key in OPEN if getattr(config.training, key) == "auto"}
    told = [f"{key}: {value}" for key, value in chosen.items() if value not in ("auto", "off", "contiguous", "default")]
    if told:
        yield f"Timing chose {' and '.join(told)}."


def _together(choice: GangChoice) -> Iterator[str]:
    """Yield how many trials train together, or why they train otherwise than the study file allows."""
    if choice.reason:
        yield f"Trials train alone, although gangs is auto: {choice.reason}."
        return
    if choice.size > 1 and choice.solo is not None:
        share = dict(choice.measured)[choice.size] / choice.solo.step_seconds
        step = "a compiled step" if choice.compiled else "a step"
        yield f"Up to {choice.size} trials train together: {step} takes {share:.2f} of a step alone for each."
    if choice.across > choice.size:
        yield f"Up to {choice.across} trials of several seeds train together."
    if choice.reason_across:
        yield f"Trials of several seeds train apart: {choice.reason_across}."
    if choice.reason_compiled:
        yield f"Trials train together uncompiled, although training.compile says otherwise: {choice.reason_compiled}."


def _reading_text(reading: Reading) -> str:
    step, batch = (f"{1e3 * seconds:.3g} ms" for seconds in (reading.step_seconds, reading.batch_seconds))
    return (
        f"The training data are read in Python, example by example: of the {step} of a step {batch} are for its batch. "
        "Tensors, (inputs, targets), or a Dataset of at most 1 GiB that is the same each time would cost next to "
        "nothing."
    )


def _gang_requests(config: StudyConfig, slots: int) -> list[GangRequest]:
    """Return the kinds of trials that may train together."""
    kinds: dict[str, list[str]] = {}
    for key in config.strategies if config.gangs == "auto" else ():
        kinds.setdefault(kind_of(config, key), []).append(key)
    requests = [_gang_request(config, keys, slots) for keys in kinds.values()]
    return [request for request in requests if request.most_across > 1]


def _gang_request(config: StudyConfig, keys: Sequence[str], slots: int) -> GangRequest:
    """Return how many trials of these ways there are at once: training runs, range tests, or what confirms them.

    The slots share them.
    """
    seeds, fresh, epochs = len(config.seeds), config.confirmation_seeds or 0, 0.0
    runs_at_once, repeats = 0, []
    for key in keys:
        strategy = config.strategies[key]
        tests = strategy.planned_trials - 1 if isinstance(strategy, SharesTests) else 0
        runs = strategy.planned_trials - tests
        runs_at_once += min(runs, at_once(strategy))
        repeats += [tests] if tests else []
        epochs += (runs + fresh) * config.training_plan_of(key).epochs * seeds
    # How many see the same data, and how many times so many there are.
    counts = [(runs_at_once, seeds), (len(repeats), seeds * max(repeats, default=0)), (len(keys) * seeds, fresh)]
    across = [math.ceil(same * crowds / slots) for same, crowds in counts]
    return GangRequest(
        config.workload_choice(),
        config.training_plan_of(keys[0]),
        most=max(min(same, most) for (same, _), most in zip(counts, across, strict=True)),
        most_across=max(across),
        crowds=max(crowds for _, crowds in counts),
        epochs=epochs / slots,
        forecasts=config.budget is not None,
    )


def _schedules(config: StudyConfig, key: str, strategy: Strategy, *, begins: bool) -> Iterator[Choice]:
    """Yield a way's schedule, of one that begins with all ends of what it searches among its settings."""
    if (template := getattr(strategy, "schedule", None)) is None:
        return
    schedule: Choice = template.choice()
    searched = config.searched(key) if begins else {}
    ends = {name: one.extremes for name, one in searched.items() if name in schedule.settings}
    for values in product(*ends.values()):
        yield Choice(schedule.name, {**schedule.settings, **dict(zip(ends, values, strict=True))})


def _facts(config: StudyConfig, key: str, facts: WorkloadFacts, *, begins: bool) -> Iterator[WorkloadFacts]:
    """Yield what a way trains on: of a search over batch sizes both ends, where it begins."""
    searched = config.searched(key).get(BATCH_SIZE)
    if searched is None:
        yield facts
        return
    for size in map(int, searched.extremes) if begins else ():
        yield replace(facts, batch_size=size, steps_per_epoch=facts.train_count // size)


def _check_schedule(config: StudyConfig, key: str, schedule: Choice, facts: WorkloadFacts) -> None:
    """Raise UsageError when a way's schedule does not fit into its run, or its optimizer has no momentum for it."""
    plan, searches = config.training_plan_of(key), BATCH_SIZE in config.searched(key)
    try:
        planned = plan_schedule(
            schedule,
            learning_rate=config.rates.high,
            base_lr=None,
            max_lr=config.rates.high,
            total_steps=planned_steps(plan, facts),
            steps_per_epoch=facts.steps_per_epoch,
        )
    except UsageError as error:
        batches = f" (with batches of {facts.batch_size})" if searches else ""
        raise UsageError(f"strategies.{key}{batches}: {error}") from error
    if planned.momentum is not None and not {"momentum", "betas"} & plan.optimizer.settings.keys():
        raise UsageError(
            f"strategies.{key}.schedule: {plan.optimizer.name} has no momentum to schedule; remove base_momentum and "
            "max_momentum."
        )


def _as_the_file_says(
    config: StudyConfig, store: Store, observer: Observer, study: StudyRow, facts: WorkloadFacts, *, extend: bool
) -> StudyRow:
    """Return the row of the study, whose lease is held, as it is by now, or extended by what the file adds."""
    study = _find_study(study.name, store, study.version) or study
    _check_unchanged(config, study, extend=extend)  # another process may have extended it before the lease was ours
    _check_same_task(study, facts)
    if study.config == config.resolved():
        return study
    if study.fingerprint != config.fingerprint():  # else it changes no trial, such as the budget
        observer.message(f"Extending study {study.name!r}:\n{_changes(study, config.resolved())}")
    return store.extend_study(study.id, config.resolved(), config.fingerprint())


@dataclass(frozen=True)
class Forecast:
    """What a study would cost, from a timed probe: seconds on this device, all seeds together."""

    trials: dict[str, int]
    seconds: dict[str, float]
    """Charged device seconds by strategy."""
    device: str
    probe: str
    confirmations: int
    """Runs that confirm choices, if no two searches of a way choose alike."""
    confirmation_seconds: float
    """What they would take; on no way's bill."""

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


def forecast(config: StudyConfig) -> Forecast:
    """Time a few steps on the device and return what each way would cost; nothing is stored."""
    from lrsearch import training
    from lrsearch.memory_format import faster_memory_format
    from lrsearch.precision import faster_matmul

    plan, workload, seed = config.training_plan(), config.workload_choice(), config.seeds[0]
    prepared = training.prepare(workload, plan, seed)
    steps = round(config.planned_epochs() * prepared.facts.steps_per_epoch)
    settle = partial(
        replace, memory_format=faster_memory_format(workload, plan, seed, steps), precision=prepared.precision
    )
    settle = partial(settle, matmul=faster_matmul(workload, settle(plan), seed, steps))
    plan = settle(plan)
    of_study = training.probe(workload, plan, seed)
    probes = {likeness(workload, plan): of_study}
    trials = config.planned_trials()
    seconds, fresh, confirming = {}, len(config.seeds) * (config.confirmation_seeds or 0), 0.0
    for key, strategy in config.strategies.items():
        own = settle(config.training_plan_of(key))
        epochs, kind = own.epochs, likeness(workload, own)
        if kind not in probes:  # the way has an optimizer of its own
            training.prepare(workload, own, seed, evaluates=False)
            probes[kind] = training.probe(workload, own, seed)
        probe = probes[kind]
        train_seconds = epochs * (prepared.facts.steps_per_epoch * probe.step_seconds + probe.validation_seconds)
        first = strategy.propose(Search(key, seed, strategy).history(config, prepared.facts), 1)
        test = first[0].range_test if first else None
        test_seconds, tests = 0.0, 0
        if test is not None:
            rungs = range_test_steps(test, prepared.facts.steps_per_epoch)
            test_seconds = rungs * probe.step_seconds + evaluation_count(rungs) * probe.range_test_seconds
            tests = trials[key] - len(config.seeds)
        seconds[key] = (trials[key] - tests) * train_seconds + tests * test_seconds
        confirming += fresh * train_seconds
    threads = wording.counted(prepared.device.threads, "thread")
    return Forecast(
        trials=trials,
        seconds=seconds,
        device=f"{prepared.device.name} ({prepared.device.kind}, {threads})",
        probe=(
            f"{of_study.step_seconds * 1e3:.2f} ms per step of {prepared.facts.batch_size}, "
            f"{of_study.validation_seconds * 1e3:.1f} ms per evaluation, "
            f"{planned_steps(plan, prepared.facts)} steps per trial"
        ),
        confirmations=fresh * len(config.strategies),
        confirmation_seconds=confirming,
    )
