"""One arm of `evaluate`: COCO files -> COCO's twelve figures of masks and of boxes, timed after the imports.

python -m jobs.benchmarks.evaluate_arms ARM TRUTH RESULTS SMALL_TRUTH SMALL_RESULTS     prints JSON
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("segm", "bbox")
STATS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar", "ar_small", "ar_medium",
    "ar_large",
)  # fmt: skip


def pycocotools(truth: str, results: str) -> list[float]:
    """As its demo."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _demo(COCO, COCOeval, truth, results)


def faster_coco_eval(truth: str, results: str) -> list[float]:
    """As its demo, which is that of pycocotools."""
    from faster_coco_eval import COCO, COCOeval_faster

    return _demo(COCO, COCOeval_faster, truth, results)


def _demo(coco: Any, evaluation: Any, truth: str, results: str) -> list[float]:
    labels = coco(truth)
    found = labels.loadRes(results)
    figures = list[float]()
    for kind in KINDS:
        each = evaluation(labels, found, kind)
        each.evaluate()
        each.accumulate()
        each.summarize()
        figures += [float(value) for value in each.stats[:12]]
    return figures


def segray(truth: str, results: str) -> list[float]:
    """`segray evaluate` in this process, without intervals, which the others have not."""
    from segray.evaluate.compare_instances import find_instances
    from segray.evaluate.settings import EvaluateSettings

    with tempfile.TemporaryDirectory() as output:
        settings = EvaluateSettings(
            predictions=results, labels=truth, output=output, draws=0, ray_above=10**9
        )
        metrics = find_instances(settings, results, truth).run().metrics
    return [metrics[kind][name] for kind in KINDS for name in STATS]


ARMS: dict[str, Callable[[str, str], list[float]]] = {
    "pycocotools": pycocotools,
    "faster-coco-eval": faster_coco_eval,
    "segray": segray,
}


def main(arm: str, truth: str, results: str, warm_truth: str, warm_results: str) -> None:
    """Run once over small files, so that everything is imported, then over the large ones."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        ARMS[arm](warm_truth, warm_results)
        started, used = time.perf_counter(), time.process_time()
        figures = ARMS[arm](truth, results)
        seconds, cpu = time.perf_counter() - started, time.process_time() - used
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]  # ru_maxrss counts the parent's, too
    peak = int(status.split()[0]) << 10
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, "figures": figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
