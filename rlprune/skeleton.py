"""The typed skeleton of every command's configuration; all defaults are in the yaml files."""

import math
import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from rlprune.errors import UserError
from rlprune.memory import LARGEST_SIDE

MOST = 10**18  # of any setting; larger numbers overflow where they are used
EXPORT_FORMATS = ("onnx", "torch_export")


@dataclass
class Paths:
    """Folders."""

    outputs: str = MISSING  # runs, dense networks and caches
    data: str = MISSING  # downloaded data sets
    run: str = MISSING  # folder of this run


@dataclass
class ScheduleConfig:
    """How much goes, and when."""

    sparsity: float | None = MISSING  # channel sparsity to reach, in (0, 1); null: budget.* says how much goes
    steps: int | None = MISSING  # pruning steps; null: the agent's, or one for each channel group
    period: int = MISSING  # recover after so many steps
    save_at: list[float] = MISSING  # sparsities, besides the last, that get an artefact, a table row and a final recovery
    min_keep: int = MISSING  # units that stay in every group
    # a group keeps a multiple of so many units, or stays whole; auto: the multiple that this device likes
    round_to: Any = field(default=MISSING, metadata={"plugin": False})
    # share of its units that a group may lose: one number, or a mapping group (name or regex) → share
    max_sparsity: Any = field(default=MISSING, metadata={"plugin": False})
    max_minutes: float | None = MISSING  # the search ends after so many minutes with the best so far; null: never
    # train from scratch and prune at once: each step trains an epoch and decides anew, and what is decided goes behind the last
    joint: bool = MISSING


@dataclass
class BudgetConfig:
    """How small the network gets, beside `schedule.sparsity`; removal goes on until all that is set holds."""

    macs: float | None = MISSING  # largest share kept of the dense network's MACs, in (0, 1)
    params: float | None = MISSING  # likewise of its parameters
    latency: float | None = MISSING  # likewise of its latency on this device, as predicted
    max_drop: float | None = MISSING  # largest loss of accuracy on the search split after recovery, points


@dataclass
class LatencyConfig:
    """What `budget.latency`, `reward=latency` and `schedule.round_to=auto` call latency: a forward pass in float32, uncompiled."""

    batch_size: int = MISSING  # images a pass


@dataclass
class SearchConfig:
    """What a search may measure."""

    samples: int | None = MISSING  # images of the search split that candidates are measured on; null: all
    max_candidates: int | None = MISSING  # distinct candidates a step; null: as many as the agent asks for
    recalibrate_bn: int = MISSING  # training images on which a candidate's batch norms take new statistics; 0: they keep the old ones
    recover_batches: int = MISSING  # training batches a candidate recovers on before it is measured; 0: none
    execution: str = MISSING  # of candidates: sliced, padded (zeros to multiples of 16), masked (zeros alone), or auto: the fastest


@dataclass
class RecipeConfig:
    """How weights are updated."""

    batch_size: int = MISSING
    lr_schedule: str = MISSING  # one_cycle, cosine, step or constant
    lr_milestones: list[int] = MISSING  # epochs after which lr_schedule=step lowers the rate
    lr_gamma: float = MISSING  # the factor it is lowered by
    warmup_epochs: float = MISSING  # over which the rate rises from zero
    clip_norm: float | None = MISSING  # largest norm of the gradient; null: no bound
    optimizer: Any = MISSING


@dataclass
class TrainingConfig(RecipeConfig):
    """Dense training."""

    epochs: int = MISSING
    label_smoothing: float = MISSING
    randaugment: int | None = MISSING  # magnitude of two random operations an image, 0 to 30; null: none
    mixup: float = MISSING  # α of the Beta distribution; 0: none
    cutmix: float = MISSING  # likewise; with both, each batch takes one of them
    ema: float | None = MISSING  # decay of the moving average of the weights that becomes the result; null: the weights themselves
    save_minutes: float = MISSING  # between two saves of the state that a killed training goes on from


@dataclass
class RecoveryConfig(RecipeConfig):
    """Recovery after pruning."""

    enabled: bool = MISSING
    rho: float = MISSING  # weight of the teacher; 0: fine-tuning
    temperature: float = MISSING
    epochs: int = MISSING  # after every `schedule.period` steps
    final_epochs: int = MISSING  # at every saved level
    control: bool = MISSING  # also train the dense network for the same epochs, as a row of the table


