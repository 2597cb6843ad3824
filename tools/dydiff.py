"""One command for all: dydiff COMMAND ... runs the tool of that name, wherever the package is installed.

`dydiff forecast ...` is `python tools/forecast.py ...` of a clone, and so on. Several processes start as they do there:
`torchrun --nproc_per_node 2 -m dydiff_tools.forecast ...`, `deepspeed --module dydiff_dist.train CONFIG`.
"""

import importlib.abc
import importlib.util
import sys
import types

COMMANDS = {
    "demo": ("dydiff_tools.demo", "forecast with a model that comes with the package"),
    "shards": ("dydiff_tools.make_shards", "turn files as you have them into shards"),
    "inspect": ("dydiff_tools.inspect_shards", "say what a folder of shards holds"),
    "train": ("dydiff_dist.train", "train a forecaster"),
    "train-fewstep": ("dydiff_tools.train_fewstep", "train a forecaster of few steps on its ensembles' score"),
    "train-vae": ("dydiff_tools.train_vae", "train an autoencoder"),
    "encode": ("dydiff_tools.encode_latents", "encode shards of frames as latents"),
    "forecast": ("dydiff_tools.forecast", "forecast ensembles"),
    "evaluate": ("dydiff_tools.evaluate", "score forecasts"),
    "sweep": ("dydiff_tools.sweep", "find the sampling that is worth its cost"),
    "report": ("dydiff_tools.report", "write scores as one page"),
    "export": ("dydiff_tools.export", "take a model out of a checkpoint"),
    "plan": ("dydiff_tools.plan", "foretell memory, hours and cost of a run"),
    "doctor": ("dydiff_tools.doctor", "say whether this machine is fit"),
    "study": ("dydiff_tools.study", "run and compare many trainings"),
}


def usage() -> str:
    lines = [f"  {name:<13} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: dydiff COMMAND ...; dydiff COMMAND --help tells more", "", *lines])


def main() -> None:
    """Runs the named tool as the main program; without a name, or with one that is none, prints those there are."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in COMMANDS:
        message = f"error: there is no command {name[:80]!r}\n" if name else ""
        print(f"{message}{usage()}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"dydiff {name}", *sys.argv[2:]]
    run_as_program(COMMANDS[name][0])


def run_as_program(module: str) -> None:
    """Runs a module as ``python -m`` does, but for the name of the program, which stays the user's."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and isinstance(spec.loader, importlib.abc.InspectLoader)
    program = types.ModuleType("__main__", spec.name)
    program.__spec__, program.__file__ = spec, spec.origin  # by which processes that it starts find it again
    sys.modules["__main__"] = program
    exec(spec.loader.get_code(module), program.__dict__)


if __name__ == "__main__":
    main()
