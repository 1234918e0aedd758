"""A small report whose numbers a test can name: a distance, a benefit, near-duplicates and a pair of sheets."""

import numpy as np
from PIL import Image

from synthorax.evaluation.report import contact_sheets
from synthorax.evaluation.report.record import BalanceRow, Dimension, Report
from synthorax.types import Score

ARMS = ("real", "classic", "oversampling", "real+synthetic")


def score(**parts):
    return Score(**{"metric": "fid", "value": 60.0, "low": 55.0, "high": 66.0, "n_real": 300,
                    "n_synthetic": 400, "floor": 21.0, "features": "EfficientNet-Lite0"} | parts)


def benefit_entry(*, finding="Pneumothorax", verdict="helps", value=0.031, low=0.008, high=0.055, p=0.012, **parts):
    curve = {"fpr": np.linspace(0, 1, 11), "tpr": np.linspace(0, 1, 11) ** 0.5}
    arms = [{"arm": arm, "auroc": 0.78 + 0.01 * i, "low": 0.7, "high": 0.9, "auprc": 0.3} for i, arm in enumerate(ARMS)]
    delta = {"against": "real", "arm": "real+synthetic", "value": value, "low": low, "high": high, "p": p}
    return {"finding": finding, "verdict": verdict, "n_real_positive_train": 52, "n_test_positive": 31, "seeds": 5,
            "n_test_patients": 224, "updates": 1600, "classifier": "small ResNet", "delta": delta | {"test": "DeLong"},
            "arms": [*arms, {"arm": "synthetic only"}],
            "others_worse": [], "roc": dict.fromkeys(ARMS, curve)} | parts


def report(**parts):
    png = contact_sheets.png_bytes(Image.new("L", (8, 8)))
    dimensions = {"fidelity": Dimension("measured", scores=(score(), score(group="Pneumothorax"))),
                  "benefit": Dimension("measured", findings=(benefit_entry(),)),
                  "privacy": Dimension("measured", scores=(score(metric="near_duplicate_rate", value=0.0, low=0.0, high=0.01),),
                                       extra={"threshold": np.float32(0.5)})}
    row = BalanceRow(finding="Pneumothorax", before=52, after=300, total_before=1040, total_after=1440)
    inputs = {"real": {"digest": "a" * 64, "images": 1489}, "synthetic": {"digest": "b" * 64, "images": 400}}
    return Report(**{"inputs": inputs, "dimensions": dimensions, "balance": (row,),
                     "judges": ({"name": "EfficientNet-Lite0", "digest": "c" * 64},),
                     "figures": {"real: Pneumothorax": png, "synthetic: Pneumothorax": png},
                     "command": "synthorax augment nih --finding Pneumothorax --out out"} | parts)
