"""Every option of four other trainers is accepted, or answered by a line of its own that names the way here."""

import re
from pathlib import Path

import jsonschema
import pytest

from shufflenetv2.cli.command import parse, training_parser
from shufflenetv2.cli.peers import ANSWERS, MODES, ULTRALYTICS, answer
from shufflenetv2.cli.schema import build_schema
from shufflenetv2.config import OPTIONS, Config
from shufflenetv2.errors import nearest
from tests.test_options import refusal

# The names of the options of each trainer; "X=3" after a name: an example of its value.
TORCHVISION = """
--data-path=D --model=shufflenet_v2_x1_0 --device=cuda -b=32 --batch-size=32 --epochs=90 -j=16 --workers=16 --opt=sgd --lr=0.1
--momentum=0.9 --wd=1e-4 --weight-decay=1e-4 --norm-weight-decay=0 --bias-weight-decay=0 --transformer-embedding-decay=0
--label-smoothing=0.1 --mixup-alpha=0.2 --cutmix-alpha=1 --lr-scheduler=cosineannealinglr --lr-warmup-epochs=5
--lr-warmup-method=linear --lr-warmup-decay=0.01 --lr-step-size=30 --lr-gamma=0.1 --lr-min=0 --print-freq=10 --output-dir=O
--resume=checkpoint.pth --start-epoch=3 --cache-dataset --sync-bn --test-only --auto-augment=ta_wide --ra-magnitude=9
--augmix-severity=3 --random-erase=0.1 --amp --world-size=8 --dist-url=env:// --model-ema --model-ema-steps=32
--model-ema-decay=0.99998 --use-deterministic-algorithms --interpolation=bilinear --val-resize-size=232 --val-crop-size=224
--train-crop-size=176 --clip-grad-norm=1 --ra-sampler --ra-reps=4 --weights=DEFAULT --backend=PIL --use-v2 --pretrained
"""
TIMM = """
-c=C --config=C --data-dir=D -d=cifar10 --dataset=cifar10 --train-split=train --val-split=test --train-num-samples=9
--val-num-samples=9 --dataset-download --class-map=M --input-img-mode=RGB --input-key=image --target-key=label
--dataset-trust-remote-code --model=1.0x --pretrained --pretrained-path=W --initial-checkpoint=W --resume=R --no-resume-opt
--num-classes=10 --gp=fast --img-size=224 --in-chans=3 --input-size=3,224,224 --crop-pct=0.9 --mean=120,120,120 --std=58,58,58
--interpolation=bicubic -b=64 --batch-size=64 -vb=32 --validation-batch-size=32 --channels-last --fuser=te
--grad-accum-steps=2 --grad-checkpointing --fast-norm --model-kwargs=a=1 --head-init-scale=0.001 --head-init-bias=-7
--torchcompile-mode=default --torchscript --torchcompile --device=cpu --amp --amp-dtype=float16 --amp-impl=native
--model-dtype=bfloat16 --no-ddp-bb --synchronize-step --local_rank=0 --local-rank=0 --device-modules=m --opt=adamw
--opt-eps=1e-6 --opt-betas=0.9,0.98 --momentum=0.9 --weight-decay=0.05 --clip-grad=1 --clip-mode=agc
--opt-kwargs=nesterov=True,dampening=0 --layer-decay=0.7 --layer-decay-min-scale=0 --layer-decay-no-opt-scale=0 --sched=cosine
--sched-on-updates --lr=0.1 --lr-base=0.1 --lr-base-size=256 --lr-base-scale=sqrt --lr-noise=0.1,0.9 --lr-noise-pct=0.67
--lr-noise-std=1 --lr-cycle-mul=1 --lr-cycle-decay=0.5 --lr-cycle-limit=2 --lr-k-decay=1 --warmup-lr=1e-5 --min-lr=0
--epochs=300 --epoch-repeats=0 --start-epoch=1 --decay-milestones=90,180 --decay-epochs=90 --warmup-epochs=5 --warmup-prefix
--cooldown-epochs=0 --patience-epochs=10 --decay-rate=0.1 --dr=0.1 --no-aug --train-crop-mode=rrc --scale=0.08,1
--ratio=0.75,1.33 --hflip=0.5 --vflip=0 --color-jitter=0.4 --color-jitter-prob=0.5 --grayscale-prob=0.1
--gaussian-blur-prob=0.1 --aa=rand-m9-mstd0.5 --aug-repeats=3 --aug-splits=3 --jsd-loss --jsd --bce-loss
--bce-target-thresh=0.2 --bce-sum --bce-pos-weight=1 --reprob=0.25 --remode=pixel --recount=1 --resplit --mixup=0.2 --cutmix=1
--cutmix-minmax=0.2,0.8 --mixup-prob=1 --mixup-switch-prob=0.5 --mixup-mode=batch --mixup-off-epoch=9 --smoothing=0.1
--train-interpolation=random --drop=0.1 --drop-connect=0.1 --drop-path=0.1 --drop-block=0.1 --bn-tf --bn-momentum=0.1
--bn-eps=1e-3 --sync-bn --dist-bn=reduce --split-bn --model-ema --model-ema-force-cpu --model-ema-decay=0.9998
--model-ema-warmup --seed=42 --worker-seeding=all --log-interval=50 --val-interval=1 --recovery-interval=9
--checkpoint-hist=10 -j=4 --workers=4 --save-images --pin-mem --no-prefetcher --output=O --experiment=E --eval-metric=top1
--tta=2 --use-multi-epochs-loader --apex-amp --native-amp --log-wandb --wandb-project=p --wandb-tags=t --wandb-resume-id=i
--naflex-loader --naflex-train-seq-lens=128 --naflex-max-seq-len=576 --naflex-patch-sizes=16 --naflex-patch-size-probs=1
--naflex-patchify-channels-first --naflex-loss-scale=linear --kd-model-name=resnet50 --kd-distill-type=logit --kd-loss-type=kl
--distill-loss-weight=1 --task-loss-weight=1 --kd-temperature=4 --kd-student-feature-dim=9 --kd-teacher-feature-dim=9
--kd-token-distill-type=soft
"""
MMPRETRAIN = """
--work-dir=W --resume --resume=auto --resume=latest.pth --amp --no-validate --auto-scale-lr --no-pin-memory
--no-persistent-workers --cfg-options=a.b=1 --launcher=pytorch --local_rank=0 --local-rank=0 --resume-from=R --gpus=1
--gpu-ids=0 --gpu-id=0 --seed=0 --deterministic --options=a=1 --autoscale-lr
"""
ULTRALYTICS_KEYS = """
task mode model data epochs time patience batch imgsz save save_period cache device workers project name exist_ok pretrained
optimizer verbose seed deterministic single_cls rect cos_lr close_mosaic resume amp fraction profile freeze multi_scale
compile overlap_mask mask_ratio dropout val split save_json save_hybrid conf iou max_det half dnn plots end2end source
vid_stride stream_buffer visualize augment agnostic_nms classes retina_masks embed show save_frames save_txt save_conf
save_crop show_labels show_conf show_boxes line_width format keras optimize int8 dynamic simplify opset workspace nms lr0 lrf
momentum weight_decay warmup_epochs warmup_momentum warmup_bias_lr box cls cls_pw dfl pose kobj rle angle nbs label_smoothing
hsv_h hsv_s hsv_v degrees translate scale shear perspective flipud fliplr bgr mosaic mixup cutmix copy_paste copy_paste_mode
auto_augment erasing crop_fraction cfg tracker
"""
PEERS = {"torchvision": TORCHVISION, "timm": TIMM, "mmpretrain": MMPRETRAIN}
OWN_NAMES = {name.lstrip("-") for option in OPTIONS for name in (option.key, *option.aliases)}
EXAMPLES = [pytest.param(example, id=f"{peer} {example}") for peer, text in PEERS.items() for example in text.split()]


