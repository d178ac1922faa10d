"""`segray VERB …`: parse, call, exit code. Heavy libraries are imported by the verb that needs them."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from segray.errors import ExitCode, SegrayError, SettingsError
from segray.interrupts import INTERRUPTS
from segray.log import LOG, say
from segray.versions import banner

if TYPE_CHECKING:
    from segray.settings import JobSettings

EXAMPLES = """examples:
  segray annotate photos/ --weights nuclei-small --output out/
  segray annotate s3://bucket/shards/ --output s3://bucket/labels --weights coco-v2 --actors 8
  segray annotate list.parquet more.tar --config annotate.yaml --max-rejects 0.01

exit codes:
  0 done   1 failed, run again to continue   2 bad settings   3 too many rejects   4 nothing to do
  130 interrupted, run again to continue"""

TRAIN_EXAMPLES = """examples:
  segray train --data people/train.csv --output out/people --epochs 30 --size 320 --fit resize
  segray train --data s3://bucket/streets --output s3://bucket/model --arch unet:resnet50 --workers 4
  segray train --data nuclei/instances.json --root nuclei/images --output out/nuclei --arch compact-maskrcnn
  segray train --config train.yaml

exit codes:
  0 done   1 failed, run again to continue   2 bad settings   3 too many rejects
  130 interrupted, run again to continue"""

PREDICT_EXAMPLES = """examples:
  segray predict photos/ --weights out/people/model.pt --output out/maps
  segray predict s3://bucket/scenes --weights s3://bucket/model/model.pt --output s3://bucket/maps --tta flip
  segray predict scene.tif --weights model.pt --output out/roads --probabilities --polygons

exit codes:
  0 done   1 failed, run again to continue   2 bad settings   3 too many rejects   4 nothing to do
  130 interrupted, run again to continue"""

EVALUATE_EXAMPLES = """examples:
  segray evaluate --predictions out/maps --labels streets/labels/test --classes road,tree --output out/scores
  segray evaluate --predictions out/labels --labels s3://bucket/instances.json --output s3://bucket/scores
  segray evaluate --weights out/people/model.pt --data out/people/splits.csv --split test --output out/scores

exit codes:
  0 done   1 failed, run again   2 bad settings   3 too many labels in no score   4 nothing to compare
  130 interrupted, run again"""

RETRAIN_EXAMPLES = """examples:
  segray retrain --config retrain.yaml
  segray retrain --data s3://bucket/labels --registry s3://bucket/models --model roofs --output s3://bucket/rounds
  segray retrain --config retrain.yaml --min-new 200 --group-by camera --if-drift s3://bucket/tonight

exit codes:
  0 promoted   1 failed, run again to continue   2 bad settings   3 too many rejects
  4 nothing new, or another run has the output   5 refused, with reasons   130 interrupted, run again"""

STATUS_EXAMPLES = """examples:
  segray status out/
  segray status s3://bucket/labels --json

exit codes:
  0 a run is there, whatever became of it   1 the storage refuses   2 bad settings   4 no run there"""

DRIFT_EXAMPLES = """examples:
  segray drift out/november --against out/october
  segray drift s3://bucket/labels --against registry://bucket/models#buildings@champion --json
  segray drift out/november --against out/october --group-by camera --output out/drift

exit codes:
  0 no drift   1 failed, run again   2 bad settings   3 drift: a threshold is crossed   4 no run there"""

_LOOKED_AT = {
    "annotate": "the sources, the weights and the output",
    "train": "the data and the output",
    "predict": "the sources, the weights and the output",
    "evaluate": "what is to be compared",
    "retrain": "the labels, the registry and the output",
}
"""The verbs that work on data, and what each looks at first."""

DOCTOR_EXAMPLES = """examples:
  segray doctor
  segray doctor s3://bucket/labels --storage.s3.endpoint-url http://minio:9000 --json

exit codes:
  0 what is needed works   1 something does not   2 bad settings"""

AGAIN = "run the same command again to continue"

USAGE = """usage: segray VERB ...

Image archives into segmentation labels, on one machine or a Ray cluster.