@dataclass
class RunConfig:
    """What every command that runs networks shares."""

    seed: int = MISSING
    dense_seed: int = MISSING  # of the search split, the first weights and dense training
    device: str = MISSING  # auto, cpu, cuda, cuda:N or free
    precision: str = MISSING  # auto, fp32 or bf16
    channels_last: str = MISSING  # auto, true or false
    compile: bool = MISSING  # torch.compile for dense training
    checkpoint: str | None = MISSING  # weights to start from; null: those of an earlier run, or train them
    paths: Paths = field(default_factory=Paths)
    model: Any = MISSING
    dataset: Any = MISSING
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class TrainConfig(RunConfig):
    """`rlprune train`."""

    tracker: Any = MISSING  # what shows the run while it goes on
    like: str | None = MISSING  # run or artefact folder whose pruned architecture is trained from scratch; null: a dense network
    grid: Any = field(default=MISSING, metadata={"plugin": False})  # of a preset: the runs that it consists of (rlprune.grid)
    equal_compute: bool = MISSING  # with like: for as many MACs as training.epochs of the dense network take, thus more epochs
    resume: str | None = MISSING  # run folder to continue; true: the newest one of this line; null or false: none


@dataclass
class PruneConfig(RunConfig):
    """`rlprune prune`."""

    grid: Any = field(default=MISSING, metadata={"plugin": False})  # of a preset: the runs that it consists of (rlprune.grid)
    ignore: list[str] = MISSING  # layers to leave alone: names or regular expressions
    resume: str | None = MISSING  # run folder to continue; true: the newest one of this line; null or false: none
    tracker: Any = MISSING  # what shows the run while it goes on
    agent: Any = MISSING
    evaluator: Any = MISSING  # who measures candidates
    reward: Any = MISSING
    criterion: Any = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)


@dataclass
class EvaluateConfig(RunConfig):
    """`rlprune evaluate`."""

    run: str | None = MISSING  # run or artefact folder; null: evaluate `model` with `checkpoint`


@dataclass
class SensitivityConfig(RunConfig):
    """`rlprune sensitivity`."""

    run: str | None = MISSING  # run or artefact folder: its dense and its pruned network; null: the dense network of `model`
    ignore: list[str] = MISSING  # layers to leave out, beside those that the run left alone
    resume: str | None = MISSING  # run folder to continue; true: the newest one of this line; null or false: none
    criterion: Any = MISSING
    shares: list[float] = MISSING  # of a group's units that go, each in (0, 1)
    samples: int | None = MISSING  # images of the search split that networks are measured on; null: all
    recalibrate_bn: int = (
        MISSING  # training images on which batch norms take new statistics before a network is measured; 0: they keep theirs
    )


@dataclass
class BenchConfig:
    """`rlprune bench`."""

    seed: int = MISSING  # of the images, which are noise, and of first weights
    device: str = MISSING  # auto, cpu, cuda, cuda:N or free
    channels_last: str = MISSING  # auto, true or false
    checkpoint: str | None = MISSING  # weights of the dense network; null: those of the run, or first ones
    run: str | None = MISSING  # run or artefact folder: its dense and its pruned network; null: the dense network of `model`
    image_size: int | None = MISSING  # side of the images, pixels; null: what the network was made for, or else the data set's
    batch_sizes: list[int] = MISSING
    runtimes: list[str] = MISSING  # eager, compiled, onnxruntime
    precisions: list[str] = MISSING  # fp32, bf16
    threads: int | None = MISSING  # on the CPU, of torch and onnxruntime alike; null: as many as torch takes by itself
    seconds: float = MISSING  # that each row is timed for
    rounds: int = MISSING  # turns in which that happens
    paths: Paths = field(default_factory=Paths)
    model: Any = MISSING
    dataset: Any = MISSING

    @property
    def dense_seed(self) -> int:
        """Of first weights, as the other commands call it."""
        return self.seed


@dataclass
class ExportConfig(RunConfig):
    """`rlprune export`."""

    run: str | None = MISSING  # run or artefact folder
    format: str = MISSING  # onnx or torch_export
    opset: int | None = MISSING  # ONNX operator set; null: torch's default
    dynamic_batch: bool = MISSING  # takes any number of images; false: one
    fold_bn: bool = MISSING  # batch norms are folded into the layers before them
    images: int = MISSING  # of the search split, on which the file is compared with torch; 0: noise, and no data set is needed
    tolerance: float = MISSING  # largest difference between two scores, as a share of the largest score where that is above 1
    dense: bool = MISSING  # measure the file of the dense network, too
    out: str | None = MISSING  # the file; null: RUN/export/ARTEFACT.onnx


