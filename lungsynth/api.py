"""The functions of `import lungsynth as ls`: plain arguments in, results out.

What a call does not name has its default in the configuration that it fills: `config.GenerateConfig`,
`export.writer.ExportJob`, `cohort.prepare.PrepareSettings`, `scans.plan.InsertConfig`,
`pseudo_labels.run.PseudoLabelConfig`. All raise
`InputError` with one sentence when an input cannot be used.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lungsynth.config import GenerateConfig, default_bundles

if TYPE_CHECKING:
    from lungsynth.cohort.prepare import PrepareResult
    from lungsynth.export.writer import ExportResult
    from lungsynth.generate import GenerateResult
    from lungsynth.plan import PlanResult
    from lungsynth.pseudo_labels.run import PseudoLabelResult
    from lungsynth.scans.run import InsertResult
    from lungsynth.trial.run import TrialResult

__all__ = ["export", "generate", "insert", "load_bundle", "plan", "prepare", "pseudo_label", "trial"]

AnyPath = str | Path


def generate(
    out: AnyPath,
    *,
    count: int = 64,
    seed: int = 0,
    cohort: AnyPath | None = None,
    tracking_uri: str | None = None,
    **settings: Any,
) -> "GenerateResult":
    """Makes labelled synthetic slices, or goes on with a run that was stopped.

    Args:
        out: folder of the run.
        count: samples.
        seed: of everything random; same seed, same bytes.
        cohort: folder that `prepare` wrote, to mix in real nodules and lungs.
        tracking_uri: MLflow store; None tracks nothing.
        settings: further fields of `GenerateConfig`, e.g. `enhancement=EnhancementConfig(enabled=False)`.

    Returns:
        Paths and figures.
    """
    from lungsynth.generate import generate as run

    return run(_config(out, count=count, seed=seed, cohort=cohort, **settings), tracking_uri=tracking_uri)


def plan(out: AnyPath, *, count: int, seed: int = 0, cohort: AnyPath | None = None, **settings: Any) -> "PlanResult":
    """Plans a catalogue without rendering any sample; `export` renders it.

    Args:
        out: folder of the catalogue and its assets.
        count: samples; of each category with `placement=PlacementConfig.at_scale(...)`.
        seed: of everything random.
        cohort: folder that `prepare` wrote.
        settings: further fields of `GenerateConfig`.
    """
    from lungsynth.plan import plan as run

    return run(_config(out, count=count, seed=seed, cohort=cohort, **settings))


def export(
    catalogue: AnyPath,
    out: AnyPath,
    *,
    format: str = "nifti",  # noqa: A002
    begin: int = 0,
    end: int | None = None,
    workers: int = 1,
    **settings: Any,
) -> "ExportResult":
    """Renders the samples begin .. end of a catalogue to files, or goes on with it.

    Args:
        catalogue: `catalogue.parquet` of `plan` or `generate`.
        out: folder to fill.
        format: `nifti`, `nnunet`, `msd`, `luna16`, `dicom`, `png`, `webdataset` or `zarr`.
        begin: first sample.
        end: behind the last one; all when None.
        workers: processes; no byte depends on it.
        settings: further fields of `ExportJob`, e.g. `enhance=False` for the composites of an enhanced catalogue.
    """
    from lungsynth.export.writer import ExportJob, export_catalogue

    job = ExportJob(catalogue=Path(catalogue).absolute(), out=Path(out).absolute(), format=format, **settings)
    return export_catalogue(job, begin=begin, end=end, workers=workers)


def insert(
    sources: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    nodules: str,
    seed: int = 0,
    nodule_cohort: AnyPath | None = None,
    bundles: AnyPath | None = None,
    tracking_uri: str | None = None,
    **settings: Any,
) -> "InsertResult":
    """Inserts nodules into scans in three dimensions, or goes on with it.

    Args:
        sources: folders, archives or files with chest CT.
        out: folder of the run.
        nodules: of each scan, such as "part_solid 8-12mm x3, ground_glass 6mm".
        seed: of everything random; same seed, same bytes.
        nodule_cohort: cohort whose real nodules are inserted; generated ones when None.
        bundles: folder of the bundles; those of this installation when None.
        tracking_uri: MLflow store; None tracks nothing.
        settings: further fields of `InsertConfig`, e.g. `variants=10`, `format="dicom"` or `check=True`.
    """
    from lungsynth.cohort.reader import Cohort
    from lungsynth.scans.cubes import CohortCubes, CubeSource, GeneratedCubes
    from lungsynth.scans.plan import InsertConfig
    from lungsynth.scans.request import parse_requests
    from lungsynth.scans.run import insert_into_scans

    several = [sources] if isinstance(sources, str | Path) else sources
    cubes: CubeSource = GeneratedCubes(bundles=Path(bundles) if bundles else default_bundles())
    if nodule_cohort is not None:
        cubes = CohortCubes(cohort=Cohort.open(Path(nodule_cohort)))
    config = InsertConfig(
        sources=tuple(Path(source) for source in several),
        out=Path(out),
        nodules=parse_requests(nodules),
        cubes=cubes,
        seed=seed,
        bundles=Path(bundles) if bundles else None,
        **settings,
    )
    return insert_into_scans(config, tracking_uri=tracking_uri)


def prepare(
    sources: AnyPath | Sequence[AnyPath], out: AnyPath, *, workers: int = 2, **settings: Any
) -> "PrepareResult":
    """Makes a cohort out of chest CT in any mix of layouts.

    Args:
        sources: folders, zips or files.
        out: the cohort.
        workers: processes.
        settings: fields of `PrepareSettings`.
    """
    from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort

    several = [sources] if isinstance(sources, str | Path) else sources
    paths = [Path(source) for source in several]
    return prepare_cohort(paths, Path(out), settings=PrepareSettings(**settings), workers=workers)


def pseudo_label(
    cohort: AnyPath, out: AnyPath, *, tracking_uri: str | None = None, **settings: Any
) -> "PseudoLabelResult":
    """Runs the detector on the scans of a cohort without expert marks.

    Args:
        cohort: folder that `prepare` wrote.
        out: the cohort with pseudo-labels.
        tracking_uri: MLflow store; None tracks nothing.
        settings: further fields of `PseudoLabelConfig`.
    """
    from lungsynth.pseudo_labels.run import PseudoLabelConfig, pseudo_label_cohort

    config = PseudoLabelConfig(cohort=Path(cohort), out=Path(out), **{"bundles": default_bundles(), **settings})
    return pseudo_label_cohort(config, tracking_uri=tracking_uri)


def trial(
    scans: AnyPath,
    out: AnyPath,
    *,
    detectors: Mapping[str, "str | Callable[..., Any]"],
    design: "Mapping[str, Any] | AnyPath | None" = None,
    tracking_uri: str | None = None,
    **settings: Any,
) -> "TrialResult":
    """Asks detectors about slices with and without known nodules, and reports what they miss.

    Args:
        scans: a cohort that `prepare` wrote, or scans.
        out: folder of the trial; one of the same design is continued.
        detectors: by name: a callable `(hu, spacing_mm) -> candidates (n, 5)`, asked in this process; or text as after
            `--detector` of the command, asked in processes of its own with a time limit.
        design: keys of a design, or its file; the default design when None.
        tracking_uri: MLflow store; None tracks nothing.
        settings: further fields of `TrialConfig`.
    """
    from lungsynth.trial.design import TrialDesign, read_design
    from lungsynth.trial.detectors import DetectorSpec, parse_detector
    from lungsynth.trial.run import TrialConfig, run_trial

    bundles = Path(settings.get("bundles", default_bundles()))
    specs = tuple(
        parse_detector(f"{name}={given}", bundles=bundles)
        if isinstance(given, str)
        else DetectorSpec(name=name, kind="function", target=name, function=given)
        for name, given in detectors.items()
    )
    if design is None or isinstance(design, Mapping):
        chosen = TrialDesign.from_json(design or {})
    else:
        chosen = read_design(Path(design))
    config = TrialConfig(scans=Path(scans), out=Path(out), design=chosen, detectors=specs, **settings)
    return run_trial(config, tracking_uri=tracking_uri)


def load_bundle(name: str, *, bundles: AnyPath | None = None, **settings: Any) -> Any:
    """Builds one component of a bundle, e.g. the sampler of `wcapsgan` or the segmenter of `lung_seg`.

    Args:
        name: `lung_seg`, `wcapsgan` or `cyclegan`.
        bundles: folder of the bundles; those of this installation when None.
        settings: further arguments of `bundles.open_bundle`, e.g. `component="segmenter"`.
    """
    from lungsynth.bundles import open_bundle

    return open_bundle(Path(bundles) if bundles else default_bundles(), name, **settings)


def _config(out: AnyPath, *, cohort: AnyPath | None, **settings: Any) -> GenerateConfig:
    return GenerateConfig(out=Path(out), cohort=Path(cohort) if cohort else None, **settings)
