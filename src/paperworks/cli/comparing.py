"""`paperworks compare`: several papers' parts on the same images under the same budget."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro

from paperworks.cli import output
from paperworks.errors import InputError
from paperworks.paper import Run, first_process

UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """ "90", "90s", "3min", "1h" in seconds."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", text)
    if not found or found[2] not in UNITS or not float(found[1]) > 0:
        raise InputError(f"budget {text!r} is no time: give seconds or minutes, as in 90s or 3min")
    return float(found[1]) * UNITS[found[2]]


def compare(
    *,
    task: Literal["classification", "generation", "inpainting"] = "classification",
    data: str = "default",
    budget: str = "1min",
    networks: tuple[str, ...] = (),
    tokenizers: tuple[str, ...] = (),
    generators: tuple[str, ...] = (),
    image: str = "",
    mask: str = "",
    seed: int = 0,
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
) -> int:
    """Trains the parts of several papers on the same images for the same time and reports them side by side.

    Args:
        task: "classification": recognition networks; "generation": every tokenizer with every generator;
            "inpainting": PUT, VAR and HMAR fill the same holes
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits (photos for inpainting)
        budget: training time of each network or generator, as in 90s or 3min; tokenizers get four times as much
        networks: papers to compare (classification); all when none is named
        tokenizers: of the comparison (generation); all when none is named
        generators: of the comparison (generation); all when none is named
        image: a picture to fill, reduced to 32 pixels (inpainting)
        mask: white where it is to be made anew (inpainting); its centre when none is named
        seed: of initial weights, order and sampling
        out: folder of the run instead of runs/compare-TASK; a stopped comparison goes on
    """
    time = seconds(budget)
    if task == "generation":
        from paperworks.papers._compare_tokens import compare as build

        recipe = build(data, time, tokenizers, generators, seed)
    elif task == "inpainting":
        from paperworks.papers._compare_inpainting import compare as build_inpainting

        recipe = build_inpainting(data, time, image, mask, seed)
    else:
        from paperworks.papers._compare_networks import compare as build_networks

        recipe = build_networks(data, time, networks, seed)
    folder = out or Path("runs") / f"compare-{task}"
    words = ["paperworks", "compare", "--task", task, "--data", data, "--budget", budget]
    given = {"networks": networks, "tokenizers": tokenizers, "generators": generators}
    given |= {"image": (image,) if image else (), "mask": (mask,) if mask else (), "seed": (str(seed),) if seed else ()}
    for name, values in given.items():
        if values:
            words += [f"--{name}", *values]
    run = Run.open(folder, slug="compare", recipe=task, arguments={}, config=recipe.config, command=shlex.join(words))
    run.execute(recipe, say=output.line if first_process() else lambda _: None)
    output.line(output.report_line(folder))
    return 0
