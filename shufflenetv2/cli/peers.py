"""Options of other trainers that are not options here, each with the way to the same result.

The trainers are torchvision's classification reference, timm's `train.py`, mmpretrain's `tools/train.py` and ultralytics'
`yolo classify train`; names that earlier versions of them had are included. A name that means the same here is no entry, but an
alias of the option in `shufflenetv2.config`.

The module is loaded only after a mistake.
"""

import re
from collections.abc import Sequence

from ..config import Option

EPOCH = "; an epoch has (number of training images) / --batch-size iterations"
LEAVE_OUT = "; leave it out"
TORCHRUN = "torchrun tells each process its number and the address of the others" + LEAVE_OUT
OWN_DECODER = "images are decoded and transformed by code of this program" + LEAVE_OUT
NO_DECAY = "weights of convolutions and the classifier have --weight-decay, batch norm and biases none" + LEAVE_OUT
LEARNING_RATE = "here --learning-rate is the rate itself: --lr-base times --batch-size / --lr-base-size"
LAYER_DECAY = "the only learning rate that differs by layer is that of the backbone: --backbone-lr-scale"
FEATURES = "the features of networks are not compared, only their outputs" + LEAVE_OUT
NO_HUB = "data sets of the Hugging Face Hub are not read; --train-dir reads folders of images"
NAFLEX = "NaFlex is for vision transformers" + LEAVE_OUT
NO_KEYWORDS = "the network has no further arguments; its options are under 'model' in --help"
COUNTED = "the images are counted" + LEAVE_OUT

TORCHVISION = {
    "auto-augment": "here it is --aa, in timm's notation: imagenet is original, ra is about rand-m3-n2-p1, augmix is augmix-m3",
    "augmix-severity": "here it is part of --aa: --augmix-severity 3 is augmix-m3",
    "ra-magnitude": "here it is part of --aa, in tenths: --ra-magnitude 9, of 30, is about rand-m3-n2-p1",
    "ra-sampler": "here it is --aug-repeats N, with N as in --ra-reps",
    "ra-reps": "here it is --aug-repeats, which needs no --ra-sampler",
    "backend": OWN_DECODER,
    "use-v2": OWN_DECODER,
    "cache-dataset": "the list of a large folder is kept in ~/.cache by itself" + LEAVE_OUT,
    "norm-weight-decay": NO_DECAY,
    "bias-weight-decay": NO_DECAY,
    "transformer-embedding-decay": "the network has no embeddings" + LEAVE_OUT,
    "lr-scheduler": "here it is --sched: cosineannealinglr is cosine, steplr is step, exponentiallr is step with "
    "--decay-iters of one epoch",
    "lr-step-size": "here it is --decay-iters, in iterations" + EPOCH,
    "lr-warmup-epochs": "here it is --warmup-iters, in iterations" + EPOCH,
    "lr-warmup-method": "the warm-up is linear" + LEAVE_OUT,
    "lr-warmup-decay": "here --warmup-lr is the rate itself: --lr-warmup-decay times --learning-rate",
    "model-ema-steps": "the average is updated in every iteration; leave it out, and use --model-ema-decay to the power of "
    "1 / --model-ema-steps",
    "weights": "--pretrained starts from the weights that torchvision publishes, --initial-checkpoint from a file",
    "world-size": TORCHRUN,
    "dist-url": TORCHRUN,
}

