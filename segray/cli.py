"""`segray VERB …`: parse, call, exit code. Heavy libraries are imported by the verb that needs them."""

import argparse
import os
import sys
from collections.abc import Sequence

from segray.errors import ExitCode, SegrayError
from segray.interrupts import INTERRUPTS
from segray.log import LOG, say
from segray.verbs import VERBS
from segray.versions import banner

AGAIN = "run the same command again to continue"

USAGE = """usage: segray VERB ...

Image archives into segmentation labels, on one machine or a Ray cluster.

verbs:
  annotate SOURCE... --output URL
      Mask R-CNN over a collection, into Parquet instance annotations
  train --data URL --output URL
      a model: U-Net and others from label maps, Mask R-CNN from COCO
  predict SOURCE... --output URL
      label maps with such a model: PNG for images, COG for scenes
  evaluate --output URL
      scores of predictions against labels, or of a model over data
  compare --data D --weights A,B,... --output URL
      models side by side: scores, differences, FLOPs, speed, memory, panels
  panoptic --instances RUN --maps RUN --output URL
      instances and label maps of the same images in one: COCO-panoptic
  retrain --config FILE
      a better model from new labels, or a refusal with reasons
  select RUN --budget N [--group-by COLUMN] --output MANIFEST
      which images a person should look at next, each with its reason
  submit (--address URL | --slurm | --kuberay | --sky) VERB ...
      one of these on a cluster, with its log and exit code
  schedule VERB ... --cron TIMES --as SCHEDULER
      a file for cron, systemd, Kubernetes, Airflow or Slurm to run it
  status RUN [--json]
      state of a run, live or finished
  drift RUN --against RUN [--group-by COLUMN] [--output URL] [--json]
      whether images and labels are distributed like those of another run
  preview RUN [RUN] --output DIR
      pages that show a run, or how two differ, in any browser
  export RUN --as FORMAT --output PATH
      labels for COCO, YOLO, QGIS or Label Studio, or as masks
  import FILE --as FORMAT [--run RUN] --output URL
      labels that a person corrected elsewhere, back for train and evaluate
  registry (list|show|add|promote|rollback|diff|verify|gc) ... --registry URL
      versions of models, and which is the champion
  models [--json]
      what can be trained and loaded, licence and source of the weights
  doctor [OUTPUT...] [--json]
      what works on this machine, and what to install for the rest

`segray VERB --help` prints more; `segray --version` prints the version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code (see `segray.errors.ExitCode`)."""
    verb, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    rest = rest[:-1]
    if verb in ("-h", "--help", "help"):
        print(USAGE)
        return ExitCode.DONE
    if verb == "--version":
        print(banner())
        return ExitCode.DONE
    LOG.begin(verb, rest)
    try:
        code = _run(verb, rest)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it has closed it, as `| head` does; a storage's has other words
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at its end
        code = ExitCode.FAILED
        say("the output was not read to its end", "warning")
    LOG.end(code)
    return code


def _run(verb: str, rest: Sequence[str]) -> int:
    """Run one verb and return its exit code; print its errors."""
    if verb not in VERBS:
        say(f"unknown verb {verb!r}\n{USAGE}" if verb else f"no verb\n{USAGE}", "error")
        return ExitCode.USAGE
    try:
        with INTERRUPTS:
            return int(_called(verb, rest))
    except SegrayError as error:
        for line in error.lines:
            say(line, "error")
        if error.exit_code == ExitCode.FAILED and "again" not in str(error):
            say(f"what is committed is safe; {AGAIN}", "error")
        return error.exit_code
    except KeyboardInterrupt:
        say(f"interrupted; {AGAIN}", "warning")
        return ExitCode.INTERRUPTED


def _called(name: str, arguments: Sequence[str]) -> int:
    """Run a known verb and return its exit code."""
    verb = VERBS[name]
    if verb.splits:
        return int(verb.function()(arguments))
    if verb.settings is None:
        return int(verb.function()(as_json=_json_flag(name, "what can be trained and loaded", arguments)))
    from segray.command_line import settings_of
    from segray.settings import printable

    rest = [each for each in arguments if each != "--json"] if verb.json else arguments
    settings = settings_of(name, rest)
    if settings.print_config:
        print(printable(settings), end="")
        return ExitCode.DONE
    if verb.reads:
        say(f"{name}: checking {verb.reads}")
    more = {"as_json": len(rest) < len(arguments)} if verb.json else {}
    return int(verb.function()(settings, **more))


def _json_flag(verb: str, description: str, arguments: Sequence[str]) -> bool:
    parser = argparse.ArgumentParser(prog=f"segray {verb}", description=description)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return bool(parser.parse_args(arguments).json)


if __name__ == "__main__":
    raise SystemExit(main())
