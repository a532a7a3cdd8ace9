"""CTGAN and TVAE (Xu et al., NeurIPS 2019) on one table: `generation.py` runs this by another Python.

    PEER_PYTHON benchmarks/generation_peers.py ctgan TRAIN.csv ROWS.csv --categories sex race --epochs 300

The environment needs `ctgan` and what it asks for, and nothing of Ebbtide, which does not depend on it. Up
to ctgan 0.6.0 and rdt 1.2.1 both are under the MIT licence, later ones under the Business Source License.
As many rows are written as were learnt from, and one line of JSON is printed: seconds of a processor, and
versions.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

METHODS = ("ctgan", "tvae")


def main() -> None:
    """Learn, draw as many rows, write them."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("method", choices=METHODS)
    words.add_argument("train", type=Path)
    words.add_argument("rows", type=Path)
    words.add_argument("--categories", nargs="*", default=[])
    words.add_argument("--epochs", type=int, default=300)
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()

    import numpy as np
    import pandas as pd
    import torch
    from ctgan import CTGAN, TVAE

    torch.set_num_threads(1)
    np.random.seed(given.seed)  # both draw from the global generators
    torch.manual_seed(given.seed)
    train = pd.read_csv(given.train, keep_default_na=False)
    model = (CTGAN if given.method == "ctgan" else TVAE)(epochs=given.epochs, cuda=False)
    begun = time.process_time()
    model.fit(train, given.categories)
    trained = time.process_time()
    model.sample(len(train)).to_csv(given.rows, index=False)
    about = {
        "train_s": trained - begun,
        "sample_s": time.process_time() - trained,
        "epochs": given.epochs,
        "versions": {name: version(name) for name in ("ctgan", "rdt", "torch")},
    }
    print(json.dumps(about))


if __name__ == "__main__":
    main()