TIMM = {
    "apex-amp": "apex is not used any more; use --amp",
    "native-amp": "there is no other implementation any more; use --amp",
    "amp-impl": "there is no other implementation any more; use --amp alone",
    "model-dtype": "weights are float32; --amp computes in --amp-dtype",
    "fuser": "--torchscript uses the fuser that torch chooses" + LEAVE_OUT,
    "torchcompile-mode": "--torchcompile uses torch's default mode" + LEAVE_OUT,
    "device-modules": "--device knows cpu, cuda and mps, which torch knows without further modules" + LEAVE_OUT,
    "synchronize-step": "the program waits for the device at --display-interval only" + LEAVE_OUT,
    "no-ddp-bb": "--dist-bn decides how batch-norm statistics are shared" + LEAVE_OUT,
    "grad-checkpointing": "there is none; --grad-accum-steps saves memory by dividing the batch",
    "fast-norm": "it is for layer norm, and the network has batch norm" + LEAVE_OUT,
    "model-kwargs": NO_KEYWORDS,
    "head-init-scale": "the weights of the classifier start as the original's" + LEAVE_OUT,
    "head-init-bias": "the classifier has no bias" + LEAVE_OUT,
    "pretrained-path": "here it is --initial-checkpoint, without --pretrained",
    "use-multi-epochs-loader": "the iterator never restarts" + LEAVE_OUT,
    "epoch-repeats": "the iterator never restarts; --epochs or --total-iters gives the length",
    "no-prefetcher": "batches are always loaded ahead" + LEAVE_OUT,
    "pin-mem": "memory is pinned where there is a GPU" + LEAVE_OUT,
    "worker-seeding": "the augmentation of an image depends on --seed and its position alone" + LEAVE_OUT,
    "start-epoch": "a run continues where it was; --resume continues from a checkpoint in another folder",
    "train-num-samples": COUNTED,
    "val-num-samples": COUNTED,
    "input-img-mode": "here it is --in-chans: 3 for RGB, 1 for L",
    "input-key": NO_HUB,
    "target-key": NO_HUB,
    "dataset-trust-remote-code": NO_HUB,
    "layer-decay": LAYER_DECAY,
    "layer-decay-min-scale": LAYER_DECAY,
    "layer-decay-no-opt-scale": LAYER_DECAY,
    "lr-base": LEARNING_RATE,
    "lr-base-size": LEARNING_RATE,
    "lr-base-scale": LEARNING_RATE,
    "lr-k-decay": "the schedules of --sched have no k" + LEAVE_OUT,
    "sched-on-updates": "the learning rate always changes in every iteration" + LEAVE_OUT,
    "warmup-prefix": "the warm-up replaces the beginning of the decay" + LEAVE_OUT,
    "warmup-epochs": "here it is --warmup-iters, in iterations" + EPOCH,
    "decay-epochs": "here it is --decay-iters, in iterations" + EPOCH,
    "cooldown-epochs": "here it is --cooldown-iters, in iterations" + EPOCH,
    "patience-epochs": "here it is --patience-iters, in iterations" + EPOCH,
    "mixup-off-epoch": "here it is --mixup-off-iter, in iterations" + EPOCH,
    "color-jitter-prob": "--color-jitter changes every image" + LEAVE_OUT,
    "bce-sum": "the loss is the average over the classes" + LEAVE_OUT,
    "bce-pos-weight": "positive targets have no weight of their own; --class-weights gives every class a weight",
    "kd-distill-type": FEATURES,
    "kd-student-feature-dim": FEATURES,
    "kd-teacher-feature-dim": FEATURES,
    "kd-token-distill-type": "the network has no tokens" + LEAVE_OUT,
    "kd-loss-type": "the loss is timm's kl" + LEAVE_OUT,
    "distill-loss-weight": "here it is --distill-alpha A: the loss is (1 - A) * loss of the targets + A * loss of the teacher",
    "task-loss-weight": "here --distill-alpha is one minus it",
    "wandb-project": "the environment variable WANDB_PROJECT names the project",
    "wandb-tags": "the environment variable WANDB_TAGS holds the tags",
    "wandb-resume-id": "a run continues in Weights & Biases by itself" + LEAVE_OUT,
    "naflex-loader": NAFLEX,
    "naflex-train-seq-lens": NAFLEX,
    "naflex-max-seq-len": NAFLEX,
    "naflex-patch-sizes": NAFLEX,
    "naflex-patch-size-probs": NAFLEX,
    "naflex-patchify-channels-first": NAFLEX,
    "naflex-loss-scale": NAFLEX,
}

GPUS = "--device auto uses every GPU of the machine, --device cuda:N one of them"
MMPRETRAIN = {
    "launcher": "torchrun starts several processes, and they find each other" + LEAVE_OUT,
    "local-rank": "torchrun gives each process its number" + LEAVE_OUT,
    "auto-scale-lr": "the default of --learning-rate is in proportion to --batch-size" + LEAVE_OUT,
    "autoscale-lr": "the default of --learning-rate is in proportion to --batch-size" + LEAVE_OUT,
    "cfg-options": "give each of them as an option, --name value, or all of them in a YAML file with --config",
    "options": "give each of them as an option, --name value, or all of them in a YAML file with --config",
    "no-pin-memory": "memory is pinned where there is a GPU" + LEAVE_OUT,
    "no-persistent-workers": "images are loaded by threads that live as long as the run" + LEAVE_OUT,
    "load-from": "here it is --initial-checkpoint",
    "gpus": GPUS,
    "gpu-ids": GPUS,
    "gpu-id": GPUS,
}