def words_of(example: str) -> list[str]:
    """Return the words of an example on a command line."""
    name, _, value = example.partition("=")
    return [name, *value.split(",")] if value else [name]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_option_of_another_trainer_is_read_or_answered(example: str) -> None:
    """Read: by the parser; which options go together is not the question here."""
    name, *values = words_of(example)
    key = name.lstrip("-").replace("_", "-")
    if key in ANSWERS and key not in OWN_NAMES:
        assert refusal("--train-dir", "D", name, *values, "--seed", "3") == f"{name} on the command line: {ANSWERS[key]}"
    else:
        ((option, value),) = training_parser().parse([name, *values]).items()
        assert option in {option.name for option in OPTIONS}
        assert not values or value in (values, " ".join(values))


@pytest.mark.parametrize("key", ULTRALYTICS_KEYS.split())
def test_a_word_of_ultralytics_is_answered_with_the_way_here(key: str, tmp_path: Path) -> None:
    message = refusal("classify", "train", f"{key}=0.5", "--lr", "0.1")
    assert message.startswith(f"{key}=0.5 on the command line: {ULTRALYTICS[key.replace('_', '-')]}")


def test_a_word_shows_the_option_with_its_value() -> None:
    for word, option in [
        ("data=D", "--data-dir D"),
        ("epochs=3", "--epochs 3"),
        ("imgsz=224", "--input-size 224"),
        ("fliplr=0.5", "--hflip 0.5"),
        ("amp=True", "--amp"),
        ("amp=False", "--no-amp"),
        ("grad_accum_steps=2", "--grad-accum-steps 2"),  # an option of this program
        ("IMGSZ=224", "--input-size 224"),
    ]:
        assert refusal(word) == f"{word} on the command line: here it is {option}"
        parse([*option.split(), "--train-dir", "D"] if "data-dir" not in option else option.split())


