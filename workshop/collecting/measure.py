"""What `iclora collect` makes of material with known truth; the figures of docs/collecting.md.

python -m workshop.collecting.measure films FOLDER     # of workshop.collecting.films
python -m workshop.collecting.measure pictures FOLDER  # of workshop.collecting.pictures
python -m workshop.collecting.measure pairs
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from iclora.progress import Event, Progress
from iclora.sets.collect.likeness import families, near_duplicates
from iclora.sets.collect.looks import Looks
from iclora.sets.collect.picture import Look, Origin, Picture
from iclora.sets.collect.run import collect
from iclora.sets.collect.sources.naming import sets_by_name
from iclora.settings import CollectSettings

__all__ = ["measure_films", "measure_pairs", "measure_pictures"]

HABITS = (
    "x{0:03d}_before.png x{0:03d}_after.png",
    "Before-{0}.jpg After-{0}.jpg",
    "a/{0}.jpg b/{0}.jpg",
    "input/{0:04d}.png target/{0:04d}.png",
    "house{0}-1.png house{0}-2.png",
    "IMG_{0:04d}A.jpg IMG_{0:04d}B.jpg",
    "IMG_{0}7.jpg IMG_{0}7_edited.jpg",
    "s{0}/1.png s{0}/2.png",
)


def measure_films(folder: Path) -> dict[str, Any]:
    """Cuts, frames and scenes of films whose truth lies beside them."""
    found: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for path in sorted(folder.glob("*.mp4")):
        truth = json.loads(path.with_suffix(".json").read_text())
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "sets"
            settings = CollectSettings(
                sources=(str(path),), recipe="film-storyboard", out=str(out), review=False
            )
            shots: list[tuple[int, int]] = []

            def see(event: Event, shots: list[tuple[int, int]] = shots) -> None:
                shots.extend(event.values.get("shots", ()))

            collect(settings, Progress(see))
            rows = [json.loads(line) for line in (out / "sets.jsonl").read_text().splitlines()]
        _count_ends(truth, shots, found, kinds)
        for row in rows:
            scenes = {_scene(truth, panel["frame"]) for panel in row["panels"]}
            found["sets"] += 1
            found["sets of one scene"] += len(scenes) == 1 and None not in scenes
            for panel in row["panels"]:
                found["frames"] += 1
                found["frames on a cut, fade or dissolve"] += _on_end(truth, panel["frame"])
                box = panel.get("box") or [0, 0, *truth["size"]]
                found["boxes exact"] += box == truth["box"]
    ends, told = found["ends"], found["told"]
    return {
        **found,
        "recall": round(found["hit"] / ends, 4),
        "precision": round(found["hit"] / told, 4),
        **{kind: dict(counts) for kind, counts in kinds.items()},
    }


def _count_ends(
    truth: dict[str, Any],
    shots: list[tuple[int, int]],
    found: Counter[str],
    kinds: dict[str, Counter[str]],
) -> None:
    told = [(before[1], after[0]) for before, after in pairwise(shots)]
    found["told"] += len(told)
    for end in truth["transitions"]:
        found["ends"] += 1
        kinds[end["kind"]]["there"] += 1
        near = [t for t in told if t[0] <= end["end"] + 1 and t[1] >= end["first"] - 1]
        if near:
            told.remove(near[0])
            found["hit"] += 1
            kinds[end["kind"]]["found"] += 1


def _scene(truth: dict[str, Any], frame: int) -> int | None:
    return next((s["scene"] for s in truth["shots"] if s["first"] <= frame < s["end"]), None)


def _on_end(truth: dict[str, Any], frame: int) -> bool:
    return any(t["first"] - 1 <= frame < t["end"] for t in truth["transitions"])


def measure_pictures(folder: Path) -> dict[str, Any]:
    """Duplicates found, and how pure families are."""
    truth = json.loads((folder / "truth.json").read_text())
    names = sorted(truth)
    pictures = [Picture(Origin(name), (folder / name).read_bytes) for name in names]
    seen = Looks(lambda _: None, Progress()).of_all(pictures)
    looks: list[Look] = [look for look in seen if look is not None]
    assert len(looks) == len(names)
    first = {name: about.get("original", name) for name, about in truth.items()}
    groups: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        groups[first[name]].append(number)
    real = {pair for group in groups.values() for pair in combinations(group, 2)}
    told = set(near_duplicates(looks))
    twins = {other for _, other in told}
    left = [number for number in range(len(names)) if number not in twins]
    grouped = families([looks[i] for i in left])
    right = panels = pure = 0
    for group in grouped:
        subjects = [truth[names[left[i]]]["subject"] for i in group]
        right += Counter(subjects).most_common(1)[0][1]
        for start in range(0, len(group) - 2, 3):
            panels += 1
            pure += len(set(subjects[start : start + 3])) == 1
    return {
        "pictures": len(names),
        "duplicate pairs": len(real),
        "found": len(real & told),
        "false": len(told - real),
        "families": len(grouped),
        "purity": round(right / len(left), 4),
        "sets of three": panels,
        "of one subject": pure,
    }


def measure_pairs() -> dict[str, Any]:
    """Pairs found under each naming habit, of 50."""
    found = {}
    for habit in HABITS:
        pairs = [tuple(habit.format(i).split()) for i in range(1, 51)]
        sets, left = sets_by_name([name for pair in pairs for name in pair], 2)
        found[habit] = f"{len({s.names for s in sets} & set(pairs))} of 50, {len(left)} left"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("films", "pictures", "pairs"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    args = parser.parse_args()
    measures = {"films": measure_films, "pictures": measure_pictures}
    found = measures[args.what](args.folder) if args.what in measures else measure_pairs()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