DETECTION = "it is for other tasks than classification" + LEAVE_OUT
PREDICTION = "it is for predictions; shufflenetv2 predict makes them"
EXPORT = "it is for exported files; shufflenetv2 export writes them"
GEOMETRY = "no such option; policies like --aa rand-m9 rotate, shear and move images"
COLOUR = "here it is --color-jitter, with one number for brightness, contrast and saturation, or three"
SGD_WARMUP = "only the learning rate has a warm-up: --warmup-iters" + EPOCH
ULTRALYTICS = {
    "task": "the task is always classification" + LEAVE_OUT,
    "mode": "this command trains, and with --eval it evaluates" + LEAVE_OUT,
    "model": "here it is --model-size, with 0.5x, 1.0x, 1.5x or 2.0x; --initial-checkpoint reads weights",
    "data": "here it is --data-dir",
    "epochs": "here it is --epochs",
    "time": "here the length is --epochs or --total-iters",
    "patience": "here it is --early-stop-iters, in iterations" + EPOCH,
    "batch": "here it is --batch-size",
    "imgsz": "here it is --input-size",
    "save": "checkpoints are always saved, at every --save-interval, into the folder --save",
    "save-period": "here it is --save-interval, in iterations or as a time",
    "cache": "nothing is cached; shufflenetv2 prepare writes smaller images once",
    "device": "here it is --device: cpu, cuda, cuda:N or mps",
    "workers": "here it is --workers",
    "project": "here it is --save",
    "name": "here it is --experiment",
    "exist-ok": "a run continues in its folder; --no-auto-continue starts over",
    "pretrained": "here it is --pretrained, or --initial-checkpoint for a file",
    "optimizer": "here it is --opt",
    "verbose": "the log goes to the terminal and to a file; --display-interval sets how often",
    "seed": "here it is --seed",
    "deterministic": "here it is --deterministic",
    "single-cls": "a classifier needs two classes" + LEAVE_OUT,
    "rect": "all images have one shape; for a rectangle --input-size takes height and width",
    "cos-lr": "here it is --sched cosine",
    "close-mosaic": "there are no mosaics" + LEAVE_OUT,
    "mosaic": "there are no mosaics" + LEAVE_OUT,
    "resume": "a run continues by itself from its newest checkpoint; --resume names a checkpoint in another folder",
    "amp": "here it is --amp",
    "fraction": "all images are used; --val-fraction holds some of them out for validation",
    "profile": "here it is --throughput, which measures the network and the loader",
    "freeze": "here it is --freeze, with names of parts: stem, stage2, ..., backbone",
    "multi-scale": "images have one size in training: --train-crop-size",
    "compile": "here it is --torchcompile",
    "dropout": "here it is --drop",
    "val": "validation is on where --val-dir or --data-dir names images for it; --no-validate turns it off",
    "split": "here the images are named: --val-dir; for a named data set it is --val-split",
    "half": "here it is --amp",
    "plots": "the confusion matrix and the accuracy of every class are always saved" + LEAVE_OUT,
    "lr0": "here it is --learning-rate",
    "lrf": "here --min-lr is the rate itself: lrf times --learning-rate",
    "momentum": "here it is --momentum",
    "weight-decay": "here it is --weight-decay",
    "warmup-epochs": "here it is --warmup-iters, in iterations" + EPOCH,
    "warmup-momentum": SGD_WARMUP,
    "warmup-bias-lr": SGD_WARMUP,
    "cls-pw": "here it is --class-weights: balanced, sqrt or a file of weights",
    "nbs": "every update uses --batch-size images, and no others are assumed" + LEAVE_OUT,
    "label-smoothing": "here it is --label-smooth",
    "hsv-h": "the hue is not changed; --color-jitter changes brightness, contrast and saturation",
    "hsv-s": COLOUR,
    "hsv-v": COLOUR,
    "scale": "here it is --scale, with the smallest and the largest fraction: scale=0.5 is --scale 0.5 1",
    "flipud": "here it is --vflip",
    "fliplr": "here it is --hflip",
    "bgr": "the network takes BGR, and files are converted" + LEAVE_OUT,
    "mixup": "here it is --mixup, whose number is alpha, and --mixup-prob, the probability",
    "cutmix": "here it is --cutmix, whose number is alpha, and --mixup-prob, the probability",
    "auto-augment": "here it is --aa: randaugment is about rand-m3-n2-p1, autoaugment is original, augmix is augmix-m3",
    "erasing": "here it is --reprob",
    "crop-fraction": "here it is --crop-pct",
    "cfg": "here it is --config",
    **dict.fromkeys(("degrees", "translate", "shear", "perspective"), GEOMETRY),
    **dict.fromkeys(("source", "vid-stride", "stream-buffer", "visualize", "augment", "embed", "conf"), PREDICTION),
    **dict.fromkeys(("show", "save-frames", "save-txt", "save-conf", "save-crop", "line-width"), PREDICTION),
    **dict.fromkeys(("show-labels", "show-conf", "show-boxes", "classes"), PREDICTION),
    **dict.fromkeys(("format", "keras", "optimize", "int8", "dynamic", "simplify", "opset", "workspace", "dnn"), EXPORT),
    **dict.fromkeys(("overlap-mask", "mask-ratio", "retina-masks", "copy-paste", "copy-paste-mode", "tracker"), DETECTION),
    **dict.fromkeys(("iou", "max-det", "nms", "agnostic-nms", "end2end", "save-json", "save-hybrid"), DETECTION),
    **dict.fromkeys(("box", "cls", "dfl", "pose", "kobj", "rle", "angle"), DETECTION),
}

