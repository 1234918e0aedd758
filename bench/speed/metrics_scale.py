"""Seconds and peak memory of fidelity and diversity on large sets of features: FID, KID, MMD, the four of neighbours, Vendi.

    python3 bench/speed/metrics_scale.py --images 20000 --features 1024 --threads 2

Each metric is measured once with its interval, without a floor (a floor is the same work again). Memory is the process's peak, the
two sets of features (float32) included.
"""

import argparse
import resource
import time

import numpy as np
import torch

from synthorax.evaluation.metrics.distances import fid_score, kid_score, mmd_score
from synthorax.evaluation.metrics.neighbours import neighbour_scores
from synthorax.evaluation.metrics.vendi import vendi_score


def features(seed: int, images: int, dims: int) -> np.ndarray:
    """As a network's features are: positive, correlated, of unequal spread."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(64, dims)).astype(np.float32)
    rows = [np.abs(rng.normal(size=(min(1000, images - start), 64)).astype(np.float32) @ mixing) / 8
            + 0.3 * rng.random((min(1000, images - start), dims), dtype=np.float32) for start in range(0, images, 1000)]
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    real, made = (features(seed, settings.images, settings.features) for seed in (1, 2))
    total_wall = total_cpu = 0.0
    for name, measure in (("fid", fid_score), ("kid", kid_score), ("mmd", mmd_score), ("neighbours", neighbour_scores),
                          ("vendi", vendi_score)):
        wall, cpu = time.perf_counter(), time.process_time()
        sets = {} if name == "vendi" else {"floor_sets": None}
        measure(real, made, features_name="bench", seed=0, **sets)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        total_wall, total_cpu = total_wall + wall, total_cpu + cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:<11}{wall:8.1f} s{cpu:8.1f} processor-s   peak {peak:5.2f} GiB", flush=True)
    print(f"{settings.images} x {settings.images} images of {settings.features} features: {total_wall:.1f} s, {total_cpu:.1f} processor-s")


if __name__ == "__main__":
    main()
