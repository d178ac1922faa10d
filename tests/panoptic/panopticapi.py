"""PQ of one image as panopticapi counts it: its published loop, over Python dictionaries and whole arrays.

Follows `pq_compute_single_core` and `PQStat.pq_average` of
https://github.com/cocodataset/panopticapi/blob/master/panopticapi/evaluation.py,
Copyright (c) 2018, Alexander Kirillov, BSD 2-Clause; reading of files and processes are left out.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

OFFSET, VOID = 256 * 256 * 256, 0
Stat = dict[int, list[float]]
"""Category -> iou, tp, fp, fn."""


def count(stat: Stat, pan_gt: NDArray[Any], gt: list[dict[str, Any]], pan_pred: NDArray[Any],
          pred: list[dict[str, Any]]) -> None:  # fmt: skip
    """Add one image: ids (h, w), and segments with id, category_id, iscrowd."""
    gt_segms = {el["id"]: dict(el, area=int((pan_gt == el["id"]).sum())) for el in gt}
    pred_segms = {el["id"]: dict(el) for el in pred}
    labels, labels_cnt = np.unique(pan_pred, return_counts=True)
    for label, label_cnt in zip(labels.tolist(), labels_cnt.tolist(), strict=True):
        if label != VOID:
            pred_segms[label]["area"] = label_cnt
    pan_gt_pred = pan_gt.astype(np.uint64) * OFFSET + pan_pred.astype(np.uint64)
    gt_pred_map = {}
    labels, labels_cnt = np.unique(pan_gt_pred, return_counts=True)
    for label, intersection in zip(labels.tolist(), labels_cnt.tolist(), strict=True):
        gt_pred_map[(label // OFFSET, label % OFFSET)] = intersection
    gt_matched, pred_matched = set(), set()
    for (gt_label, pred_label), intersection in gt_pred_map.items():
        if gt_label not in gt_segms or pred_label not in pred_segms:
            continue
        if gt_segms[gt_label]["iscrowd"] == 1:
            continue
        if gt_segms[gt_label]["category_id"] != pred_segms[pred_label]["category_id"]:
            continue
        union = (
            pred_segms[pred_label]["area"]
            + gt_segms[gt_label]["area"]
            - intersection
            - gt_pred_map.get((VOID, pred_label), 0)
        )
        iou = intersection / union
        if iou > 0.5:
            stat[gt_segms[gt_label]["category_id"]][0] += iou
            stat[gt_segms[gt_label]["category_id"]][1] += 1
            gt_matched.add(gt_label)
            pred_matched.add(pred_label)
    crowd_labels_dict = {}
    for gt_label, gt_info in gt_segms.items():
        if gt_label in gt_matched:
            continue
        if gt_info["iscrowd"] == 1:
            crowd_labels_dict[gt_info["category_id"]] = gt_label
            continue
        stat[gt_info["category_id"]][3] += 1
    for pred_label, pred_info in pred_segms.items():
        if pred_label in pred_matched:
            continue
        intersection = gt_pred_map.get((VOID, pred_label), 0)
        if pred_info["category_id"] in crowd_labels_dict:
            intersection += gt_pred_map.get((crowd_labels_dict[pred_info["category_id"]], pred_label), 0)
        if intersection / pred_info["area"] > 0.5:
            continue
        stat[pred_info["category_id"]][2] += 1


def new_stat() -> Stat:
    """Return zeros."""
    return defaultdict(lambda: [0.0, 0, 0, 0])


def pq_average(stat: Stat, isthing: Mapping[int, bool], only: bool | None) -> dict[str, float]:
    """Return the means over the categories; only: True things, False stuff, None all."""
    pq, sq, rq, n = 0.0, 0.0, 0.0, 0
    for label, is_thing in isthing.items():
        if only is not None and only != is_thing:
            continue
        iou, tp, fp, fn = stat[label]
        if tp + fp + fn == 0:
            continue
        n += 1
        pq += iou / (tp + 0.5 * fp + 0.5 * fn)
        sq += iou / tp if tp != 0 else 0
        rq += tp / (tp + 0.5 * fp + 0.5 * fn)
    return {"pq": pq / n, "sq": sq / n, "rq": rq / n, "classes": n}