# Names of PyTorch's ImageNet example and of project templates.
OTHERS = {
    "arch": "here it is --model-size",
    "drop-rate": "here it is --drop",
    "nesterov": "here it is --opt nesterov",
    "val-freq": "here it is --val-interval, in iterations" + EPOCH,
    "gpu": GPUS,
    "rank": TORCHRUN,
    "dist-backend": "it is nccl on GPUs and gloo on CPUs" + LEAVE_OUT,
    "multiprocessing-distributed": TORCHRUN,
    "evaluate": "here it is --eval",
    "eval-only": "here it is --eval",
    "optim": "here it is --opt",
}

ANSWERS = ULTRALYTICS | OTHERS | MMPRETRAIN | TIMM | TORCHVISION

# Words of ultralytics' command line, and what they ask for.
TASKS = ("yolo", "classify", "detect", "segment", "pose", "obb")
MODES = {
    "train": "this command trains" + LEAVE_OUT,
    "val": "here it is --eval",
    "test": "here it is --eval",
    "predict": "shufflenetv2 predict makes predictions",
    "export": "shufflenetv2 export writes exported files",
    "benchmark": "here it is --throughput",
}


def answer(name: str) -> str:
    """Return what to do instead of giving the option `name`, in upper or lower case, with dashes; '' for an unknown name."""
    return ANSWERS.get(name.lower(), "")


def answer_argument(argument: str, options: Sequence[Option]) -> str:
    """Return what to give instead of an argument that is neither an option nor its value; '' for an unknown argument.

    Args:
        options: those of the command, for arguments such as momentum=0.9.
    """
    name, equals, value = argument.partition("=")
    key = name.lower().replace("_", "-")
    if equals:
        is_option = any(key == option.key for option in options)
        text = ULTRALYTICS.get(key) or answer(key) or ("here it is --" + key if is_option else "")
        return _with_value(text, value)
    if argument in TASKS:
        return ULTRALYTICS["task"]
    if argument.endswith(".py"):
        return "configuration files of mmpretrain are not read; give options, or a YAML file of them with --config"
    if argument.endswith((".yaml", ".yml")):
        return f"did you mean --config {argument}?"
    return MODES.get(argument, "")


def _with_value(text: str, value: str) -> str:
    """Append the value to a text that ends with the name of the option that takes it."""
    if not re.fullmatch(r"here it is --[a-z0-9-]+", text):
        return text
    match value.lower():
        case "true":
            return text
        case "false":
            return text.replace("--", "--no-")
    return f"{text} {value}"