verbs:
  annotate SOURCE... --output URL
      Mask R-CNN over a collection, into Parquet instance annotations
  train --data URL --output URL
      a model: U-Net and others from label maps, Mask R-CNN from COCO
  predict SOURCE... --output URL
      label maps with such a model: PNG for pictures, COG for scenes
  evaluate --output URL
      scores of predictions against labels, or of a model over data
  retrain --config FILE
      new labels in, a better model out, or a refusal with reasons
  submit (--address URL | --slurm | --kuberay | --sky) VERB ...
      one of these on a cluster, with its log and its exit code
  schedule VERB ... --cron TIMES --as SCHEDULER
      text for cron, systemd, Kubernetes, Airflow or Slurm to run it
  status RUN [--json]
      what became of a run, or becomes of it now
  drift RUN --against RUN [--group-by COLUMN] [--output URL] [--json]
      whether images and labels are distributed as those of another run
  registry (list|show|add|promote|rollback|diff|verify|gc) ... --registry URL
      versions of models, and which of them is the champion
  models [--json]
      what can be loaded, its licence and where the weights come from
  doctor [OUTPUT...] [--json]
      what works on this machine, and what to install for the rest

`segray VERB --help` says more; `segray --version` prints the version."""


def _settings(verb: str, arguments: Sequence[str], program: str = "segray") -> "JobSettings":
    """Of a verb that works on data; `program` is how it was called."""
    from segray.settings import AnnotateSettings, load_settings

    program = f"{program} {verb}"
    if verb == "annotate":
        return load_settings(AnnotateSettings, arguments, program, EXAMPLES)
    if verb == "predict":
        from segray.predict.settings import PredictSettings

        return load_settings(PredictSettings, arguments, program, PREDICT_EXAMPLES)
    if verb == "train":
        from segray.train.settings import TrainSettings

        return load_settings(TrainSettings, arguments, program, TRAIN_EXAMPLES, "--data URL --output URL")
    if verb == "retrain":
        from segray.retrain.settings import RetrainSettings

        usage = "--data URL --registry URL --model NAME --output URL"
        return load_settings(RetrainSettings, arguments, program, RETRAIN_EXAMPLES, usage)
    from segray.evaluate.settings import EvaluateSettings

    usage = "{--predictions P --labels L | --weights W --data D} --output URL"
    return load_settings(EvaluateSettings, arguments, program, EVALUATE_EXAMPLES, usage)


def _on_data(verb: str, arguments: Sequence[str]) -> int:
    """Run one of the verbs that work on data."""
    from segray.settings import printable

    settings: Any = _settings(verb, arguments)
    if settings.print_config:
        print(printable(settings), end="")
        return ExitCode.DONE
    say(f"{verb}: looking at {_LOOKED_AT[verb]}")
    if verb == "train":
        from segray.train.job import train

        return train(settings)
    if verb == "evaluate":
        from segray.evaluate.job import evaluate

        return evaluate(settings)
    if verb == "retrain":
        from segray.retrain.job import retrain

        return retrain(settings)
    from segray.bulk.job import run

    if verb == "predict":
        from segray.predict.task import Predict

        return run(Predict(settings))
    from segray.annotate.task import Annotate

    return run(Annotate(settings))


def _submit(arguments: Sequence[str]) -> int:
    from segray.settings import load_settings, printable
    from segray.submit.job import EXAMPLES, USAGE, VERBS, check_words, split, submit
    from segray.submit.settings import SubmitSettings

    own, verb, rest = split(arguments)
    check_words(own, verb)
    settings = load_settings(SubmitSettings, own, "segray submit", EXAMPLES, USAGE)
    if settings.print_config:
        print(printable(settings), end="")
        return ExitCode.DONE
    if not verb:
        verbs = ", ".join(VERBS)
        raise SettingsError(
            f"say what to do there: one of {verbs}, and its settings", f"usage: segray submit {USAGE}"
        )
    job = _settings(verb, rest, "segray submit ...")
    if job.print_config:
        print(printable(job), end="")
        return ExitCode.DONE
    return submit(settings, verb, job)


def _schedule(arguments: Sequence[str]) -> int:
    from segray.schedule.job import EXAMPLES, USAGE, schedule, split
    from segray.schedule.settings import ScheduleOptions, ScheduleSettings
    from segray.settings import load_settings, printable
    from segray.submit.job import VERBS

    own, verb, rest = split(arguments)
    settings: ScheduleOptions | None = None
    job: JobSettings | None = None
    problems = list[str]()
    try:
        settings = load_settings(ScheduleSettings, own, "segray schedule", EXAMPLES, USAGE)
    except SettingsError as error:
        problems += error.lines
    if settings is not None and settings.print_config:
        print(printable(settings), end="")
        return ExitCode.DONE
    try:
        if not verb:
            raise SettingsError(f"say what is to be run: one of {', '.join(VERBS)}, and its settings")
        job = _settings(verb, rest, "segray schedule ...")
    except SettingsError as error:
        problems += error.lines
    if settings is None or job is None:
        raise SettingsError(*problems)
    if job.print_config:
        print(printable(job), end="")
        return ExitCode.DONE
    return schedule(settings, verb, job)


def _status(arguments: Sequence[str]) -> int:
    from segray.settings import StatusSettings, load_settings, printable

    rest = [each for each in arguments if each != "--json"]
    settings = load_settings(StatusSettings, rest, "segray status", STATUS_EXAMPLES, "RUN [--json]")
    if settings.print_config:
        print(printable(settings), end="")
        return ExitCode.DONE
    from segray.status import show

    return show(settings, as_json=len(rest) < len(arguments))


def _drift(arguments: Sequence[str]) -> int:
    from segray.drift.settings import DriftSettings
    from segray.settings import load_settings, printable

    rest = [each for each in arguments if each != "--json"]
    usage = "RUN --against RUN [--json]"
    settings = load_settings(DriftSettings, rest, "segray drift", DRIFT_EXAMPLES, usage)
    if settings.print_config:
        print(printable(settings), end="")
        return ExitCode.DONE
    from segray.drift.job import show

    return show(settings, as_json=len(rest) < len(arguments))


def _registry(arguments: Sequence[str]) -> int:
    from segray.registry.settings import EXAMPLES, USAGE, RegistrySettings
    from segray.settings import load_settings, printable

    rest = [each for each in arguments if each != "--json"]
    settings = load_settings(RegistrySettings, rest, "segray registry", EXAMPLES, f"{USAGE} [--json]")
    if settings.print_config:
        print(printable(settings), end="")
        return ExitCode.DONE
    from segray.registry.job import run

    return run(settings, as_json=len(rest) < len(arguments))


def _models(arguments: Sequence[str]) -> int:
    from segray.models.catalog import show

    return show(as_json=_json_flag("models", "what can be loaded, and from where", arguments))


def _doctor(arguments: Sequence[str]) -> int:
    from segray.doctor import show
    from segray.settings import DoctorSettings, load_settings, printable

    rest = [each for each in arguments if each != "--json"]
    settings = load_settings(DoctorSettings, rest, "segray doctor", DOCTOR_EXAMPLES, "[OUTPUT...] [--json]")
    if settings.print_config:
        print(printable(settings), end="")
        return ExitCode.DONE
    return show(len(rest) < len(arguments), settings.outputs, settings.storage)


def _json_flag(verb: str, description: str, arguments: Sequence[str]) -> bool:
    import argparse

    parser = argparse.ArgumentParser(prog=f"segray {verb}", description=description)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return bool(parser.parse_args(arguments).json)


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    **{verb: partial(_on_data, verb) for verb in _LOOKED_AT},
    "submit": _submit,
    "schedule": _schedule,
    "status": _status,
    "drift": _drift,
    "registry": _registry,
    "models": _models,
    "doctor": _doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (see `segray.errors.ExitCode`)."""
    verb, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    rest = rest[:-1]
    if verb in ("-h", "--help", "help"):
        print(USAGE)
        return ExitCode.DONE
    if verb == "--version":
        print(banner())
        return ExitCode.DONE
    LOG.begin(verb, rest)
    code = _run(verb, rest)
    LOG.end(code)
    return code


def _run(verb: str, rest: Sequence[str]) -> int:
    """The exit code; what went wrong is said."""
    if verb not in VERBS:
        say(f"unknown verb {verb!r}\n{USAGE}" if verb else f"no verb\n{USAGE}", "error")
        return ExitCode.USAGE
    try:
        with INTERRUPTS:
            return int(VERBS[verb](rest))
    except SegrayError as error:
        for line in error.lines:
            say(line, "error")
        if error.exit_code == ExitCode.FAILED and "again" not in str(error):
            say(f"what is committed is safe; {AGAIN}", "error")
        return error.exit_code
    except KeyboardInterrupt:
        say(f"interrupted; {AGAIN}", "warning")
        return ExitCode.INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