@dataclass
class InspectConfig(RunConfig):
    """`rlprune inspect`."""

    run: str | None = MISSING  # run or artefact folder: what its plan removed; null: the dense network of `model`
    draw: str = MISSING  # png, svg, pdf or none: of what is drawn beside the table
    ignore: list[str] = MISSING
    verify: bool = MISSING  # prove every group: zeroed equals removed
    sheet: bool = MISSING  # show the data set instead: sizes, class balance, a sheet of pictures
    image_size: int | None = MISSING  # side of the example image, pixels; null: what the model was made for, or else the data set's


@dataclass
class ReportConfig:
    """`rlprune report`."""

    table: str | None = MISSING  # a paper's table or figure, or its small edition, in its own layout
    runs: Any = field(default=MISSING, metadata={"plugin": False})  # glob over run folders, or a list of globs; null: all, or the table's
    select: Any = field(default=MISSING, metadata={"plugin": False})  # key → value, or list of values, that a run must have; null: all runs
    rows: list[str] = MISSING  # config groups, settings or seed that get a column, and lines of their own, beside model, target and agent
    average: list[str] = MISSING  # settings that may differ within a line
    columns: list[str] = MISSING  # of the table, in their order
    sort: list[str] = MISSING  # columns to order by, -NAME for descending; []: blocks of what may be compared
    baseline: str = MISSING  # agent that the others are compared with, paired by seed
    mixed: bool = MISSING  # allow runs on different data or splits beside each other
    plots: bool = MISSING  # draw some
    paths: Paths = field(default_factory=Paths)


