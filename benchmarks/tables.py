"""Puts the tables made from benchmarks/results/*.json into the README files, between their markers.

python benchmarks/tables.py           writes them
python benchmarks/tables.py --check   exits with 1 if one is out of date
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")


def data_path(report: dict[str, Any]) -> str:
    """Images per second of each side, by the number of workers."""
    workers = sorted(report["results"], key=int)
    base = report["results"][workers[0]]
    lines = [
        "| images per second | "
        + " | ".join(f"{n} worker{'s' * (n != '1')}, {n} core{'s' * (n != '1')}" for n in workers)
        + " |",
        "|---|" + "---:|" * len(workers),
    ]
    for side in base:
        cells = (report["results"][n][side] for n in workers)
        lines.append(
            f"| {side} | " + " | ".join(f"{c['median']:,.0f} ({c['ratio to torchvision']:.2f}x)" for c in cells) + " |"
        )
    images, machine, versions = report["photographs"], report["machine"], report["versions"]
    lines += [
        "",
        "Medians; in brackets the ratio to torchvision's reference, measured in the same run.",
        f"{images['count']} photographs of {images['mean width']:.0f} x {images['mean height']:.0f} pixels and",
        f"{images['mean kB']:.0f} kB on average; {machine['cpu']}, {machine['cores']} cores; {report['date']};",
        f"torch {versions['torch']}, torchvision {versions['torchvision']}, timm {versions['timm']}, "
        f"OpenCV {versions['cv2']}, Pillow {versions['pillow']}" + (f", DALI {versions['dali']}." if "dali" in base else "."),
    ]
    return "\n".join(lines)


def kills(report: dict[str, Any]) -> str:
    """What the kills fell into, and whether that changed a bit."""
    fell = sorted(report["kills that fell into"].items())
    parts = ", ".join(f"{count} fell into {'a save' if what == 'save' else what}" for what, count in fell)
    return f"{parts}: {report['tensors compared']} tensors, {len(report['tensors that differ'])} differ ({report['date']})."


def recipes(report: dict[str, Any]) -> str:
    """What each recipe came to, and whether two interruptions changed a bit of that."""
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
    teacher, machine, versions = report["teacher"], report["machine"], report["versions"]
    lines += [
        "",
        f"All with `{report['options of all']}`;",
        f"the teacher is a `{teacher['options']}` of {teacher['iterations']} iterations. Of {rows} rows of metrics.csv",
        f"{differing} differ. Seconds are those of the run that was left alone; {report['runs at a time']} runs at a time, of",
        f"one thread each; {machine['cpu']}, {machine['cores']} cores, of which other processes held "
        f"{report['cores lost to other processes']:.1f}; {report['date']}; torch {versions['torch']}, timm {versions['timm']}.",
    ]
    return "\n".join(lines)


def save_time(report: dict[str, Any]) -> str:
    """What an iteration takes with a save and without."""
    return (
        f"An iteration during which a checkpoint of {report['checkpoint MB']:.0f} MB is copied and written takes "
        f"{report['ratio']:.2f} times as long as one\nwithout (medians of {report['median seconds with a save']:.2f} s and "
        f"{report['median seconds without']:.2f} s; 1.5x, 224 pixels, {report['machine']['cores']} cores; {report['date']})."
    )


def train_step(report: dict[str, Any]) -> str:
    """Images per second of a training step, by size and batch size."""
    rows = [(batch, size, sides) for batch, sizes in report["results"].items() for size, sides in sizes.items()]
    names = list(rows[0][2])
    lines = ["| images per second | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for batch, size, sides in rows:
        cells = (f"{sides[name]['images per second']:.1f} ({sides[name]['ratio to reference']:.2f}x)" for name in names)
        lines.append(f"| {size}, batches of {batch} | " + " | ".join(cells) + " |")
    machine, versions = report["machine"], report["versions"]
    lines += [
        "",
        "Medians; in brackets the ratio to the reference's formulation, measured in the same run. 224 pixels, on",
        f"{machine['device']}; {machine['cpu']}, {machine['cores']} cores; torch {versions['torch']}; {report['date']}.",
    ]
    return "\n".join(lines)


def prepared(report: dict[str, Any]) -> str:
    """Top-1 by what was trained on and evaluated on, and how far that is from the originals'."""
    lines = [
        "| trained on | kB per image | evaluated on | top-1 | minus that of the originals |",
        "|---|---:|---|---:|---:|",
    ]
    for variant, result in report["results"].items():
        options = result["options of prepare"]
        name = f"{variant} (`{options}`)" if options else variant
        for images in ("originals", "prepared"):
            if found := result.get(f"evaluated on {images}", {}).get("top-1"):
                difference = found["minus originals on originals"]
                shown = (
                    ""
                    if not options and images == "originals"
                    else f"{difference['mean']:+.1f} ({difference['standard error']:.1f})"
                )
                lines.append(f"| {name} | {result['bytes per image'] / 1000:.0f} | {images} | {found['mean']:.1f}% | {shown} |")
    classes, images = report["classes"], report["images"]
    lines += [
        "",
        f"Means of several seeds; differences in points, paired by seed, in brackets their standard error. {classes} classes,",
        f"{images['train']:,} images to train with and {images['val']:,} to evaluate with; {report['date']}.",
    ]
    return "\n".join(lines)


