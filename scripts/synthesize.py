"""Makes labelled synthetic lung CT slices from the three bundles, or goes on with a run that was stopped.

python scripts/synthesize.py --out OUT --count 64 --seed 0

`lungsynth generate` runs the same stages. They stand here one by one, because this file is the product's story.
"""

import argparse
import sys
from collections.abc import Sequence

from lungsynth.cli import COMMANDS, run_command
from lungsynth.commands.command import Report, repeat_command, tracking_uri
from lungsynth.commands.samples import GENERATE, generate_config, report_estimate, report_generated


def synthesize(options: argparse.Namespace) -> Report:
    """Runs the stages, each a child run of one MLflow run, and says where the results stand."""
    if options.dry_run:
        return report_estimate(options)
    from lungsynth.generate import GenerateResult, Pipeline  # with torch, which --help need not wait for

    # The bundles, their weights, the cohort and the folder are looked at before anything is written.
    command = repeat_command("generate", GENERATE.add_arguments, options)
    pipeline = Pipeline.open(generate_config(options), command=command)
    with pipeline.tracked(tracking_uri(options)) as stages:
        # 1. wcapsgan_bundle draws nodules and lungs. With a cohort, more are drawn than needed, those that cover its
        #    real ones are kept and copies refused, and real nodules and lungs join them.
        stages.run("assets", pipeline.make_assets)

        # 2. Groups of nodules are tried on all lungs, where nodules occur in patients. The catalogue keeps the pairs
        #    that the rules accept and the policy prefers: a recipe for each sample, and nothing is rendered yet.
        stages.run("plan", pipeline.plan)

        # 3. Each nodule is composited onto its lung with the lung's noise and sharpness; cyclegan_bundle makes the
        #    slice look more real around it; where lung_seg_bundle then loses or invents a nodule, the composite is
        #    blended back. Images, label maps, annotations, the data list and a contact sheet are written.
        stages.run("export", pipeline.export)

        # 4. lung_seg_bundle looks at some of the finished slices: how detectable are the nodules?
        stages.run("check", pipeline.check)
    # When the stages are done, report.html shows what came; it and the contact sheet stand with the MLflow run.
    return report_generated(GenerateResult.of(stages, pipeline.config.out), options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, 2 after bad input, 130 after Ctrl-C."""
    return run_command(COMMANDS["generate"]._replace(work=synthesize), arguments)


if __name__ == "__main__":
    sys.exit(main())