def _check_numbers(value: Any, key: str) -> None:
    """Whole numbers that 64 bits hold, and floating-point ones that are some."""
    if is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, dict):
        for name, item in value.items():
            _check_numbers(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            _check_numbers(item, key)
    elif isinstance(value, float):
        _require(math.isfinite(value), f"{key}={value}", "must be a finite number")
    elif isinstance(value, int):
        shown = f"={value:.3g}" if abs(value) < 1e300 else ""
        _require(abs(value) < MOST, f"{key}{shown}", f"must be a number between ± {MOST:.0e}")


def check_ranges(config: Any) -> None:
    """Values that types alone cannot refuse."""
    _check_numbers(config, "")
    for key, value in (("training", getattr(config, "training", None)), ("recovery", getattr(config, "recovery", None))):
        if value is not None:
            _require(value.batch_size >= 2, f"{key}.batch_size={value.batch_size}", "must be ≥ 2, as batch norm cannot train on one image")
            _require(value.epochs >= 0, f"{key}.epochs={value.epochs}", "must be ≥ 0")
            _require(value.clip_norm is None or value.clip_norm > 0, f"{key}.clip_norm={value.clip_norm}", "must be > 0, or null")
            schedules = ("one_cycle", "cosine", "step", "constant")
            _require(value.lr_schedule in schedules, f"{key}.lr_schedule={value.lr_schedule}", f"must be one of {', '.join(schedules)}")
            whole = all(isinstance(epoch, int) for epoch in value.lr_milestones)
            ordered = whole and value.lr_milestones == sorted(set(value.lr_milestones)) and min(value.lr_milestones, default=1) > 0
            _require(ordered, f"{key}.lr_milestones={value.lr_milestones}", "must be epochs in ascending order, such as [60,120]")
            steps = (value.lr_schedule == "step") == bool(value.lr_milestones)
            _require(steps, f"{key}.lr_milestones={value.lr_milestones}", "goes with lr_schedule=step alone; [] for the others")
            _require(value.lr_gamma > 0, f"{key}.lr_gamma={value.lr_gamma}", "must be > 0")
            _require(value.warmup_epochs >= 0, f"{key}.warmup_epochs={value.warmup_epochs}", "must be ≥ 0")
            warm = value.warmup_epochs == 0 or value.lr_schedule != "one_cycle"
            _require(warm, f"{key}.warmup_epochs={value.warmup_epochs}", "goes not with lr_schedule=one_cycle, which has its own warm-up")
    if isinstance(config, RunConfig):
        _require(
            0 <= config.training.label_smoothing < 1, f"training.label_smoothing={config.training.label_smoothing}", "must be in [0, 1)"
        )
        training = config.training
        _require(
            training.randaugment is None or 0 <= training.randaugment <= 30,
            f"training.randaugment={training.randaugment}",
            "must be in 0..30, or null",
        )
        _require(training.mixup >= 0, f"training.mixup={training.mixup}", "must be ≥ 0")
        _require(training.cutmix >= 0, f"training.cutmix={training.cutmix}", "must be ≥ 0")
        _require(training.ema is None or 0 < training.ema < 1, f"training.ema={training.ema}", "must be in (0, 1), or null")
        _require(training.save_minutes >= 0, f"training.save_minutes={training.save_minutes}", "must be ≥ 0")
        _require(config.seed >= 0, f"seed={config.seed}", "must be ≥ 0")
        _require(config.dense_seed >= 0, f"dense_seed={config.dense_seed}", "must be ≥ 0")
    if isinstance(config, SensitivityConfig):
        _check_sensitivity(config)
    if isinstance(config, InspectConfig | BenchConfig):
        side = config.image_size
        _require(side is None or 1 <= side <= LARGEST_SIDE, f"image_size={side}", f"must be ≥ 1 and ≤ {LARGEST_SIDE} pixels, or null")
    if isinstance(config, InspectConfig):
        _require(config.draw in ("png", "svg", "pdf", "none"), f"draw={config.draw}", "must be one of png, svg, pdf, none")
    if isinstance(config, BenchConfig):
        _check_bench(config)
    if isinstance(config, ExportConfig):
        _check_export(config)
    if isinstance(config, PruneConfig):
        known = not config.schedule.joint or config.schedule.steps is not None
        _require(known, "schedule.steps=null", "must be the epochs of joint training, such as schedule.steps='${training.epochs}'")
        epochs = config.schedule.joint and config.training.epochs == config.schedule.steps == 0
        _require(not epochs, "training.epochs=0", "must be ≥ 1 for joint training, which trains from scratch")
        _check_schedule(config.schedule)
        _check_budget(config.budget)
        _require(1 <= config.latency.batch_size <= 1 << 16, f"latency.batch_size={config.latency.batch_size}", "must be ≥ 1 and ≤ 65536")
        recovery, search = config.recovery, config.search
        _require(0 <= recovery.rho <= 1, f"recovery.rho={recovery.rho}", "must be in [0, 1]")
        _require(recovery.temperature > 0, f"recovery.temperature={recovery.temperature}", "must be > 0")
        _require(recovery.final_epochs >= 0, f"recovery.final_epochs={recovery.final_epochs}", "must be ≥ 0")
        _require(search.samples is None or search.samples >= 1, f"search.samples={search.samples}", "must be ≥ 1, or null for all")
        _require(
            search.max_candidates is None or search.max_candidates >= 1,
            f"search.max_candidates={search.max_candidates}",
            "must be ≥ 1, or null",
        )
        _require(search.recalibrate_bn >= 0, f"search.recalibrate_bn={search.recalibrate_bn}", "must be ≥ 0 images")
        _require(search.recover_batches >= 0, f"search.recover_batches={search.recover_batches}", "must be ≥ 0 batches")
        trained = search.execution in ("padded", "masked") and search.recover_batches > 0  # what is zero would be trained
        _require(not trained, f"search.execution={search.execution}", "goes not with search.recover_batches; use sliced")
        _require(search.recalibrate_bn != 1, "search.recalibrate_bn=1", "one image has no variance; 0 for none, or some hundred")
        executions = ("auto", "sliced", "padded", "masked")
        _require(search.execution in executions, f"search.execution={search.execution}", f"must be one of {', '.join(executions)}")


def _check_sensitivity(config: SensitivityConfig) -> None:
    shares = config.shares
    _require(bool(shares), "shares=[]", "name at least one share of a group's units, such as shares=[0.5]")
    _require(all(0 < share < 1 for share in shares), f"shares={shares}", "each must be in (0, 1); 0.5 removes half of a group's units")
    _require(config.samples is None or config.samples >= 1, f"samples={config.samples}", "must be ≥ 1, or null for all")
    _require(config.recalibrate_bn >= 0, f"recalibrate_bn={config.recalibrate_bn}", "must be ≥ 0 images")
    _require(config.recalibrate_bn != 1, "recalibrate_bn=1", "one image has no variance; 0 for none, or some hundred")


def _check_bench(config: BenchConfig) -> None:
    _require(config.seed >= 0, f"seed={config.seed}", "must be ≥ 0")
    sizes = config.batch_sizes
    _require(bool(sizes), "batch_sizes=[]", "name at least one number of images, such as batch_sizes=[1]")
    _require(all(size >= 1 for size in sizes), f"batch_sizes={sizes}", "each must be ≥ 1")
    for key, words in (("runtimes", ("eager", "compiled", "onnxruntime")), ("precisions", ("fp32", "bf16"))):
        named = getattr(config, key)
        _require(bool(named), f"{key}=[]", f"name at least one of {', '.join(words)}")
        wrong = [word for word in named if word not in words]
        _require(not wrong, f"{key}={named}", f"{', '.join(wrong)} is unknown; choose from {', '.join(words)}")
    both = config.runtimes != ["onnxruntime"] or "fp32" in config.precisions
    _require(both, f"precisions={config.precisions}", "onnxruntime computes in fp32 alone; precisions=[fp32]")
    formats = ("auto", "true", "false")
    chosen = str(config.channels_last).lower()
    _require(chosen in formats, f"channels_last={config.channels_last}", f"unknown; choose {', '.join(formats)}")
    _require(config.threads is None or config.threads >= 1, f"threads={config.threads}", "must be ≥ 1, or null for as many as torch takes")
    _require(config.seconds > 0, f"seconds={config.seconds}", "must be > 0")
    _require(config.rounds >= 1, f"rounds={config.rounds}", "must be ≥ 1")


def _check_export(config: ExportConfig) -> None:
    _require(config.run is not None, "run", "name a run folder, run=outputs/prune/RUN, or an artefact folder in it")
    _require(config.format in EXPORT_FORMATS, f"format={config.format}", f"unknown; choose one of {', '.join(EXPORT_FORMATS)}")
    _require(config.images >= 0, f"images={config.images}", "must be ≥ 1, or 0 where the data set is not there: noise is taken then")
    _require(config.tolerance > 0, f"tolerance={config.tolerance}", "must be > 0")
    fixed = {"device": "cpu", "precision": "fp32", "channels_last": "false", "compile": "false", "checkpoint": "none"}
    for key, only in fixed.items():
        value = str(getattr(config, key)).lower()
        _require(value == only, f"{key}={value}", "networks are exported as the run left them, in float32, on the CPU; leave it out")


def _check_budget(budget: BudgetConfig) -> None:
    for name in ("macs", "params", "latency"):
        share = getattr(budget, name)
        _require(share is None or 0 < share < 1, f"budget.{name}={share}", "must be in (0, 1), or null; 0.5 keeps at most half")
    _require(
        budget.max_drop is None or 0 <= budget.max_drop < 100,
        f"budget.max_drop={budget.max_drop}",
        "must be in [0, 100) points, or null",
    )


def _check_schedule(schedule: ScheduleConfig) -> None:
    sparsity = schedule.sparsity
    _require(sparsity is None or 0 < sparsity < 1, f"schedule.sparsity={sparsity}", "must be in (0, 1); 0.5 removes half of the channels")
    whole = isinstance(schedule.round_to, int) and not isinstance(schedule.round_to, bool) and schedule.round_to >= 1
    rounds = whole or schedule.round_to == "auto"
    _require(rounds, f"schedule.round_to={schedule.round_to}", "must be ≥ 1, where 1 does not round, or auto")
    _check_max_sparsity(schedule.max_sparsity)
    _require(schedule.steps is None or schedule.steps >= 1, f"schedule.steps={schedule.steps}", "must be ≥ 1")
    _require(schedule.period >= 1, f"schedule.period={schedule.period}", "must be ≥ 1; recovery=none switches recovery off")
    _require(schedule.min_keep >= 1, f"schedule.min_keep={schedule.min_keep}", "must be ≥ 1")
    _require(
        schedule.max_minutes is None or schedule.max_minutes > 0, f"schedule.max_minutes={schedule.max_minutes}", "must be > 0, or null"
    )
    for level in schedule.save_at:
        _require(
            0 < level <= (1 if sparsity is None else sparsity),
            f"schedule.save_at={schedule.save_at}",
            f"{level} must be in (0, schedule.sparsity={sparsity}]",
        )


def _check_max_sparsity(value: Any) -> None:
    """One share, or a mapping of them, whose keys are names or regular expressions."""
    shares = value if isinstance(value, dict) else {"": value}
    for pattern, share in shares.items():
        subject = f"schedule.max_sparsity{f'.{pattern}' if pattern else ''}={share}"
        number = isinstance(share, int | float) and not isinstance(share, bool)
        _require(number and 0 <= share <= 1, subject, "must be a share in [0, 1], or a mapping such as {'layer1.*': 0.5}")
        try:
            re.compile(str(pattern))
        except re.error as error:
            raise UserError(f"schedule.max_sparsity: {pattern} is no regular expression ({error})") from error


def _require(holds: bool, subject: str, message: str) -> None:
    if not holds:
        raise UserError(f"{subject}: {message}")