def inference(report: dict[str, Any]) -> str:
    """Images per second of each way to run the network, by the batch size."""
    sizes = sorted(report["results"], key=int)
    lines = [
        "| images per second | " + " | ".join(f"batches of {size}" for size in sizes) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for side in report["results"][sizes[0]]:
        cells = (report["results"][size][side] for size in sizes)
        lines.append(f"| {side} | " + " | ".join(f"{c['median']:,.1f} ({c['ratio to eager']:.2f}x)" for c in cells) + " |")
    machine, versions = report["machine"], report["versions"]
    onnx_runtime = f", ONNX Runtime {versions['onnxruntime']}" if "onnxruntime" in versions else ""
    lost = max(report["cores lost to other processes"].values())
    lines += [
        "",
        "Medians; in brackets the ratio to eager, measured in the same run. "
        f"{report['model size']}, float32, 224 pixels, {threads(report)};",
        f"{machine['cpu']}, {machine['cores']} cores, of which other processes held {lost:.1f}; {report['date']}; "
        f"torch {versions['torch']}{onnx_runtime}.",
    ]
    return "\n".join(lines)


def end_to_end(report: dict[str, Any]) -> str:
    """How soon, how fast and how large the command is."""
    lines = ["| `train.py` | median |", "|---|---:|"]
    for name, result in report["results"].items():
        value = f"{result['median']:.1%}" if name.startswith("share") else f"{result['median']:,.1f} {result['unit']}".strip()
        lines.append(f"| {name} | {value} |")
    machine = report["machine"]
    lines += [
        "",
        f"{report['iterations']} iterations of {report['batch size']} images; {report['model size']}, 224 pixels, "
        f"{threads(report)} for the network, on {machine['device']};",
        f"{machine['cpu']}, {machine['cores']} cores, of which other processes held "
        f"{report['cores lost to other processes']:.1f}; {report['date']}; torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines)


def threads(report: dict[str, Any]) -> str:
    return f"{report['threads']} thread{'s' * (report['threads'] != 1)}"


def start_up(report: dict[str, Any]) -> str:
    """How long it takes until it is known which images there are."""
    seconds = {**report["results"], "train.py --help": report["train.py --help"]}
    lines = ["| seconds | median | least | most |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {side['median']:.2f} | {side['min']:.2f} | {side['max']:.2f} |" for name, side in seconds.items()]
    lines += [
        "",
        f"{report['images']:,} images in {report['class folders']:,} folders on a local disk, read before; "
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores; {report['date']}.",
    ]
    return "\n".join(lines)


TABLES = {
    "data_path": data_path,
    "data_path_large": data_path,
    "kill_test": kills,
    "kill_test_processes": kills,
    "recipes": recipes,
    "save_time": save_time,
    "start_up": start_up,
    "train_step": train_step,
    "prepared": prepared,
    "inference": inference,
    "end_to_end": end_to_end,
}


def with_tables(text: str) -> str:
    """The document with each marked place filled from its results file."""
    for name, render in TABLES.items():
        before, after = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if before in text:
            table = render(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text()))
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
