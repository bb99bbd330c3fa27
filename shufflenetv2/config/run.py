"""Options of a run: where it happens, what it writes, and how it ends."""

from typing import Annotated, Literal

from pydantic import AfterValidator

from .fields import group, option
from .types import Accepts, Count, File, Folder, IntegerChoice, Interval, Name, Names, Text, Workers

REFERENCE_VAL_INTERVAL = 10_000

Backend = Annotated[Name, Accepts("the name of a backend of torch.compile", "BACKEND", implied="inductor")]
ResumeFile = Annotated[
    Name,
    AfterValidator(lambda name: "" if name == "auto" else name),
    Accepts("a file name, or auto", "FILE", implied="auto"),
]
Files = Annotated[tuple[Name, ...], Accepts("file names", "FILE")]
Hooks = Annotated[Names, Accepts("package.module:Class", "MODULE:CLASS", "+")]
QUIET = "print only warnings, errors and the last lines"
USE_EMA = "take the averaged weights (EMA) of a checkpoint; see `model_ema`"


@group("common")
class CommonConfig:
    """Folders, device and other settings that every part of the program uses."""

    config: Files = option(
        (), "YAML file of options; may be repeated: later files win, and the command line wins over files", short="-c"
    )
    save: Folder = option(
        "./models", "folder for checkpoints and the final model.pkl", aliases=("--output", "--work-dir", "--output-dir")
    )
    log_dir: Folder = option(
        None,
        "folder for logs, in which each run has a subfolder named like the last part of `save`; default: ./logs for ./models "
        "and its subfolders (experiments), and DIR/logs for any other `save` DIR",
    )
    experiment: Text = option("", "name of the run, used as a subfolder of `save`; a later `save` replaces that of a file")
    device: Text = option("auto", "auto, cpu, cuda, cuda:N or mps; auto uses every GPU of the machine")
    workers: Workers | None = option(
        None,
        "number of threads that load images, per process; default: the usable cores, divided among the processes",
        short="-j",
    )
    quiet: bool = option(False, QUIET)
    debug: bool = option(False, "show the traceback of an error")


@group("execution")
class ExecutionConfig:
    """Numeric precision, memory layout and compilation."""

    channels_last: bool = option(
        False,
        "store activations with interleaved channels (NHWC): faster on a CPU, with slightly different rounding",
        recipe=True,
    )
    amp: bool = option(False, "compute in `amp_dtype` where that is safe (automatic mixed precision)", recipe=True)
    amp_dtype: Literal["bfloat16", "float16"] = option(
        "bfloat16", "data type for `amp`; with float16 the loss is scaled", recipe=True
    )
    torchcompile: Backend = option("", "compile the network for training; without a value the backend is inductor", recipe=True)
    torchscript: bool = option(False, "train the network as a TorchScript program", recipe=True)
    deterministic: bool = option(
        False, "refuse operations whose result varies from run to run", aliases=("--use-deterministic-algorithms",), recipe=True
    )


@group("running")
class RunConfig:
    """Checkpoints, log lines, validation and extensions of a training run."""

    auto_continue: bool = option(True, "start over instead of continuing from the newest checkpoint in `save`")
    resume: ResumeFile = option(
        "",
        "checkpoint to continue from if there is none in `save`; without a name the run continues by itself, as always",
        aliases=("--resume-from",),
    )
    resume_opt: bool = option(True, "take only the weights and the iteration from the `resume` checkpoint")
    prolong: bool = option(False, "train the run in `save` longer, to a larger `total_iters`")
    change_recipe: bool = option(
        False, "go on with the run in `save` under the present options, for instance another batch size, rate or augmentation"
    )
    on_nonfinite: Literal["stop", "skip", "rollback"] = option(
        "stop",
        "reaction to a loss that is not finite: end the run, or return to the newest checkpoint and leave out that iteration "
        "(skip) or all iterations up to it (rollback)",
    )
    display_interval: Count = option(
        20, "number of iterations between two TRAIN lines", aliases=("--log-interval", "--print-freq")
    )
    validate: bool = option(True, "do not validate during training")
    val_interval: Count = option(
        None,
        f"number of iterations between two validations; default: {REFERENCE_VAL_INTERVAL:,}, or a tenth of the run if that is "
        "less",
    )
    save_interval: Interval = option(
        "10000,1m",
        "number of iterations N, time (90s, 10m, 2h), or both, of which the first to pass counts, between two checkpoints; "
        "with both, a checkpoint between two multiples of N is deleted once there are two newer ones",
    )
    recovery_interval: Count | None = option(
        None, "number of iterations between additional checkpoints, each of which is deleted once there are two newer ones"
    )
    early_stop_iters: Count | None = option(
        None, "end the run, with its results, after this number of iterations without a better validation", recipe=True
    )
    checkpoint_hist: Count | None = option(None, "number of checkpoints to keep; default: all, apart from additional ones")
    checkpoint_by: Literal["newest", "metric"] = option(
        "newest", "which `checkpoint_hist` checkpoints to keep: the newest, or besides these those with the best `eval_metric`"
    )
    eval_metric: Literal["top1", "top5", "loss", "balanced_accuracy", "macro_f1"] = option(
        "top1",
        "validation result, of the weights or of their average, that decides which are the best, when the rate of "
        "`sched=plateau` falls, and when `early_stop_iters` ends the run",
    )
    memory_check: bool = option(True, "do not refuse a run that is estimated to need more memory than is free")
    figures: bool = option(True, "draw no figures at the end of the run")
    save_images: bool = option(False, "save a picture of the network's input with every TRAIN line")
    log_wandb: bool = option(
        False, "send the metrics to Weights & Biases too (package wandb; configured by WANDB_PROJECT, WANDB_MODE, ...)"
    )
    log_mlflow: bool = option(
        False, "send the metrics to MLflow too (package mlflow; configured by MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...)"
    )
    hook: Hooks = option((), "class whose methods are called during training; see shufflenetv2.engine.Hook")
    throughput: bool = option(False, "only measure the speed of the network and of the loader, without training")


@group("evaluation")
class EvaluationConfig:
    """Evaluation of a weight file."""

    eval: bool = option(False, "evaluate `eval_resume` on `val_dir` instead of training", aliases=("--test-only",))
    eval_resume: File = option("", "weight file, or exported file, to evaluate; default: model.pkl in `save`")
    use_ema: bool = option(False, USE_EMA)
    tta: Annotated[Literal[1, 2, 5, 10], IntegerChoice] = option(
        1, "test-time augmentation: average over the image and its mirror image (2), five crops (5), or both (10)"
    )
