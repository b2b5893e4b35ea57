"""The fork's diffusion_bridge_config.yaml: what its numbers did, and the settings they are here.

    python -m lib.bridge.old_config configs/diffusion_bridge_config.yaml > configs/bridge.yaml

reads the file as it stands and prints settings for `lib.config` under an explanation in words. --as cheap (default)
gives the result of the evaluation as executed, with 6 network evaluations; executed repeats every call of it.
Sources: spec diffusion-bridge.md §2.4, §4.2, §10; ez-hoi.md §9.2.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

COUNT = 600  # network evaluations that branch `test` makes whatever the file says
TRAINED_DEPTH = 100  # entry depth of its training: `training_steps` never reached the program
TIMESTEPS = 1000
READINGS = ("cheap", "executed")


@dataclass(frozen=True)
class OldConfig:
    """The keys of the file, with the fork's defaults."""

    model_path: str = ""
    text_mean_path: str = ""
    inference_steps: int = 600
    training_steps: int = 100
    scale_factor: float = 5.0
    embed_dim: int | None = None

    def settings(self, reading: str = "cheap", folder: str = "", training: bool = True) -> dict[str, Any]:
        """Our settings by dotted key. folder: the imported bridge. training: it also takes part in training.

        cheap: the map that evaluation executed, in 12 evaluations. executed: with all of them, as that program rounds.
        """
        if reading not in READINGS:
            raise ValueError(f"reading: found {reading!r}, expected one of {', '.join(READINGS)}")
        depth = self.inference_steps
        cheap = reading == "cheap"
        walk: dict[str, Any] = {"entry_step": depth, "num_steps": min(12, depth), "solver": "sphere_pc"}
        if not cheap:
            walk = {"entry_step": depth, "num_steps": COUNT, "solver": "public"}
        found = {
            f"bridge.{key}": value for key, value in {"center": "text", "scale": self.scale_factor, **walk}.items()
        }
        if training:
            found["ezhoi.bridge"] = folder or self.folder
            found["ezhoi.bridge_grad"] = "straight_through" if cheap else "none"
        return found

    @property
    def folder(self) -> str:
        """Where `import_command` puts the bridge."""
        return f"weights/{Path(self.model_path).stem or 'bridge'}"

    @property
    def import_command(self) -> str:
        """Turns the two files into a bridge."""
        model, mean = self.model_path or "model-N.pt", self.text_mean_path or "text_mean.pkl"
        return (
            f"python -m lib.bridge.released {model} --text-mean {mean} --scale {self.scale_factor:g}"
            f" --clip local-dir:<the CLIP it was trained with> --out {self.folder}"
        )

    def explain(self) -> list[str]:
        """What the numbers really did, a paragraph each."""
        depth, steps = self.inference_steps, self.training_steps
        told = [
            "Two numbers went by one name. M, the entry depth, says how noisy a feature is taken to be and so where it"
            " ends; S, the network evaluations, only how accurately it is walked there. The paper uses M = 600, S = 5.",
            f"inference_steps: {depth} is M. Evaluation entered at timestep {depth - 1} with S = {COUNT} evaluations"
            + (f", {COUNT - depth} of which repeat a timestep and do nothing" if depth < COUNT else "")
            + f". {min(12, depth)} evaluations of a second-order solver end in the same place, at a cosine of 0.999 for"
            " 99 of 100 pairs (bridge.solver: sphere_pc).",
        ]
        if depth != 600:
            told.append(
                f"If {depth} was chosen for speed or quality, depth is the wrong number to turn: it moves the features"
                " elsewhere. Keep bridge.entry_step: 600 and turn bridge.num_steps (12 are enough)."
            )
        ignored = "" if steps == TRAINED_DEPTH else f" The {steps} here never reached the program, which used 100."
        told.append(
            f"training_steps: {steps}.{ignored} Training entered at depth {TRAINED_DEPTH} and still made S = {COUNT}"
            f" evaluations ({COUNT - TRAINED_DEPTH} do nothing), so it was no faster than evaluation, and it learnt for"
            f" another map than the one evaluated at depth {depth}. Here both enter at bridge.entry_step;"
            " ezhoi.bridge_steps gives the evaluations an epoch in training."
        )
        told.append(
            f"scale_factor: {self.scale_factor:g} is the radius of the training vectors. In evaluation it does nothing:"
            " the state is put back on the sphere before every evaluation. It must be the one of its training; trying"
            " 1, 2 or 10 on a trained bridge changes nothing upstream and is refused here."
        )
        told += [
            "text_mean_path: vision was centred with the mean of the *text* (bridge.center: text), so that one constant"
            " direction, the modality gap, stays in every feature and costs accuracy. bridge.center: own takes the mean"
            " of the pair features instead, as the paper does.",
            "The sampler ran without gradient, so training with it taught nothing but the logit scale"
            " (ezhoi.bridge_grad: none). straight_through lets the gradient pass.",
        ]
        if self.embed_dim:
            told.append(f"embed_dim: {self.embed_dim} is read from the files here, and checked when they are imported.")
        told.append(
            "The program never read this file (its flag was missing) and could load no real model: it took a kernel"
            " size for the embedding size. Numbers quoted with it are estimates."
        )
        return told


def read_old_config(path: Path | str) -> OldConfig:
    """Read the YAML as it stands. Raises ValueError for unknown keys, values of a wrong type and impossible steps."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no file, expected the fork's diffusion_bridge_config.yaml")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise ValueError(f"{path}: found no YAML ({error}), expected key: value lines") from None
    names = [item.name for item in fields(OldConfig)]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: found no keys, expected some of {', '.join(names)}")
    for key in content:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
            raise ValueError(f"{path}: unknown key {key!r}, did you mean {near!r}? For our own settings: lib.config")
    kinds = {"model_path": str, "text_mean_path": str, "scale_factor": float}
    values: dict[str, Any] = {}
    for key, value in content.items():
        kind = kinds.get(key, int)
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"{path}: {key}: found {value!r}, expected {kind.__name__}")
        values[key] = kind(value)
    found = OldConfig(**values)
    for key in ("inference_steps", "training_steps"):
        if not 1 <= getattr(found, key) <= TIMESTEPS:
            raise ValueError(f"{path}: {key}: found {getattr(found, key)}, expected 1 to {TIMESTEPS} (it is a depth)")
    if not found.scale_factor > 0:
        raise ValueError(f"{path}: scale_factor: found {found.scale_factor:g}, expected a radius above 0")
    return found


def to_yaml(config: OldConfig, source: str, reading: str = "cheap", training: bool = True) -> str:
    """Settings file: the explanation and the import command as comments, then the settings."""
    lines = [f"# From {source}, reading: {reading}", "#"]
    for paragraph in config.explain():
        lines += textwrap.wrap(paragraph, 116, initial_indent="# - ", subsequent_indent="#   ")
    lines += ["#", "# Once, before the first run:", f"#   {config.import_command}"]
    tree = OmegaConf.create()
    for key, value in config.settings(reading, training=training).items():
        OmegaConf.update(tree, key, value)
    return "\n".join(lines) + "\n" + OmegaConf.to_yaml(tree)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the settings file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.bridge.old_config", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--as", dest="reading", choices=READINGS, default="cheap", help="equal result cheaply, or all")
    parser.add_argument("--evaluate-only", action="store_true", help="the bridge takes no part in training")
    given = parser.parse_args(arguments)
    try:
        config = read_old_config(given.file)
    except (ValueError, FileNotFoundError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(to_yaml(config, given.file.name, given.reading, not given.evaluate_only), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
