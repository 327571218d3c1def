"""Builds the labelled sample with boxes: `python benchmarks/make/photos.py val.tar.gz boxes.tsv -o photos.zip`.

The boxes are a tab-separated file with a header: key, WordNet id, x0, y0, x1, y1 (first and last column and row).
Tiny ImageNet's `val_annotations.txt` holds them. Takes three photographs of every even class and two of every odd one.
"""

import argparse
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

from clipag_plug.train.data import read_tar

COLUMNS = ("key", "class", "x0", "y0", "x1", "y1")


def main() -> None:
    """Reads the shard and the boxes and writes the zip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shard", type=Path)
    parser.add_argument("boxes", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("photos.zip"))
    options = parser.parse_args()
    lines = options.boxes.read_text(encoding="utf-8").splitlines()[1:]
    boxes = {fields[0]: fields[2:6] for fields in (line.split("\t") for line in lines)}
    classes: dict[int, list[tuple[str, bytes]]] = defaultdict(list)
    # A sample's key is its place in the shard, six digits, as the boxes file has it.
    for number, sample in enumerate(read_tar(options.shard, Counter())):
        classes[int(sample["cls"])].append((f"{number:06d}", sample["jpg"]))
    rows = ["\t".join(COLUMNS)]
    with zipfile.ZipFile(options.output, "w") as archive:
        for label in sorted(classes):
            for key, data in classes[label][: 3 - label % 2]:
                archive.writestr(f"{key}.jpg", data)
                rows.append("\t".join([key, str(label), *boxes[key]]))
        archive.writestr("labels.tsv", "\n".join(rows) + "\n", zipfile.ZIP_DEFLATED)
    print(options.output, len(rows) - 1)


if __name__ == "__main__":
    main()
