"""Render benchmarks/results/*.json as tables, and write the tables into the documents.

A table NAME stands between the markers <!-- NAME --> and <!-- /NAME -->.

python benchmarks/tables.py           updates the tables
python benchmarks/tables.py --check   exits with status 1 if a table is out of date
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md")


def data_path(report: dict[str, Any]) -> str:
    """Render images per second of each loader, by the number of workers."""
    workers = sorted(report["results"], key=int)
    base = report["results"][workers[0]]
    lines = [
        "| images per second | "
        + " | ".join(f"{n} worker{'s' * (n != '1')}, {n} core{'s' * (n != '1')}" for n in workers)
        + " |",
        "|---|" + "---:|" * len(workers),
    ]
    for loader in base:
        cells = (report["results"][n][loader] for n in workers)
        lines.append(
            f"| {loader} | " + " | ".join(f"{c['median']:,.0f} ({c['ratio to torchvision']:.2f}x)" for c in cells) + " |"
        )
    images, machine, versions = report["photographs"], report["machine"], report["versions"]
    lines += [
        "",
        "Medians, with the ratio to torchvision's reference in the same run in brackets.",
        f"{images['count']} photographs of {images['mean width']:.0f} x {images['mean height']:.0f} pixels and",
        f"{images['mean kB']:.0f} kB on average; {machine['cpu']}, {machine['cores']} cores; {report['date']};",
        f"torch {versions['torch']}, torchvision {versions['torchvision']}, timm {versions['timm']}, "
        f"OpenCV {versions['cv2']}, Pillow {versions['pillow']}" + (f", DALI {versions['dali']}." if "dali" in base else "."),
    ]
    return "\n".join(lines)


def kills(report: dict[str, Any]) -> str:
    """Render how many kills interrupted each phase of a run, and how many tensors differ."""
    counts = sorted(report["kills that fell into"].items())
    phases = ", ".join(f"{count} during {'a save' if phase == 'save' else phase}" for phase, count in counts)
    differing = len(report["tensors that differ"])
    rows = ""
    if "rows are equal" in report:  # compared since 2026-11-26
        equal = "equal" if report["rows are equal"] else "not equal"
        rows = f", and the {report['rows of metrics.csv']} rows of metrics.csv are {equal}, apart from times"
    return (
        f"{sum(count for _, count in counts)} kills: {phases}. "
        f"Of {report['tensors compared']} tensors {differing} differ{rows} ({report['date']})."
    )


def recipes(report: dict[str, Any]) -> str:
    """Render the accuracy of each recipe, and how many tensors differ between an interrupted and an uninterrupted run."""
    lines = [
        "| recipe | options | iterations | top-1 | averaged weights | tensors | differ | seconds |",
        "|---|---|" + "---:|" * 6,
    ]
    for name, result in report["results"].items():
        top1 = (f"{result['top-1'][file]:.1%}" if file in result["top-1"] else "" for file in ("model.pkl", "model-ema.pkl"))
        options = result["options"].format(teacher="model.pkl")
        lines.append(
            f"| {name} | `{options}` | {result['iterations']} | {' | '.join(top1)} | {result['tensors compared']} "
            f"| {len(result['tensors that differ'])} | {result['seconds']:.0f} |"
        )
    rows, differing = (
        sum(result[key] for result in report["results"].values()) for key in ("rows of metrics.csv", "rows that differ")
    )
    teacher, versions = report["teacher"], report["versions"]
    lines += [
        "",
        f"All with `{report['options of all']}`;",
        f"the teacher is trained with `{teacher['options']}` for {teacher['iterations']} iterations. Of {rows} rows of",
        f"metrics.csv {differing} differ. Seconds are those of the uninterrupted run; {report['runs at a time']} runs at a",
        f"time with one thread each; {cores_and_load(report, report['cores lost to other processes'])}; {report['date']};",
        f"torch {versions['torch']}, timm {versions['timm']}.",
    ]
    return "\n".join(lines)


def unequal_classes(report: dict[str, Any]) -> str:
    """Render balanced accuracy, macro F1 and the recall of classes of each size, by the options for unequal classes."""
    sizes = report["training images per class"]
    columns = ["balanced accuracy", "macro F1", *(f"recall of classes with {size} images" for size in sizes)]
    lines = ["| loss and sampling | options | " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(columns)]
    for name, result in report["results"].items():
        metrics = (result["metrics"][column] for column in columns)
        cells = (f"{metric['mean']:.1%} ({100 * metric['standard deviation']:.1f})" for metric in metrics)
        options = f"`{result['options']}`" if result["options"] else ""
        lines.append(f"| {name} | {options} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Means over {len(report['seeds'])} seeds, with the standard deviation in brackets (percentage points);",
        f"{report['iterations']} iterations of {report['batch size']} images; {report['date']}; "
        f"torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines)


def similar_images(report: dict[str, Any]) -> str:
    """Render the fraction of changed copies that `check` takes for images that look alike, by the largest distance."""
    found, different = report["changed copies found, by largest distance"], report["pairs of different photographs found"]
    lines = ["| change of the copy | " + " | ".join(f"{distance} bits" for distance in different) + " |"]
    lines.append("|---|" + "---:|" * len(different))
    lines += [f"| {name} | " + " | ".join(f"{part:.0%}" for part in parts.values()) + " |" for name, parts in found.items()]
    count, similar = report["photographs"], ", ".join(map(str, different.values()))
    pairs = count * (count - 1) // 2
    lines += [
        "",
        f"Of {count} photographs. Of the {pairs:,} pairs of different photographs {similar} were taken for alike.",
        f"The search among {report['hashes']:,} hashes took {report['seconds of the search']:.0f} s "
        f"({cores_and_load(report, report['machine']['cores lost to other processes'])}); {report['date']}.",
    ]
    return "\n".join(lines)


def dirty_images(report: dict[str, Any]) -> str:
    """Render the accuracy of training with all files, without the damaged ones, and with damaged ones among them."""
    lines = ["| training files | top-1 with each seed | mean |", "|---|---|---:|"]
    names = {"clean": "all, clean", "removed": "without those that are dirty below", "dirty": "with dirty ones among them"}
    for name, description in names.items():
        values = report["top-1"][name]
        lines.append(f"| {description} | {', '.join(f'{value:.1%}' for value in values)} | {sum(values) / len(values):.2%} |")
    listed, is_exact = report["bad images listed"], report["interrupted runs have the same bits"]
    points = {
        name: f"{100 * values['mean']:+.2f} ± {100 * values['standard error']:.2f} points"
        for name, values in report["dirty minus others"].items()
    }
    lines += [
        "",
        f"Mean difference between runs of the same seed, with its standard error: dirty minus clean {points['clean']},",
        f"dirty minus removed {points['removed']}. {len(report['kinds of dirt'])} kinds of dirt,",
        f"{listed['training']} training and {listed['validation']} validation files listed.",
        f"{report['iterations']} iterations. Runs with dirty files that were stopped and continued have",
        f"{'the same' if is_exact else 'OTHER'} bits as uninterrupted ones. {report['date']}.",
    ]
    return "\n".join(lines)


def time_to_accuracy(report: dict[str, Any]) -> str:
    """Render accuracy and time of torchvision's reference, configs/own-images.yaml and the published recipe, by task."""
    lines = [
        "| task | torchvision | own-images | published | torchvision to its accuracy | own-images to the same | ratio "
        "| ratio to torchvision's whole run |",
        "|---|" + "---:|" * 7,
    ]
    for task, result in report["results"].items():
        programs = result["programs"]
        if not programs:
            continue
        cells = [
            f"{run['top1']:.1%}, {run['seconds']:.0f} s ({run['CPU seconds']:.0f} s)" if run else ""
            for run in (programs.get(name) for name in ("torchvision", "own-images", "published"))
        ]
        reference, ours = (programs[name]["seconds to accuracy"] for name in ("torchvision", "own-images"))
        whole = programs["torchvision"]["seconds"]
        ratios = (f"{ours / reference:.2f}", f"{ours / whole:.2f}") if ours else ("", "")
        cells += [f"{reference:.0f} s", f"{ours:.0f} s" if ours else "never", *ratios]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    counts = sorted({len(run["of each seed"]) for result in report["results"].values() for run in result["programs"].values()})
    seeds = "One seed" if counts == [1] else f"Medians of {' or '.join(map(str, counts))} seeds"
    versions = report["versions"]
    lines += [
        "",
        "Top-1 accuracy and time of the whole run, with the CPU time in brackets; times to an accuracy until the first",
        f"validation that has it. {seeds}; 0.5x, 64 pixels;",
        f"{threads(report)} per run, {report['runs at a time']} runs at a time;",
        f"{cores_and_load(report, report['cores lost to other processes'])}; {report['date']};",
        f"torch {versions['torch']}, torchvision {versions['torchvision']}.",
    ]
    return "\n".join(lines)


