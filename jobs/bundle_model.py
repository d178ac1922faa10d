"""Make a bundled model of a trained one: its file, with the licence and the source of its data.

    python jobs/bundle_model.py out/nuclei/model.pt segray/models/bundled/nuclei-small.pt \
        --licence Apache-2.0 --source "segray, from EfficientNet-Lite0 ..."

Prints what its card names: parameters, bytes and sha256.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from segray.models.modelfile import ModelCard, load_model_file, model_bytes


def main() -> None:
    """Read the command line, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trained", type=Path, help="model.pt of `segray train`, of an instance model")
    parser.add_argument("bundled", type=Path, help="file to write")
    parser.add_argument("--licence", required=True, help="of the weights")
    parser.add_argument("--source", required=True, help="who trained it, from what, on which data")
    options = parser.parse_args()
    trained = load_model_file(options.trained)
    if not isinstance(trained.card, ModelCard):
        raise SystemExit(f"{options.trained}: no instance model")
    card = replace(trained.card, licence=options.licence, source=options.source)
    options.bundled.write_bytes(model_bytes(card, trained.module.state_dict()))
    made = load_model_file(options.bundled)
    parameters = sum(each.numel() for each in made.module.parameters())
    print(f"{options.bundled}: {parameters:,} parameters, {options.bundled.stat().st_size:,} bytes")
    print(f"sha256 {made.digest}")


if __name__ == "__main__":
    main()