def test_words_without_a_meaning_are_refused_in_one_line(tmp_path: Path) -> None:
    assert refusal("photos") == "unexpected argument 'photos' on the command line, which does not exist"
    assert refusal("photos=3").startswith("unexpected argument 'photos=3' on the command line")
    assert "--config recipe.yaml" in refusal("recipe.yaml")
    assert "configuration files of mmpretrain" in refusal("configs/shufflenet_v2/shufflenet-v2-1x_16xb64_in1k.py", "--amp")
    assert [refusal(word) for word in MODES] == [f"{word} on the command line: {text}" for word, text in MODES.items()]
    assert "give one folder" in refusal(str(tmp_path), str(tmp_path))


def test_other_keys_of_a_file_are_answered_as_well(tmp_path: Path) -> None:
    file = tmp_path / "args.yaml"
    for key in ("layer_decay", "warmup-epochs", "imgsz", "Local_Rank"):
        file.write_text(f"{key}: 3\n")
        assert refusal("--config", str(file)) == f"{key} in {file}: {answer(key.replace('_', '-'))}"


def test_answers_name_options_that_exist_and_are_about_names_that_do_not() -> None:
    names = (
        {f"--{option.key}" for option in OPTIONS}
        | {"--help"}
        | {f"--no-{option.key}" for option in OPTIONS if option.is_switch}
    )
    texts = [*ANSWERS.values(), *ULTRALYTICS.values(), *MODES.values()]
    assert {name for text in texts for name in re.findall(r"here it is (--[a-z0-9-]+)", text)} <= names
    # A text may also name the options that it is about.
    mentioned = {name for text in texts for name in re.findall(r"--[a-z0-9-]+", text)}
    assert mentioned <= names | {f"--{name}" for name in ANSWERS}
    assert not (set(ANSWERS) - set(ULTRALYTICS)) & OWN_NAMES


@pytest.mark.parametrize(
    ("typed", "proposal"),
    [
        ("--LR", "--lr"),
        ("--Batch-Size", "--batch-size"),
        ("--batch_size", "--batch-size"),
        ("--num-workers", "--workers"),
        ("--warmup", "--warmup-iters or --warmup-lr"),
        ("--sav-interval", "--save-interval"),
        ("-train-dir", "--train-dir"),
        ("--batchsize", "--batch-size"),
    ],
)
def test_a_near_name_is_proposed_in_upper_or_lower_case(typed: str, proposal: str) -> None:
    assert refusal("--train-dir", "D", typed, "3") == f"unknown option {typed!r} on the command line; did you mean {proposal}?"


@pytest.mark.parametrize("typed", ["--xyzzy", "--learn", "--colour", "--dropout-path-rate-scale", "-x"])
def test_a_distant_name_is_not_proposed(typed: str) -> None:
    assert refusal("--train-dir", "D", typed).endswith("on the command line; --help lists them all")


def test_an_abbreviation_is_explained_and_not_taken_for_the_option() -> None:
    assert refusal("--train-dir", "D", "--checkpoint-h", "3").endswith("did you mean --checkpoint-hist?")