def own_images(report: dict[str, Any]) -> str:
    """Render the accuracy of each training from which configs/own-images.yaml was chosen."""
    lines = ["| task | options | top-1 | CPU seconds |", "|---|---|---:|---:|"]
    lines += [f"| {row['task']} | `{row['options']}` | {row['top1']:.1%} | {row['CPU seconds']} |" for row in report["results"]]
    tasks = {row["task"] for row in report["results"]}
    images = [f"{counts['train']} in each of {counts['classes']} classes of {task}" for task, counts in report["images"].items()
              if task in tasks]  # fmt: skip
    lines += [
        "",
        f"All with `{report['options of all']}`;",
        f"one seed; training images: {', '.join(images)};",
        f"{report['machine']['cpu']}; {report['date']}; torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines)


def save_time(report: dict[str, Any]) -> str:
    """Render the time of iterations with and without saving a checkpoint."""
    return (
        f"An iteration during which a checkpoint of {report['checkpoint MB']:.0f} MB is copied and written takes "
        f"{report['ratio']:.2f} times as long as one\nwithout (medians of {report['median seconds with a save']:.2f} s and "
        f"{report['median seconds without']:.2f} s; 1.5x, 224 pixels, {report['machine']['cores']} cores; {report['date']})."
    )


def train_step(report: dict[str, Any]) -> str:
    """Render images per second of a training step, by model size and batch size."""
    rows = [(batch, size, results) for batch, sizes in report["results"].items() for size, results in sizes.items()]
    names = list(rows[0][2])
    lines = ["| images per second | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for batch, size, results in rows:
        cells = (f"{results[name]['images per second']:.1f} ({results[name]['ratio to reference']:.2f}x)" for name in names)
        lines.append(f"| {size}, batches of {batch} | " + " | ".join(cells) + " |")
    machine, versions = report["machine"], report["versions"]
    lines += [
        "",
        "Medians, with the ratio to the original's formulation in the same run in brackets. 224 pixels, on",
        f"{machine['device']}; {machine['cpu']}, {machine['cores']} cores; torch {versions['torch']}; {report['date']}.",
    ]
    return "\n".join(lines)


def prepared(report: dict[str, Any]) -> str:
    """Render the top-1 accuracy by training and evaluation images, and its difference from the accuracy with the originals."""
    lines = [
        "| trained on | kB per image | evaluated on | top-1 | difference from the originals |",
        "|---|---:|---|---:|---:|",
    ]
    for variant, result in report["results"].items():
        options = result["options of prepare"]
        name = f"{variant} (`{options}`)" if options else variant
        for images in ("originals", "prepared"):
            if top1 := result.get(f"evaluated on {images}", {}).get("top-1"):
                difference = top1["minus originals on originals"]
                is_base = not options and images == "originals"
                cell = "" if is_base else f"{difference['mean']:+.1f} ({difference['standard error']:.1f})"
                lines.append(f"| {name} | {result['bytes per image'] / 1000:.0f} | {images} | {top1['mean']:.1f}% | {cell} |")
    classes, images = report["classes"], report["images"]
    lines += [
        "",
        f"Means over seeds; differences in percentage points, paired by seed, with the standard error in brackets. {classes}",
        f"classes, {images['train']:,} training images, {images['val']:,} validation images; {report['date']}.",
    ]
    return "\n".join(lines)


def inference(report: dict[str, Any]) -> str:
    """Render images per second of each way to run the network, by batch size."""
    sizes = sorted(report["results"], key=int)
    lines = [
        "| images per second | " + " | ".join(f"batches of {size}" for size in sizes) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for program in report["results"][sizes[0]]:
        cells = (report["results"][size][program] for size in sizes)
        lines.append(f"| {program} | " + " | ".join(f"{c['median']:,.1f} ({c['ratio to eager']:.2f}x)" for c in cells) + " |")
    versions = report["versions"]
    onnx_runtime = f", ONNX Runtime {versions['onnxruntime']}" if "onnxruntime" in versions else ""
    lost = max(report["cores lost to other processes"].values())
    lines += [
        "",
        "Medians, with the ratio to eager in the same run in brackets. "
        f"{report['model size']}, float32, 224 pixels, {threads(report)};",
        f"{cores_and_load(report, lost)}; {report['date']}; torch {versions['torch']}{onnx_runtime}.",
    ]
    return "\n".join(lines)


# Top-1 error in percent on ImageNet, one central crop of 224 x 224 pixels, from the README of the original.
PUBLISHED_ERRORS = {"0.5x": 38.9, "1.0x": 30.6, "1.5x": 27.4, "2.0x": 25.0}


def sizes(report: dict[str, Any]) -> str:
    """Render the size, the published accuracy and the speed of each network."""
    columns = (
        "`--model-size`",
        "parameters",
        "mult-adds",
        "published top-1 accuracy on ImageNet",
        "images per second on one core",
    )
    return size_table(report, columns) + (
        "1,000 classes, 224 x 224 pixels. The accuracies are the original's and were not measured here. Images per second:\n"
        f"ONNX Runtime {report['versions']['onnxruntime']}, float32, batches of one image, {threads(report)}, medians;\n"
        f"{cores_and_load(report, report['cores lost to other processes'])}; {report['date']}."
    )


def sizes_zh(report: dict[str, Any]) -> str:
    """Render the table of `sizes` in Chinese."""
    columns = ("`--model-size`", "参数量", "乘加次数", "已发表的 ImageNet top-1 准确率", "单核每秒图片数")
    return size_table(report, columns).rstrip()


def size_table(report: dict[str, Any], columns: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---|---:|---:|---:|---:|"]
    for size, row in report["results"].items():
        speed = row["images per second"]["ONNX Runtime"]["median"]
        lines.append(
            f"| {size} | {row['parameters'] / 1e6:.1f} M | {row['mult-adds'] / 1e6:.1f} M "
            f"| {100 - PUBLISHED_ERRORS[size]:.1f} % | {speed:,.0f} |"
        )
    return "\n".join([*lines, "", ""])


def end_to_end(report: dict[str, Any]) -> str:
    """Render the time to start, the speed and the memory of the command."""
    lines = ["| `train.py` | median |", "|---|---:|"]
    for name, result in report["results"].items():
        value = f"{result['median']:.1%}" if name.startswith("share") else f"{result['median']:,.1f} {result['unit']}".strip()
        lines.append(f"| {name} | {value} |")
    lines += [
        "",
        f"{report['iterations']} iterations of {report['batch size']} images; {report['model size']}, 224 pixels, "
        f"{threads(report)} for the network, on {report['machine']['device']};",
        f"{cores_and_load(report, report['cores lost to other processes'])}; {report['date']}; "
        f"torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines)


def cores_and_load(report: dict[str, Any], cores_lost: float) -> str:
    machine = report["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {cores_lost:.1f} of them used by other processes"


def threads(report: dict[str, Any]) -> str:
    return f"{report['threads']} thread{'s' * (report['threads'] != 1)}"


def start_up(report: dict[str, Any]) -> str:
    """Render the seconds that listing the images takes."""
    seconds = {**report["results"], "train.py --help": report["train.py --help"]}
    lines = ["| seconds | median | min | max |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {case['median']:.2f} | {case['min']:.2f} | {case['max']:.2f} |" for name, case in seconds.items()]
    lines += [
        "",
        f"{report['images']:,} images in {report['class folders']:,} folders on a local disk, in the page cache; "
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores; {report['date']}.",
    ]
    return "\n".join(lines)


def shared_cores(report: dict[str, Any]) -> str:
    """Render the time of an iteration alone and beside busy processes, by how long threads spin."""
    alone, beside = report["cores lost to other processes"]
    lines = [f"| seconds per iteration | {alone} | {beside} | ratio |", "|---|---:|---:|---:|"]
    for case, result in report["results"].items():
        medians = (f"{result[condition]['median']:.3f}" for condition in (alone, beside))
        lines.append(f"| {case} | {' | '.join(medians)} | {result['ratio to alone']:.1f} |")
    lines += [
        "",
        "Medians; `configs/digits.yaml`, batches of 64 images of 64 x 64 pixels;",
        f"{cores_and_load_of_alone(report, alone)};",
        f"{report['date']}; torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines)


def cores_and_load_of_alone(report: dict[str, Any], alone: str) -> str:
    lost = report["cores lost to other processes"][alone]
    machine = report["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {lost:.1f} of them used by other programs while the run was alone"


def memory(report: dict[str, Any]) -> str:
    """Render the estimated and the measured memory of each case."""
    lines = ["| options | estimated | measured peak | ratio |", "|---|---:|---:|---:|"]
    lines += [
        f"| `{options}` | {result['estimated MB']:,} MB | {result['measured MB']:,} MB | {result['ratio']:.2f} |"
        for options, result in report["results"].items()
    ]
    lines += [
        "",
        f"All with `--config configs/digits.yaml {report['options of all']}`; beyond what the",
        f"process held when it made the estimate; {report['machine']['cpu']}; {report['date']}; "
        f"torch {report['versions']['torch']}, {report['versions']['C library']}.",
    ]
    return "\n".join(lines)


def soak(report: dict[str, Any]) -> str:
    """Render how memory, file descriptors and threads of a long training have changed."""
    result = report["soak"]
    (least, most), descriptors, threads = (
        result[f"{name}, smallest and largest"] for name in ("megabytes", "descriptors", "threads")
    )
    return (
        f"After the warm-up {result['megabytes at the start']:.0f} MB, at the end {result['megabytes at the end']:.0f} MB "
        f"({result['growth in percent']:+.1f} %), between {least:.0f} and {most:.0f} MB in {result['samples']:,} samples; "
        f"{descriptors[0]} to {descriptors[1]} file descriptors, {threads[0]} to {threads[1]} threads ({report['date']})."
    )


def hostile_inputs(report: dict[str, Any]) -> str:
    """Render how the program ended for each kind of generated input."""
    failures = ("traceback", "hang", "crash", "memory")
    lines = [
        "| kind of input | inputs | accepted | refused with one line | failures | seconds | slowest, s | memory, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {kind} | {result['inputs']:,} | {result['accepted']:,} | {result['refused']:,} | "
        f"{sum(result[name] for name in failures):,} | {result['seconds']:,} | {result['slowest input, seconds']:.2f} | "
        f"{result['largest growth of memory, MiB']:,} |"
        for kind, result in report["results"].items()
    ]
    totals, jpeg = report["totals"], json.loads((RESULTS / "fuzz.json").read_text())
    accepted, refused = (sum(result[name] for result in report["results"].values()) for name in ("accepted", "refused"))
    found = jpeg["counts"]
    others = found["of an unknown kind"] + found["without a frame header, or large"]
    lines += [
        f"| together | {totals['inputs']:,} | {accepted:,} | {refused:,} | {sum(totals[name] for name in failures):,} | "
        f"{totals['seconds']:,} | | |",
        "",
        "The slowest input, and the largest growth of the memory of the process by a single input.",
        f"`{report['command']}`; {report['date']}; torch {report['versions']['torch']}, "
        f"OpenCV {report['versions']['opencv-python-headless']}, Pillow {report['versions']['pillow']}.",
        "",
        f"`make fuzz SECONDS={jpeg['seconds']}` gave {found['inputs']:,} inputs to the JPEG decoder, guided by the coverage",
        f"of its code, with {jpeg['failures']:,} failures: {found['intact']:,} intact files, {found['damaged']:,} damaged",
        f"ones, and {others:,} that are no JPEG files or of a rare kind.",
        f"Together these are {totals['inputs'] + found['inputs']:,} inputs.",
    ]
    return "\n".join(lines)


TABLES = {
    "hostile_inputs": hostile_inputs,
    "data_path": data_path,
    "data_path_large": data_path,
    "kill_test": kills,
    "kill_test_processes": kills,
    "own_images": own_images,
    "recipes": recipes,
    "memory": memory,
    "soak": soak,
    "save_time": save_time,
    "dirty_images": dirty_images,
    "similar_images": similar_images,
    "shared_cores": shared_cores,
    "sizes": sizes,
    "sizes_zh": sizes_zh,
    "start_up": start_up,
    "time_to_accuracy": time_to_accuracy,
    "train_step": train_step,
    "unequal_classes": unequal_classes,
    "unequal_textures": unequal_classes,
    "prepared": prepared,
    "inference": inference,
    "end_to_end": end_to_end,
}


def with_tables(text: str) -> str:
    """Return the document with every marked section filled from its results file."""
    for name, render in TABLES.items():
        before, after = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if before in text:
            table = render(json.loads((RESULTS / f"{name.removesuffix('_zh')}.json").read_text()))
            text = text[: text.index(before)] + before + table + "\n" + text[text.index(after) :]
    return text


def main() -> int:
    stale = [path for path in DOCUMENTS if with_tables(path.read_text()) != path.read_text()]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is out of date; run python benchmarks/tables.py")
        else:
            path.write_text(with_tables(path.read_text()))
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