def test_the_nearest_choice_is_found_in_any_case_and_keeps_its_spelling() -> None:
    assert nearest("RESNET", ["ResNet", "VGG"]) == "ResNet"
    assert nearest("launcher", ["teacher"]) == ""
    assert nearest("launcher", ["teacher"], cutoff=0) == "teacher"


def make_folders(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).mkdir(parents=True)
    return str(folder)


def test_a_folder_without_an_option_is_the_data_dir_or_the_folder_of_class_folders(tmp_path: Path) -> None:
    def folders(*arguments: str) -> tuple[str, str]:
        data = parse(arguments).data
        return data.train_dir, data.val_dir

    both = make_folders(tmp_path / "both", "train/a", "val/a")
    classes = make_folders(tmp_path / "classes", "a", "b")
    trains = make_folders(tmp_path / "trains", "train", "ship")  # a class named train
    assert folders(both) == folders("--data-dir", both) == (f"{both}/train", f"{both}/val")
    assert folders(classes) == folders("--train-dir", classes) == (classes, "")
    assert folders(trains) == (trains, "")
    assert folders("--epochs", "3", both, "--amp") == folders(both)
    assert folders(classes, "--val-dir", "V") == (classes, "V")
    assert folders("--pretrained", classes) == (classes, "")  # and not the value of the switch
    assert folders("--input-size", "3", "160", "160", classes) == (classes, "")
    assert folders("--", classes) == (classes, "")
    assert folders(both, "--eval")[1] == f"{both}/val"
    assert folders(classes, "--eval")[1] == classes
    assert parse([classes, "-d", "cifar10"]).data.data_dir == classes
    for option in ("--train-dir", "--data-path"):
        typed = refusal(both if option == "--data-path" else classes, option, "D")
        assert f"on the command line would be {option}, which is given as well" in typed


def test_a_folder_without_an_option_wins_over_the_folders_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    both = make_folders(tmp_path / "both", "train/a", "val/a")
    classes = make_folders(tmp_path / "classes", "a", "b")
    file.write_text("train-dir: T\nval-dir: V\n")
    data = parse([both, "--config", str(file)]).data
    assert (data.train_dir, data.val_dir) == (f"{both}/train", f"{both}/val")
    data = parse([classes, "--config", str(file)]).data
    assert (data.train_dir, data.val_dir) == (classes, "V")
    file.write_text("dataset: cifar10\n")
    assert parse([classes, "--config", str(file)]).data.data_dir == classes
    file.write_text("eval: true\n")
    assert parse([classes, "--config", str(file)]).data.val_dir == classes


def both_ways(tmp_path: Path, option: str, typed: str, in_file: str) -> list[Config]:
    """Return the options where one of them is typed, and where it stands in a file; the schema accepts the file as well."""
    (tmp_path / "c.yaml").write_text(f"{option[2:]}: {in_file}\n")
    images = ("--train-dir", "D")
    return [parse([*images, option, *typed.split()]), parse([*images, "--config", str(tmp_path / "c.yaml")])]


def test_values_of_other_trainers_are_read(tmp_path: Path) -> None:
    for typed, in_file in [("3 192 192", "[3, 192, 192]"), ("192", "192")]:
        assert [config.data.input_size for config in both_ways(tmp_path, "--input-size", typed, in_file)] == [192, 192]
    assert [config.model.gp for config in both_ways(tmp_path, "--gp", "fast", "fast")] == ["avg", "avg"]
    name = "shufflenet_v2_x0_5"
    assert [config.model.model_size for config in both_ways(tmp_path, "--model", name, name)] == ["0.5x", "0.5x"]
    assert [config.run.resume for config in both_ways(tmp_path, "--resume", "", "true")] == ["", ""]
    assert [config.run.resume for config in both_ways(tmp_path, "--resume", "auto", "auto")] == ["", ""]
    jsonschema.validate({"input-size": [3, 192, 192], "gp": "fast", "model": name, "resume": True}, build_schema())


@pytest.mark.parametrize("shape", ["2 224 224", "3 15 15", "3 224", "224 224 3", "3 224 224 224"])
def test_a_shape_that_no_network_has_is_refused_in_one_line(shape: str) -> None:
    message = refusal("--train-dir", "D", "--input-size", *shape.split())
    assert message.startswith(("--input-size", "unexpected argument '224'"))
    assert "\n" not in message
